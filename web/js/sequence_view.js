// One sequence of a result: its text with coloured tokens, the score under the pointer, the strongest scores, the table
// of all scores and the step scores.
import { Candidates } from "./candidates.js";
import { isUnit } from "./granularity.js";
import { Matrix, StepScores } from "./matrix.js";
import { scaleOf, short } from "./number_scale.js";
import { PixelMatrix } from "./pixel_matrix.js";
import { html, useMemo, useState } from "./preact.js";
import { ScoreBars } from "./score_bars.js";
import { scaledScores, tableOf } from "./score_table.js";
import { areSpans, isWhole, scaleOfSelection, selectionOf, selectionParameters } from "./selection.js";
import { SELECTION_KEYS, SelectionControls, stepTo } from "./selection_controls.js";
import { SequenceScores } from "./sequence_scores.js";
import { TokenView } from "./token_view.js";

const MOST_NUMBERS = 400; // cells of a table that are written as numbers; more are drawn as pixels

/** `asked`: the job, its method and the number of the text, with which a candidate makes a job of its own. */
export function SequenceView({ sequence, parameters, onShow, asked = {} }) {
  const table = useMemo(() => tableOf(sequence), [sequence]);
  const isHidden = useMemo(() => hiddenRows(table, parameters), [table, parameters.template]);
  const scale = useMemo(() => scaleOf(scaledScores(table, isHidden)), [table, isHidden]);
  const [hovered, setHovered] = useState(""); // the score under the pointer, as a sentence
  const selection = selectionOf(parameters, table);
  const onSelect = (chosen) => onShow(selectionParameters(chosen));
  const shared = { table, scale, selection, onHover: setHovered, onSelect };
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
  const active = activeScale(parameters, table, scale, selection, isHidden);
  const onKeyDown = (event) => {
    const step = !event.ctrlKey && !event.metaKey && !event.altKey && SELECTION_KEYS[event.key];
    if (step) onSelect(stepTo(step, table, selection));
  };
  return html`
    <div class="bar-of-numbers">
      <${SelectionControls} table=${table} selection=${selection} onSelect=${onSelect} />
      <${Legend} ...${active} />
      <${ScaleChoice} parameters=${parameters} table=${table} onShow=${onShow} />
      <p class="hovered-score" aria-hidden="true">${hovered || "Point at a token for its score, and click to select it."}</p>
    </div>
    <div class="reading ${parameters.template === "no" ? "without-template" : ""}" onKeyDown=${onKeyDown}>
      <${TokenView} sequence=${sequence} ...${shared} scale=${active.scale} />
      <div class="beside">
        <${ScoreBars} table=${table} selection=${selection} isHidden=${isHidden} onSelect=${onSelect} />
        <${Candidates} ...${asked} sequence=${sequence} column=${selection.column} />
      </div>
    </div>
    <${AllScores} table=${table} scale=${scale} isPerToken=${active.of !== "whole text"} selection=${selection} parameters=${parameters}
      onHover=${setHovered} onSelect=${onSelect} onShow=${onShow} />
    <${StepScores} sequence=${sequence} columns=${table.columns} onHover=${setHovered} />
    ${!parameters.agg && html`<${SequenceScores} sequence=${sequence} onHover=${setHovered} />`}
  `;
}

/** The table of all scores: with numbers where they can be read, else as pixels. */
export function AllScores({ isPerToken, parameters, onShow, ...shared }) {
  const { table, scale } = shared;
  const isLarge = table.rows.length * table.columns.length > MOST_NUMBERS;
  const isOpen = parameters.table ? parameters.table !== "no" : !isLarge;
  const onToggle = ({ target }) => target.open === isOpen || onShow({ table: target.open ? "yes" : "no" });
  return html`
    <details class="all" open=${isOpen} onToggle=${onToggle}>
      <summary>Table of all scores</summary>
      ${isOpen && html`
        ${isPerToken && html`<${Legend} scale=${scale} of="whole text" />`}
        ${isLarge && parameters.table !== "numbers"
          ? html`<${PixelMatrix} ...${shared} onNumbers=${() => onShow({ table: "numbers" })} />`
          : html`<${Matrix} ...${shared} />`}`}
    </details>
  `;
}

/** Whether a row is left out of colours and lists: the template's, where the reader hides it. */
export const hiddenRows = (table, parameters) =>
  parameters.template === "no" ? (row) => Boolean(table.rows[row].token.template || table.rows[row].token.special) : () => false;

/** The scale of the tokens' colours, and what it belongs to, for the legend. The table always has the whole text's. */
export function activeScale(parameters, table, scale, selection, isHidden) {
  if (parameters.scale === "text" && !isWhole(selection)) return { scale, of: "whole text" };
  const unit = isUnit(parameters) && parameters.agg && parameters.agg !== "segments" ? parameters.agg : "tokens"; // generated tokens are in no segment
  const parts = areSpans(table) ? "spans" : unit;
  const of = isWhole(selection) ? `sum of ${table.columns.length} ${parts}` : `this ${parts.slice(0, -1)}`;
  return { scale: scaleOfSelection(table, scale, selection, isHidden), of };
}

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

export function ScaleChoice({ parameters, table, onShow }) {
  const change = (name, on, off = "") => ({ target }) => onShow({ [name]: target.checked ? on : off });
  const hasTemplate = table?.rows.some(({ token }) => token.template);
  return html`
    <label class="per-token">
      <input type="checkbox" checked=${parameters.scale === "text"} onChange=${change("scale", "text")} /> one scale for all tokens
    </label>
    ${hasTemplate && html`
      <label class="per-token">
        <input type="checkbox" checked=${parameters.template === "no"} onChange=${change("template", "no")} /> hide the chat template
      </label>`}
  `;
}
