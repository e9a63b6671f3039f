// One sequence of a result: its text with coloured tokens, the score under the pointer, the strongest scores, the table
// of all scores and the step scores.
import { Matrix, StepScores } from "./matrix.js";
import { scaleOf, short } from "./number_scale.js";
import { html, useMemo, useState } from "./preact.js";
import { tableOf } from "./score_table.js";
import { SequenceScores } from "./sequence_scores.js";
import { quoted } from "./shown_tokens.js";
import { TokenText } from "./token_text.js";
import { scaleOfSelection, TokenView } from "./token_view.js";

const STRONGEST_COUNT = 5;

/** The selection in the address: `{pos}` is a generated token (a column), `{row}` an attributed token. */
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
  const [hovered, setHovered] = useState(""); // the score under the pointer, as a sentence
  const selection = selectionOf(parameters, table);
  const isPerToken = parameters.scale === "token";
  const shared = { table, scale, selection, onHover: setHovered, onSelect: (chosen) => onShow(selectionParameters(chosen)) };
  if (!table.rows.length) {
    return html`
      <p class="muted">This method gives no attributions, only step scores.</p>
      <${StepScores} sequence=${sequence} columns=${table.columns} onHover=${setHovered} />
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
  const onToggle = ({ target }) => target.open === (parameters.table !== "no") || onShow({ table: target.open ? "" : "no" });
  return html`
    <div class="bar-of-numbers">
      <${Legend} ...${activeScale(parameters, table, scale, selection)} />
      <${PerToken} parameters=${parameters} onShow=${onShow} />
      <p class="hovered-score" aria-hidden="true">${hovered || "Point at a token or a cell for its score."}</p>
    </div>
    <${TokenView} sequence=${sequence} ...${shared} scale=${activeScale(parameters, table, scale, selection).scale} />
    <${Strongest} table=${table} selection=${selection} />
    <details class="all" open=${parameters.table !== "no"} onToggle=${onToggle}>
      <summary>Table of all scores</summary>
      ${isPerToken && html`<${Legend} scale=${scale} of="whole text" />`}
      <${Matrix} ...${shared} />
    </details>
    <${StepScores} sequence=${sequence} columns=${table.columns} onHover=${setHovered} />
    ${!parameters.agg && html`<${SequenceScores} sequence=${sequence} onHover=${setHovered} />`}
  `;
}

/** The scale of the tokens' colours, and what it belongs to, for the legend. The table always has the whole text's. */
export const activeScale = (parameters, table, scale, selection) =>
  parameters.scale === "token" ? { scale: scaleOfSelection(table, scale, selection), of: "this token" } : { scale, of: "whole text" };

export function Legend({ scale: { largest, isSigned }, of }) {
  return html`
    <div class="legend">
      <span class="muted">${of}</span>
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
  const top = others.filter(([, value]) => value !== null).sort((a, b) => Math.abs(b[1]) - Math.abs(a[1])).slice(0, STRONGEST_COUNT);
  if (!chosen) return null;
  return html`
    <p class="strongest" aria-live="polite">
      <span>${quoted(chosen)} ${isColumn ? "depended most on" : "contributed most to"}</span>
      ${top.map(([token, value]) => html`<span class="token-score"><${TokenText} token=${token} /> <span class="number">${short(value)}</span></span>`)}
    </p>
  `;
}
