// Several methods on one text, side by side: one choice of token for all, and how far they agree.
import { Fold } from "./fold.js";
import { Matrix, StepScores } from "./matrix.js";
import { html, useMemo, useState } from "./preact.js";
import { scaleOf, short, tableOf } from "./scores.js";
import { Legend, PerToken, selectionOf, selectionParameters, Strongest } from "./sequence_view.js";
import { TokenView } from "./token_view.js";

export function Comparison({ result, index, parameters, onShow }) {
  const [said, setSaid] = useState("");
  const columns = result.comparison.map(({ method, sequence_attributions: sequences }) => ({ method, sequence: sequences[index] }));
  const first = columns[0].sequence;
  return html`
    <div class="bar-of-numbers">
      <${PerToken} parameters=${parameters} onShow=${onShow} />
      <p class="said" aria-hidden="true">${said || "Point at a token or a cell for its number."}</p>
    </div>
    <div class="side-by-side">
      ${columns.map(({ method, sequence }) => html`
        <${Column} key=${method} method=${method} sequence=${sequence} parameters=${parameters} onShow=${onShow}
          onSay=${(text) => setSaid(`${method}: ${text}`)} />`)}
    </div>
    <${Agreement} entries=${(result.agreement ?? []).filter(({ sequence }) => sequence === index)} />
    <${StepScores} sequence=${first} columns=${tableOf(first).columns} onSay=${setSaid} />
  `;
}

function Column({ method, sequence, parameters, onShow, onSay }) {
  const table = useMemo(() => tableOf(sequence), [sequence]);
  const scale = useMemo(() => scaleOf(table.scores.flat(table.depth)), [table]);
  const selection = selectionOf(parameters, table);
  const shared = { table, scale, selection, onSay, onSelect: (chosen) => onShow(selectionParameters(chosen)) };
  const isFlat = table.rows.length > 0 && table.depth === 1;
  return html`
    <section class="column" aria-label=${method}>
      <h2><button type="button" class="link" onClick=${() => onShow({ method })}>${method}</button></h2>
      ${!isFlat && html`
        <p class="muted">
          ${table.rows.length ? "These scores have further dimensions: choose an aggregation." : "This method attributes nothing."}
        </p>`}
      ${isFlat && html`
        <${Legend} scale=${scale} />
        <${TokenView} sequence=${sequence} perToken=${parameters.scale === "token"} ...${shared} />
        <${Strongest} table=${table} selection=${selection} />
        <${Fold} className="all" summary="Table of all scores">${() => html`<${Matrix} ...${shared} />`}<//>`}
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
        Means over the generated tokens, of the absolute scores of the tokens before: 1 is the same order of all, 0 no order in
        common, −1 the reverse.
      </p>
    </section>
  `;
}
