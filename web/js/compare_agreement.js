// How far the results of several jobs agree, each two of them that have the same tokens.
import { AgreementTable } from "./agreement_table.js";
import { getJson, withQuery } from "./api.js";
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
  return html`
    <section class="agreement" aria-labelledby="compare-agreement">
      <h2 id="compare-agreement">Agreement</h2>
      ${problem && html`<${Notice} problem=${problem} />`}
      ${compared.length > 0 && html`<${AgreementTable} label="Results" pairs=${compared} nameOf=${(pair) => `${nameOf(pair, 0)} and ${nameOf(pair, 1)}`} />`}
      ${agreement && compared.length < pairs.length && html`
        <p class="help muted">${compared.length ? "The other results" : "These results"} have different tokens, so their scores cannot be compared one by one.</p>`}
    </section>
  `;
}
