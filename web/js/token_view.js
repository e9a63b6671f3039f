// A sequence as running text. Selecting a generated token colours the tokens by their scores for it; selecting an
// attributed token colours the generated tokens by its scores for them.
import { arrowKeyNavigation } from "./arrow_key_navigation.js";
import { heat, scaleOf, short } from "./number_scale.js";
import { html } from "./preact.js";
import { directionOf, quoted } from "./shown_tokens.js";
import { TokenText } from "./token_text.js";

const scoresOf = (table, { column, row }) => (column !== undefined ? table.scores.map((each) => each[column]) : (table.scores[row] ?? []));

/** The scale of a selection's colours: up to its own largest score, but signed where the whole table is. */
export const scaleOfSelection = (table, scale, selection) => ({ ...scaleOf(scoresOf(table, selection)), isSigned: scale.isSigned });

/** `selection` is `{column}` or `{row}`; `scale` is that of the colours. */
export function TokenView({ sequence, table, scale, selection, onSelect, onHover }) {
  const { attr_pos_start: start, attr_pos_end: end } = sequence;
  const chosen = scoresOf(table, selection);
  const rowOf = (side, index) => table.rows.findIndex((row) => row.side === side && row.index === index);
  const entry = (side, index, token) => {
    const row = rowOf(side, index);
    const column = side === "target" && index >= start && index < end ? index - start : undefined;
    const isShown = selection.column !== undefined ? row >= 0 : column !== undefined;
    const value = !isShown ? undefined : selection.column !== undefined ? chosen[row] : chosen[column];
    return { token, row, column, value, isShown, isChosen: column !== undefined ? selection.column === column : selection.row === row };
  };
  const hasSource = table.rows.some((row) => row.side === "source");
  const texts = { selection, table, onSelect, onHover, scale };
  return html`
    <div class="texts">
      ${hasSource && html`<${Line} ...${texts} label="Source" entries=${sequence.source.map((token, index) => entry("source", index, token))} />`}
      <${Line} ...${texts} label=${hasSource ? "Target" : "Prompt and generated text"}
        entries=${sequence.target.map((token, index) => entry("target", index, token))} />
    </div>
  `;
}

function Line({ label, entries, ...shared }) {
  const stop = Math.max(0, entries.findIndex(({ isChosen, row, column }) => isChosen && (row >= 0 || column !== undefined)));
  return html`
    <section class="line">
      <h3>${label}</h3>
      <div class="tokens" role="group" aria-label=${`${label}: tokens`} dir=${directionOf(entries.map(({ token }) => token))}
        onKeyDown=${arrowKeyNavigation(".token")}>
        ${entries.map((entry, index) => html`<${Token} key=${index} ...${entry} ...${shared} isStop=${index === stop} />`)}
      </div>
    </section>
  `;
}

function Token({ token, row, column, value, isShown, isChosen, isStop, scale, selection, table, onSelect, onHover }) {
  const isChoice = row >= 0 || column !== undefined;
  const colour = isShown ? heat(value, scale) : { class: "" };
  const kind = column !== undefined ? "generated" : "given";
  const hover = () => onHover(!isShown ? quoted(token)
    : selection.column !== undefined ? sentence(token, table.columns[selection.column].token, value)
    : sentence(table.rows[selection.row].token, token, value));
  const number = isShown && value !== null && value !== undefined && html`<span class="hidden">, ${short(value)}</span>`;
  const content = html`<${TokenText} token=${token} />${number}`;
  if (!isChoice) return html`<span class="token ${kind}" data-kind=${kind} tabindex="-1">${content}</span>`;
  return html`
    <button type="button" class="token ${kind} ${colour.class}" style=${colour.style} tabindex=${isStop ? 0 : -1} aria-pressed=${isChosen}
      data-kind=${kind} data-value=${value ?? undefined}
      onClick=${() => onSelect(column !== undefined ? { column } : { row })} onPointerEnter=${hover} onFocus=${hover}>${content}</button>
  `;
}

/** A score between two tokens as a sentence. */
export const sentence = (from, to, value) =>
  value === null || value === undefined ? `${quoted(from)} → ${quoted(to)}: no score` : `${quoted(from)} → ${quoted(to)}: ${value}`;
