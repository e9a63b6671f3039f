// Several jobs in one view: what differs between their requests, their results side by side, and how far these agree.
import { getJson, withQuery } from "./api.js";
import { CompareAgreement } from "./compare_agreement.js";
import { CompareRequests } from "./compare_requests.js";
import { CompareRuns } from "./compare_runs.js";
import { methodsOf, titleOf } from "./job.js";
import { html, useEffect, useMemo, useState } from "./preact.js";
import { Notice } from "./problem_notice.js";
import { compareHash, formHash, replace } from "./route.js";

export function CompareView({ ids, parameters, store }) {
  const [loaded, setLoaded] = useState(null); // {jobs, results}: of each id its document, and its result or a problem
  const [problem, setProblem] = useState(null);
  useEffect(() => {
    load(ids, store).then(setLoaded, setProblem);
  }, []);
  useEffect(() => {
    const before = document.title;
    document.title = `Comparison of ${ids.length} jobs`;
    return () => {
      document.title = before;
    };
  }, []);
  const runs = useMemo(() => (loaded ? runsOf(loaded) : []), [loaded]);
  if (problem) return html`<${Notice} problem=${problem}><p><a href=${formHash()}>Submit a job</a></p><//>`;
  if (!loaded) return html`<p class="muted" role="status">Reading the results…</p>`;
  const texts = Math.max(0, ...runs.map(({ sequences }) => sequences.length));
  const index = Math.min(Number(parameters.seq) || 0, Math.max(0, texts - 1));
  const onShow = (changes) => replace(compareHash(ids, { ...parameters, ...changes, jobs: ids.join(",") }));
  const unread = loaded.jobs.filter((job) => loaded.results.get(job.job_id) instanceof Error);
  return html`
    <article class="compare" aria-labelledby="compare-title">
      <h1 id="compare-title">Comparison of ${loaded.jobs.length} jobs</h1>
      ${unread.map((job) => html`<${Notice} key=${job.job_id} problem=${{ title: `No result: ${titleOf(job.request)}`, message: loaded.results.get(job.job_id).message }} />`)}
      <${CompareRequests} jobs=${loaded.jobs} names=${namesOf(loaded.jobs)} runs=${runs} index=${index} />
      ${texts > 1 && html`
        <label class="switch">Text
          <select value=${index} onChange=${({ target }) => onShow({ seq: target.value === "0" ? "" : target.value, pos: "", row: "", of: "" })}>
            ${Array.from({ length: texts }, (_, each) => html`<option value=${each}>${each + 1}</option>`)}
          </select>
        </label>`}
      ${runs.length > 0 && html`<${CompareRuns} key=${index} runs=${runs} index=${index} parameters=${parameters} onShow=${onShow} />`}
      ${runs.length > 1 && html`<${CompareAgreement} runs=${runs} index=${index} />`}
    </article>
  `;
}

async function load(ids, store) {
  if (!ids.length) throw { title: "Nothing to compare", message: "Select two or more completed jobs in the list." };
  const read = async (id) => {
    const job = await getJson(`/attribution/jobs/${encodeURIComponent(id)}`);
    store.put(job);
    return job;
  };
  const jobs = await Promise.all([...new Set(ids)].map(read));
  const result = (job) => getJson(withQuery(job.links.results, { format: "json", decode_tokens: true })).catch((problem) => problem);
  const results = await Promise.all(jobs.map(result));
  return { jobs, results: new Map(jobs.map((job, at) => [job.job_id, results[at]])) };
}

/** What is compared: each job's result, or each method's of a job with several. `name` tells them apart. */
function runsOf({ jobs, results }) {
  const names = namesOf(jobs);
  return jobs.flatMap((job, at) => {
    const result = results.get(job.job_id);
    if (result instanceof Error) return [];
    const parts = result.comparison ?? [{ ...result, method: methodsOf(job.request)[0] }];
    return parts.map(({ method, sequence_attributions: sequences }) => ({ job, method, sequences, name: result.comparison ? `${names[at]}: ${method}` : names[at] }));
  });
}

/** A name for each job: its own, else its method and model; with a number where two would have the same. */
function namesOf(jobs) {
  const names = jobs.map((job) => job.name ?? (job.request?.methods ? `${job.request.methods.length} methods, ${job.request.model}` : `${methodsOf(job.request)[0]}, ${job.request?.model}`));
  return names.map((name, at) => (names.indexOf(name) === names.lastIndexOf(name) ? name : `${at + 1}: ${name}`));
}
