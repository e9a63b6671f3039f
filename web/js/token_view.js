// A sequence as running text. Selecting a generated token colours the tokens by their scores for it; selecting an
// attributed token colours the generated tokens by its scores for them; the whole answer colours its prompt.
import { arrowKeyNavigation } from "./arrow_key_navigation.js";
import { heat, short } from "./number_scale.js";
import { html, useLayoutEffect, useMemo, useRef } from "./preact.js";
import { blocksOf } from "./reading_blocks.js";
import { isWhole, scoresFor } from "./selection.js";
import { directionOf, piecesOf, quoted, textOf } from "./shown_tokens.js";
import { RunningText } from "./token_text.js";

/** `selection` is `{column}`, `{row}` or `{}`; `scale` is that of the colours. */
export function TokenView({ sequence, table, scale, selection, onSelect, onHover }) {
  const texts = useRef(null);
  const blocks = useMemo(() => blocksOf(sequence, table), [sequence, table]);
  // Drawn once: a selection changes the colours of thousands of tokens, which Preact need not compare.
  const drawn = useMemo(() => blocks.map((block) => html`<${Block} key=${block.key} ...${block} />`), [blocks]);
  const tokens = useRef([]);
  useLayoutEffect(() => {
    tokens.current = tokensIn(texts.current, table);
  }, [drawn, table]);
  useLayoutEffect(() => paint(tokens.current, table, scale, selection),
    [drawn, table, scale.largest, scale.isSigned, selection.column, selection.row]);
  const chosen = ({ target }) => target.closest?.("[data-token]")?.dataset;
  const select = (event) => {
    const data = chosen(event);
    if (!data || (data.row === undefined && data.column === undefined)) return;
    if (event.type === "keydown" && ![" ", "Enter"].includes(event.key)) return;
    event.preventDefault();
    onSelect(data.column !== undefined ? { column: Number(data.column) } : { row: Number(data.row) });
  };
  const hover = (event) => {
    const data = chosen(event);
    if (!data) return;
    onHover(describe(data, table, selection));
    if (event.type === "focusin") event.target.setAttribute("aria-label", nameOf(data, table));
  };
  const move = arrowKeyNavigation(".token[tabindex]");
  return html`
    <div class="texts" ref=${texts} onClick=${select} onPointerOver=${hover} onFocusIn=${hover}
      onKeyDown=${(event) => { select(event); move(event); }}>${drawn}</div>
  `;
}

function Block({ label, entries }) {
  return html`
    <section class="block ${label}">
      <h3 class="role">${label}</h3>
      <div class="tokens" role="group" aria-label=${`${label}: tokens`} dir=${directionOf(entries.map(({ token }) => token))}>
        ${entries.map(({ token, row, column }) => html`
          <span class=${kindOf(token, column)} data-token="" data-row=${row} data-column=${column}
            role=${row !== undefined || column !== undefined ? "button" : undefined}
            aria-label=${textOf(token).trim() && !token.continues ? undefined : spoken(token)}
            tabindex=${row !== undefined || column !== undefined ? -1 : undefined}><${RunningText} token=${token} /></span>`)}
      </div>
    </section>
  `;
}

const kindOf = (token, column) =>
  ["token", column !== undefined ? "generated" : "given", token.template || token.special ? "template" : "", token.continues ? "continues" : "", token.span ? "span" : ""]
    .filter(Boolean).join(" ");

/** What is needed to colour each token, read from the page once after it is drawn. */
function tokensIn(texts, table) {
  return [...texts.querySelectorAll("[data-token][role]")].map((element) => {
    const [row, column] = [element.dataset.row, element.dataset.column].map((each) => (each === undefined ? undefined : Number(each)));
    const { token } = column !== undefined ? table.columns[column] : table.rows[row];
    return { element, row, column, kind: kindOf(token, column), painted: null };
  });
}

const AT_ONCE = 600; // tokens that are coloured in one frame

