// Several methods on one text, side by side, and the agreement of each two. A selected token is selected for all.
import { LazyDetails } from "./lazy_details.js";
import { Matrix, StepScores } from "./matrix.js";
import { scaleOf, short } from "./number_scale.js";
import { html, useMemo, useState } from "./preact.js";
import { tableOf } from "./score_table.js";
import { activeScale, Legend, PerToken, selectionOf, selectionParameters, Strongest } from "./sequence_view.js";
import { TokenView } from "./token_view.js";

export function Comparison({ result, index, parameters, onShow }) {
  const [hovered, setHovered] = useState(""); // the score under the pointer, as a sentence
  const columns = result.comparison.map(({ method, sequence_attributions: sequences }) => ({ method, sequence: sequences[index] }));
  const first = columns[0].sequence;
  return html`
    <div class="bar-of-numbers">
      <${PerToken} parameters=${parameters} onShow=${onShow} />
      <p class="hovered-score" aria-hidden="true">${hovered || "Point at a token or a cell for its score."}</p>
    </div>
    <div class="side-by-side">
      ${columns.map(({ method, sequence }) => html`
        <${Column} key=${method} method=${method} sequence=${sequence} parameters=${parameters} onShow=${onShow}
          onHover=${(text) => setHovered(`${method}: ${text}`)} />`)}
    </div>
    <${Agreement} entries=${(result.agreement ?? []).filter(({ sequence }) => sequence === index)} />
    <${StepScores} sequence=${first} columns=${tableOf(first).columns} onHover=${setHovered} />
  `;
}

function Column({ method, sequence, parameters, onShow, onHover }) {
  const table = useMemo(() => tableOf(sequence), [sequence]);
  const scale = useMemo(() => scaleOf(table.scores.flat(table.depth)), [table]);
  const selection = selectionOf(parameters, table);
  const shared = { table, scale, selection, onHover, onSelect: (chosen) => onShow(selectionParameters(chosen)) };
  const active = activeScale(parameters, table, scale, selection);
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
        <${TokenView} sequence=${sequence} ...${shared} scale=${active.scale} />
        <${Strongest} table=${table} selection=${selection} />
        <${LazyDetails} className="all" summary="Table of all scores">${() => html`<${Matrix} ...${shared} />`}<//>`}
    </section>
  `;
}

function Agreement({ entries }) {
  if (!entries.length) return null;
  const overlap = entries[0].k ? `top ${entries[0].k} in common` : "top tokens in common";
  const share = (value) => (typeof value === "number" ? `${Math.round(value * 100)} %` : "–");
  return html`
    <section class="agreement">
      <h3>Agreement</h3>
      <div class="scroll" role="region" aria-label="Agreement of the methods" tabindex="0">
        <table class="matrix">
          <thead>
            <tr><th scope="col">Methods</th><th scope="col">Spearman ρ</th><th scope="col">Kendall τ</th><th scope="col">${overlap}</th></tr>
          </thead>
          <tbody>
            ${entries.map(({ methods, spearman, kendall, top_overlap }) => html`
              <tr key=${methods.join()}>
                <th scope="row">${methods.join(" and ")}</th>
                <td data-value=${spearman ?? undefined}>${short(spearman) || "–"}</td>
                <td data-value=${kendall ?? undefined}>${short(kendall) || "–"}</td>
                <td data-value=${top_overlap ?? undefined}>${share(top_overlap)}</td>
              </tr>`)}
          </tbody>
        </table>
      </div>
      <p class="help muted">
        Means over the generated tokens. Both correlations rank the earlier tokens by absolute score: 1 is the same order, 0 no
        relation, −1 the reverse order.
      </p>
    </section>
  `;
}
