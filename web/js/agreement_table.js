// How far each two results agree, as a table: rank correlations, and the largest scores that both have.
import { short } from "./number_scale.js";
import { html } from "./preact.js";

/** `label` says what is compared (`Methods`, say); `nameOf(pair)` names a pair of `pairs` (`Agreement` of the API). */
export function AgreementTable({ label, pairs, nameOf }) {
  const overlap = pairs[0].k ? `top ${pairs[0].k} in common` : "top tokens in common";
  const cell = (value, text) => html`<td data-value=${value ?? undefined}>${text || "–"}</td>`;
  const share = (value) => (typeof value === "number" ? `${Math.round(value * 100)} %` : "");
  return html`
    <div class="scroll" role="region" aria-label=${`Agreement of the ${label.toLowerCase()}`} tabindex="0">
      <table class="matrix">
        <thead>
          <tr><th scope="col">${label}</th><th scope="col">Spearman ρ</th><th scope="col">Kendall τ</th><th scope="col">${overlap}</th></tr>
        </thead>
        <tbody>
          ${pairs.map((pair) => html`
            <tr key=${nameOf(pair)}>
              <th scope="row">${nameOf(pair)}</th>
              ${cell(pair.spearman, short(pair.spearman))}${cell(pair.kendall, short(pair.kendall))}${cell(pair.top_overlap, share(pair.top_overlap))}
            </tr>`)}
        </tbody>
      </table>
    </div>
    <p class="help muted">
      Means over the generated tokens. Both correlations rank the earlier tokens by absolute score: 1 is the same order, 0 no
      relation, −1 the reverse order.
    </p>
  `;
}