/**
 * Colour the tokens for a selection, without drawing them anew: of a long text those in the window first, and the rest
 * in the frames that follow. Returns a function that stops it.
 */
function paint(tokens, table, scale, selection) {
  const scores = scoresFor(table, selection);
  const colour = (some) => some.forEach((each) => paintToken(each, scores, scale, selection));
  markStop(tokens, selection);
  const [first, end] = tokens.length > AT_ONCE ? inWindow(tokens) : [0, tokens.length];
  colour(tokens.slice(first, end));
  const rest = [...tokens.slice(end), ...tokens.slice(0, first)];
  let frame = 0;
  const next = () => {
    colour(rest.splice(0, AT_ONCE / 2));
    frame = rest.length ? requestAnimationFrame(next) : 0;
  };
  if (rest.length) frame = requestAnimationFrame(next);
  return () => cancelAnimationFrame(frame);
}

/** The tokens in the window, `[first, end)`. Tokens are in the order of lines, so that few places need to be asked. */
function inWindow(tokens) {
  const firstBelow = (edge) => {
    let [low, high] = [0, tokens.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (tokens[middle].element.getBoundingClientRect().bottom < edge) low = middle + 1;
      else high = middle;
    }
    return low;
  };
  const first = firstBelow(0);
  return [first, Math.max(first, firstBelow(innerHeight + 40))];
}

/** Mark the one token that the Tab key enters: the chosen one, or the first generated one for the whole answer. */
function markStop(tokens, selection) {
  for (const { element } of tokens) if (element.tabIndex === 0) element.tabIndex = -1;
  const stop = tokens.find((each) => isChosen(each, selection) || (isWhole(selection) && each.column !== undefined)) ?? tokens[0];
  if (stop) stop.element.tabIndex = 0;
}

const isChosen = ({ row, column }, selection) => (column !== undefined ? column === selection.column : row === selection.row);

function paintToken(token, { of, values }, scale, selection) {
  const { element, row, column, kind } = token;
  const index = of === "rows" ? row : column;
  const value = index === undefined ? undefined : values[index];
  const drawn = value === undefined ? { class: "" } : heat(value, scale);
  const state = `${drawn.class} ${drawn.style?.["--w"]} ${value} ${isChosen(token, selection)}`;
  if (token.painted === state) return;
  token.painted = state;
  element.className = `${kind} ${drawn.class}`.trim();
  if (drawn.style) element.style.setProperty("--w", drawn.style["--w"]);
  else element.style.removeProperty("--w");
  if (value === undefined || value === null) delete element.dataset.value;
  else element.dataset.value = value;
  element.setAttribute("aria-pressed", String(isChosen(token, selection)));
}

/** A token's name for a screen reader, with its score. It is set when the token is reached: thousands would take long. */
function nameOf({ row, column, value }, table) {
  const { token } = column !== undefined ? table.columns[column] : table.rows[row];
  return value === undefined ? spoken(token) : `${spoken(token)}, ${short(Number(value))}`;
}

const spoken = (token) => piecesOf(textOf(token).trim() || textOf(token)).map(({ text, name }) => text ?? name).join("") || "no text";

function describe({ row, column }, table, selection) {
  const { of, values } = scoresFor(table, selection);
  const index = of === "rows" ? row : column;
  const own = column !== undefined ? table.columns[column].token : table.rows[row]?.token;
  if (!own) return "";
  if (index === undefined || values[index] === undefined) return quoted(own);
  if (isWhole(selection)) return `${quoted(own)} → the whole answer: ${values[index] ?? "no score"}`;
  return of === "rows" ? sentence(own, table.columns[selection.column].token, values[index])
    : sentence(table.rows[selection.row].token, own, values[index]);
}

/** A score between two tokens as a sentence. */
export const sentence = (from, to, value) => `${quoted(from)} → ${quoted(to)}: ${value ?? "no score"}`;
