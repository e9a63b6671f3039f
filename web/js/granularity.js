// The choice of the unit of text that the result is read in. The server merges the tokens of a unit.
import { html } from "./preact.js";
import { placeOf } from "./selection.js";

const UNITS = { "": "Tokens", words: "Words", sentences: "Sentences", paragraphs: "Paragraphs", messages: "Messages" };

const SEGMENTS = { segments: "Segments" }; // of a job that names them

/** Whether an aggregation in the address is one of the units alone. */
export const isUnit = ({ agg = "" }) => agg in UNITS || agg in SEGMENTS;

/**
 * `chosen`: `{selection, table}` of what is shown, so that the same place in the text stays selected. `onCustom` opens
 * the list of aggregators. `hasSegments`: the job names parts of its input.
 */
export function Granularity({ parameters, chosen, hasSegments, isCustom, onCustom, onShow }) {
  const choose = (unit) => onShow({
    agg: unit, fn: "", args: "", pos: "", row: "", at: chosen ? placeOf(chosen.selection, chosen.table) : "",
  });
  const current = isCustom ? null : (parameters.agg ?? "");
  return html`
    <div class="granularity" role="group" aria-label="Unit of text">
      ${Object.entries({ ...UNITS, ...(hasSegments && SEGMENTS) }).map(([unit, label]) => html`
        <button type="button" key=${unit} aria-pressed=${current === unit} onClick=${() => choose(unit)}>${label}</button>`)}
      <button type="button" aria-pressed=${isCustom} onClick=${onCustom}>Custom…</button>
    </div>
  `;
}
