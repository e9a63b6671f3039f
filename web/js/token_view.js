// A sequence as running text: choose a generated token and what it depended on lights up, or an attributed token and
// what it had a part in.
import { html } from "./preact.js";
import { roving } from "./roving.js";
import { heat, scaleOf, short } from "./scores.js";
import { directionOf, quoted, TokenText } from "./tokens.js";

/** `selection` is `{column}` or `{row}`; `perToken` scales colours to the selection alone. */
export function TokenView({ sequence, table, scale, selection, perToken, onSelect, onSay }) {
  const { attr_pos_start: start, attr_pos_end: end } = sequence;
  const chosen = selection.column !== undefined ? table.scores.map((row) => row[selection.column]) : (table.scores[selection.row] ?? []);
  const used = perToken ? { ...scaleOf(chosen), isSigned: scale.isSigned } : scale;
  const rowOf = (side, index) => table.rows.findIndex((row) => row.side === side && row.index === index);
  const entry = (side, index, token) => {
    const row = rowOf(side, index);
    const column = side === "target" && index >= start && index < end ? index - start : undefined;
    const isShown = selection.column !== undefined ? row >= 0 : column !== undefined;
    const value = !isShown ? undefined : selection.column !== undefined ? chosen[row] : chosen[column];
    return { token, row, column, value, isShown, isChosen: column !== undefined ? selection.column === column : selection.row === row };
  };
  const hasSource = table.rows.some((row) => row.side === "source");
  const texts = { selection, table, onSelect, onSay, scale: used };
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
        onKeyDown=${roving(".token")}>
        ${entries.map((entry, index) => html`<${Token} key=${index} ...${entry} ...${shared} isStop=${index === stop} />`)}
      </div>
    </section>
  `;
}

function Token({ token, row, column, value, isShown, isChosen, isStop, scale, selection, table, onSelect, onSay }) {
  const isChoice = row >= 0 || column !== undefined;
  const colour = isShown ? heat(value, scale) : { class: "" };
  const kind = column !== undefined ? "generated" : "given";
  const say = () => onSay(!isShown ? quoted(token)
    : selection.column !== undefined ? sentence(token, table.columns[selection.column].token, value)
    : sentence(table.rows[selection.row].token, token, value));
  const number = isShown && value !== null && value !== undefined && html`<span class="hidden">, ${short(value)}</span>`;
  const content = html`<${TokenText} token=${token} />${number}`;
  if (!isChoice) return html`<span class="token ${kind}" data-kind=${kind} tabindex="-1">${content}</span>`;
  return html`
    <button type="button" class="token ${kind} ${colour.class}" style=${colour.style} tabindex=${isStop ? 0 : -1} aria-pressed=${isChosen}
      data-kind=${kind} data-value=${value ?? undefined}
      onClick=${() => onSelect(column !== undefined ? { column } : { row })} onPointerEnter=${say} onFocus=${say}>${content}</button>
  `;
}

export const sentence = (from, to, value) =>
  value === null || value === undefined ? `${quoted(from)} → ${quoted(to)}: no score` : `${quoted(from)} → ${quoted(to)}: ${value}`;
