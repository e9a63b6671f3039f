// One sequence of a result: its tokens lit up, the numbers under the pointer, the strongest, the table, the step scores.
import { Matrix, StepScores } from "./matrix.js";
import { html, useMemo, useState } from "./preact.js";
import { scaleOf, short, tableOf } from "./scores.js";
import { SequenceScores } from "./sequence_scores.js";
import { quoted, TokenText } from "./tokens.js";
import { TokenView } from "./token_view.js";

const STRONGEST = 5;

/** What is selected, as the address has it: `{pos}` a generated token, `{row}` an attributed one. */
export function selectionOf({ pos, row }, table) {
  const within = (text, length) => (/^\d+$/.test(text ?? "") && Number(text) < length ? Number(text) : undefined);
  const chosen = within(row, table.rows.length);
  return chosen !== undefined ? { row: chosen } : { column: within(pos, table.columns.length) ?? 0 };
}

export const selectionParameters = ({ column, row }) =>
  row !== undefined ? { row: String(row), pos: "" } : { pos: String(column), row: "" };

export function SequenceView({ sequence, parameters, onShow }) {
  const table = useMemo(() => tableOf(sequence), [sequence]);
  const scale = useMemo(() => scaleOf(table.scores.flat(table.depth)), [table]);
  const [said, setSaid] = useState("");
  const selection = selectionOf(parameters, table);
  const shared = { table, scale, selection, onSay: setSaid, onSelect: (chosen) => onShow(selectionParameters(chosen)) };
  if (!table.rows.length) {
    return html`
      <p class="muted">This method attributes nothing; it reports step scores.</p>
      <${StepScores} sequence=${sequence} columns=${table.columns} onSay=${setSaid} />
    `;
  }
  if (table.depth !== 1) {
    return html`
      <p class="notice" role="alert">
        These scores still have ${table.depth + 1} dimensions. Add the step <code>scores</code>, or a function such as${" "}
        <code>mean</code>, to the aggregation.
      </p>
    `;
  }
  const fold = ({ target }) => target.open === (parameters.table !== "no") || onShow({ table: target.open ? "" : "no" });
  return html`
    <div class="bar-of-numbers">
      <${Legend} scale=${scale} />
      <${PerToken} parameters=${parameters} onShow=${onShow} />
      <p class="said" aria-hidden="true">${said || "Point at a token or a cell for its number."}</p>
    </div>
    <${TokenView} sequence=${sequence} perToken=${parameters.scale === "token"} ...${shared} />
    <${Strongest} table=${table} selection=${selection} />
    <details class="all" open=${parameters.table !== "no"} onToggle=${fold}>
      <summary>Table of all scores</summary>
      <${Matrix} ...${shared} />
    </details>
    <${StepScores} sequence=${sequence} columns=${table.columns} onSay=${setSaid} />
    ${!parameters.agg && html`<${SequenceScores} sequence=${sequence} onSay=${setSaid} />`}
  `;
}

export function Legend({ scale: { largest, isSigned } }) {
  return html`
    <div class="legend">
      <span class="number">${isSigned ? short(-largest) : "0"}</span>
      <span class=${`ramp ${isSigned ? "signed" : ""}`} aria-hidden="true"></span>
      <span class="number">${short(largest)}</span>
    </div>
  `;
}

export function PerToken({ parameters, onShow }) {
  const change = (event) => onShow({ scale: event.target.checked ? "token" : "" });
  return html`
    <label class="per-token">
      <input type="checkbox" checked=${parameters.scale === "token"} onChange=${change} /> scale colours to the chosen token
    </label>
  `;
}

export function Strongest({ table, selection }) {
  const isColumn = selection.column !== undefined;
  const chosen = isColumn ? table.columns[selection.column]?.token : table.rows[selection.row].token;
  const others = isColumn ? table.rows.map((row) => [row.token, row.scores[selection.column]])
    : table.columns.map(({ token }, column) => [token, table.rows[selection.row].scores[column]]);
  const top = others.filter(([, value]) => value !== null).sort((a, b) => Math.abs(b[1]) - Math.abs(a[1])).slice(0, STRONGEST);
  if (!chosen) return null;
  return html`
    <p class="strongest" aria-live="polite">
      <span>${quoted(chosen)} ${isColumn ? "depended most on" : "had most part in"}</span>
      ${top.map(([token, value]) => html`<span class="pair-of"><${TokenText} token=${token} /> <span class="number">${short(value)}</span></span>`)}
    </p>
  `;
}
