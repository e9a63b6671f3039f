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
  useLayoutEffect(() => paint(texts.current, table, scale, selection), [drawn, table, scale, selection.column, selection.row]);
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
    if (data) onHover(describe(data, table, selection));
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
            tabindex=${row !== undefined || column !== undefined ? -1 : undefined}><${RunningText} token=${token} /></span>`)}
      </div>
    </section>
  `;
}

const kindOf = (token, column) =>
  ["token", column !== undefined ? "generated" : "given", token.template || token.special ? "template" : "", token.continues ? "continues" : ""]
    .filter(Boolean).join(" ");

/** Colour the tokens for a selection, without drawing them anew. */
function paint(texts, table, scale, selection) {
  const { of, values } = scoresFor(table, selection);
  let stop = null;
  for (const token of texts.querySelectorAll("[data-token]")) {
    const { row, column } = token.dataset;
    if (row === undefined && column === undefined) continue;
    const index = of === "rows" ? row : column;
    const value = index === undefined ? undefined : values[index];
    const isChosen = column !== undefined ? Number(column) === selection.column : Number(row) === selection.row;
    colour(token, value, scale);
    token.setAttribute("aria-pressed", String(isChosen));
    token.setAttribute("aria-label", nameOf(token, table, value));
    token.tabIndex = -1;
    if (isChosen || (!stop && isWhole(selection) && column !== undefined)) stop = token;
  }
  stop ??= texts.querySelector("[data-token][role]");
  if (stop) stop.tabIndex = 0;
}

function colour(token, value, scale) {
  const isScored = value !== undefined;
  const kept = [...token.classList].filter((name) => ["token", "generated", "given", "template", "continues"].includes(name));
  const drawn = isScored ? heat(value, scale) : { class: "" };
  token.className = [...kept, drawn.class].filter(Boolean).join(" ");
  if (drawn.style) token.style.setProperty("--w", drawn.style["--w"]);
  else token.style.removeProperty("--w");
  if (value === undefined || value === null) delete token.dataset.value;
  else token.dataset.value = value;
}

function nameOf(element, table, value) {
  const { row, column } = element.dataset;
  const { token } = column !== undefined ? table.columns[column] : table.rows[row];
  const text = piecesOf(textOf(token).trim() || textOf(token)).map(({ text, name }) => text ?? name).join("") || "no text";
  return value === undefined || value === null ? text : `${text}, ${short(value)}`;
}

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
