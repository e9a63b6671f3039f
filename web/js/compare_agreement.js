// How far the results of several jobs agree, each two of them that have the same tokens.
import { getJson, withQuery } from "./api.js";
import { short } from "./number_scale.js";
import { html, useEffect, useState } from "./preact.js";
import { Notice } from "./problem_notice.js";

export function CompareAgreement({ runs, index }) {
  const [agreement, setAgreement] = useState(null);
  const [problem, setProblem] = useState(null);
  useEffect(() => {
    const jobs = [...new Set(runs.map(({ job }) => job.job_id))].join(",");
    getJson(withQuery("/attribution/agreement", { jobs })).then((answer) => setAgreement(answer.agreement), setProblem);
  }, []);
  const nameOf = (pair, side) => runs.find(({ job, method }) => job.job_id === pair.jobs[side] && method === pair.methods[side])?.name;
  const pairs = (agreement ?? []).filter(({ sequence }) => sequence === index);
  const compared = pairs.filter(({ same_tokens }) => same_tokens);
  const number = (value) => html`<td data-value=${value ?? undefined}>${short(value) || "–"}</td>`;
  return html`
    <section class="agreement" aria-labelledby="compare-agreement">
      <h2 id="compare-agreement">Agreement</h2>
      ${problem && html`<${Notice} problem=${problem} />`}
      ${compared.length > 0 && html`
        <div class="scroll" role="region" aria-label="Agreement of the results" tabindex="0">
          <table class="matrix">
            <thead>
              <tr><th scope="col">Results</th><th scope="col">Spearman ρ</th><th scope="col">Kendall τ</th><th scope="col">top ${compared[0].k} in common</th></tr>
            </thead>
            <tbody>
              ${compared.map((pair) => html`
                <tr key=${[...pair.jobs, ...pair.methods].join()}>
                  <th scope="row">${nameOf(pair, 0)} and ${nameOf(pair, 1)}</th>
                  ${number(pair.spearman)}${number(pair.kendall)}
                  <td data-value=${pair.top_overlap ?? undefined}>${typeof pair.top_overlap === "number" ? `${Math.round(pair.top_overlap * 100)} %` : "–"}</td>
                </tr>`)}
            </tbody>
          </table>
        </div>
        <p class="help muted">Means over the generated tokens. Both correlations rank the earlier tokens by absolute score: 1 is the same order, 0 no relation, −1 the reverse order.</p>`}
      ${agreement && compared.length < pairs.length && html`
        <p class="help muted">${compared.length ? "The other results" : "These results"} have different tokens, so their scores cannot be compared one by one.</p>`}
    </section>
  `;
}
