// Several methods on one text, side by side, and the agreement of each two. A selected token is selected for all.
import { AgreementTable } from "./agreement_table.js";
import { LazyDetails } from "./lazy_details.js";
import { Matrix, StepScores } from "./matrix.js";
import { scaleOf } from "./number_scale.js";
import { html, useMemo, useState } from "./preact.js";
import { ScoreBars } from "./score_bars.js";
import { scaledScores, tableOf } from "./score_table.js";
import { selectionOf, selectionParameters } from "./selection.js";
import { SelectionControls } from "./selection_controls.js";
import { activeScale, hiddenRows, Legend, ScaleChoice } from "./sequence_view.js";
import { TokenView } from "./token_view.js";

export function Comparison({ result, index, parameters, onShow }) {
  const [hovered, setHovered] = useState(""); // the score under the pointer, as a sentence
  const columns = result.comparison.map(({ method, sequence_attributions: sequences }) => ({ method, sequence: sequences[index] }));
  const first = columns[0].sequence;
  const agreement = (result.agreement ?? []).filter(({ sequence }) => sequence === index);
  const table = useMemo(() => tableOf(columns.find(({ sequence }) => tableOf(sequence).rows.length)?.sequence ?? first), [result, index]);
  return html`
    <div class="bar-of-numbers">
      <${SelectionControls} table=${table} selection=${selectionOf(parameters, table)} onSelect=${(chosen) => onShow(selectionParameters(chosen))} />
      <${ScaleChoice} parameters=${parameters} table=${table} onShow=${onShow} />
      <p class="hovered-score" aria-hidden="true">${hovered || "Point at a token for its score, and click to select it."}</p>
    </div>
    <div class="side-by-side">
      ${columns.map(({ method, sequence }) => html`
        <${Column} key=${method} method=${method} sequence=${sequence} parameters=${parameters} onShow=${onShow}
          onHover=${(text) => setHovered(`${method}: ${text}`)} />`)}
    </div>
    ${agreement.length > 0 && html`
      <section class="agreement">
        <h3>Agreement</h3>
        <${AgreementTable} label="Methods" pairs=${agreement} nameOf=${({ methods }) => methods.join(" and ")} />
      </section>`}
    <${StepScores} sequence=${first} columns=${tableOf(first).columns} onHover=${setHovered} />
  `;
}

function Column({ method, sequence, parameters, onShow, onHover }) {
  const table = useMemo(() => tableOf(sequence), [sequence]);
  const isHidden = useMemo(() => hiddenRows(table, parameters), [table, parameters.template]);
  const scale = useMemo(() => scaleOf(scaledScores(table, isHidden)), [table, isHidden]);
  const selection = selectionOf(parameters, table);
  const onSelect = (chosen) => onShow(selectionParameters(chosen));
  const shared = { table, scale, selection, onHover, onSelect };
  const active = activeScale(parameters, table, scale, selection, isHidden);
  const isFlat = table.rows.length > 0 && table.depth === 1;
  return html`
    <section class="column" aria-label=${method}>
      <h2><button type="button" class="link" onClick=${() => onShow({ method })}>${method}</button></h2>
      ${!isFlat && html`
        <p class="muted">
          ${table.rows.length ? "These scores have more dimensions. Choose an aggregation." : "This method gives no attributions."}
        </p>`}
      ${isFlat && html`
        <${Legend} ...${active} />
        <div class=${parameters.template === "no" ? "without-template" : ""}>
          <${TokenView} sequence=${sequence} ...${shared} scale=${active.scale} />
        </div>
        <${ScoreBars} table=${table} selection=${selection} isHidden=${isHidden} onSelect=${onSelect} />
        <${LazyDetails} className="all" summary="Table of all scores">${() => html`<${Matrix} ...${shared} />`}<//>`}
    </section>
  `;
}
