// The result of a job, with the aggregation, text and selection that the address names.
import { getJson, onAnswer, withQuery } from "./api.js";
import { Comparison } from "./comparison.js";
import { CopyAs } from "./copy_as.js";
import { Downloads } from "./downloads.js";
import { methodsOf } from "./job.js";
import { html, useEffect, useRef, useState } from "./preact.js";
import { Notice } from "./problem_notice.js";
import { shortest } from "./request_draft.js";
import { show } from "./route.js";
import { tableOf } from "./score_table.js";
import { selectionOf } from "./selection.js";
import { SequenceView } from "./sequence_view.js";
import { Trace } from "./trace_view.js";
import { queryOf, ViewControls } from "./view_controls.js";

/** The result; for a job that has not completed, the tokens attributed so far, or nothing if there are none. */
export function ResultView({ job, parameters, catalogue, store }) {
  const query = { ...queryOf(parameters), partial: job.status === "completed" ? undefined : true };
  const path = withQuery(job.links.results, { ...query, format: "json", decode_tokens: true });
  // The last result, the path that it answers (`of`), and the path that was answered last, with a result or a problem.
  const [{ result, ...last }, setAnswer] = useState({});
  const problem = last.path === path ? last.problem : undefined;
  const [tries, setTries] = useState(0);
  useEffect(() => (problem?.isUnanswered ? onAnswer(() => setTries(tries + 1)) : undefined), [problem]);
  const asked = useRef(null);
  const isHidden = query.partial && problem?.status === 409;
  useEffect(() => {
    // One request at a time. None once the server has answered that this method has no partial result (409).
    if (asked.current === path || isHidden) return;
    asked.current = path;
    const answer = (given) => {
      if (asked.current === path) setAnswer(given);
      if (asked.current === path) asked.current = null;
    };
    getJson(path).then((result) => answer({ result, path, of: path }),
      (problem) => answer(({ result, of }) => ({ result, of, problem, path })));
  }, [path, tries, query.partial && job.progress.steps_done]);
  if (isHidden || (query.partial && !result && !problem)) return null;
  const isComparison = methodsOf(job.request).length > 1 && !query.method; // only JSON holds all methods
  const onShow = (changes) => show(job.job_id, { ...parameters, ...changes });
  const isOld = Boolean(result) && last.of !== path; // it answers what was asked before
  return html`
    <section class="result" aria-label="Result">
      <h2 class="hidden">Result</h2>
      <div class="result-tools">
        <${ViewControls} methods=${methodsOf(job.request)} parameters=${parameters} chosen=${chosenIn(result, parameters)}
          hasSegments=${Boolean(job.request?.segments)} catalogue=${catalogue} onShow=${onShow} />
        <${Downloads} job=${job} query=${query} formats=${isComparison ? ["json"] : catalogue.formats} />
      </div>
      ${problem && html`<${Notice} problem=${problem}>
        <button onClick=${() => onShow({ agg: "", fn: "", args: "", norm: "", method: "", trace: "" })}>Back to the default view</button>
      <//>`}
      ${!result && !problem && html`<p class="muted" role="status">Reading the result…</p>`}
      ${result && html`
        <div class="shown" aria-busy=${isOld && !problem} inert=${isOld && Boolean(problem)}>
          <${Shown} job=${job} result=${result} parameters=${parameters} catalogue=${catalogue} store=${store} onShow=${onShow} />
        </div>`}
    </section>
  `;
}

/** The table and selection that are shown, so that a merge of tokens can keep the place; undefined for a comparison. */
function chosenIn(result, parameters) {
  if (!result || result.comparison) return undefined;
  const table = tableOf(sequenceAt(result, parameters));
  return { table, selection: selectionOf(parameters, table) };
}

const sequenceAt = ({ sequence_attributions: sequences }, { seq }) => sequences[Math.min(Number(seq) || 0, sequences.length - 1)];

function Shown({ job, result, parameters, catalogue, store, onShow }) {
  const info = result.comparison ? Object.fromEntries(result.comparison.map(({ method, info }) => [method, info])) : result.info;
  const warnings = result.comparison
    ? result.comparison.flatMap(({ method, info }) => (info.warnings ?? []).map((each) => `${method}: ${each}`))
    : (result.info.warnings ?? []);
  const sequences = (result.comparison?.[0] ?? result).sequence_attributions;
  const index = Math.min(Number(parameters.seq) || 0, sequences.length - 1);
  const choose = (seq) => onShow({ seq: seq ? String(seq) : "", pos: "", row: "", at: "", hop: "" });
  return html`
    ${sequences.length > 1 && html`<${SequenceSwitch} sequences=${sequences} index=${index} onChange=${choose} />`}
    ${info.partial && html`<p class="muted">Tokens attributed so far: ${info.partial.steps_done} of ${info.partial.steps_total}.</p>`}
    ${warnings.length > 0 && html`<${Warnings} warnings=${warnings} />`}
    ${result.comparison
      ? html`<${Comparison} result=${result} index=${index} parameters=${parameters} onShow=${onShow} />`
      : html`<${SequenceView} key=${index} sequence=${sequences[index]} parameters=${parameters} onShow=${onShow}
          asked=${{ job, index, catalogue, store, method: parameters.method || methodsOf(job.request)[0] }} />
        <${Trace} key=${`trace ${index}`} job=${job} sequence=${sequences[index]} index=${index} parameters=${parameters} onShow=${onShow} />`}
    ${catalogue.request && job.request && html`
      <${CopyAs} request=${shortest(job.request, catalogue)} jobId=${job.job_id} view=${queryOf(parameters)} />`}
    <details class="info">
      <summary>How to get these numbers again</summary>
      <pre tabindex="0" aria-label="Information on the result">${JSON.stringify(info, null, 2)}</pre>
    </details>
  `;
}

function SequenceSwitch({ sequences, index, onChange }) {
  const textOf = (sequence) => sequence.source.map((token) => token.text ?? token.token).join("").trim().slice(0, 60);
  return html`
    <div class="switch">
      <label for="sequence">Text</label>
      <span class="muted">${sequences.length} texts</span>
      <select id="sequence" value=${index} onChange=${(event) => onChange(Number(event.target.value))}>
        ${sequences.map((sequence, each) => html`<option value=${each}>${each + 1}: ${textOf(sequence)}</option>`)}
      </select>
    </div>
  `;
}

function Warnings({ warnings }) {
  return html`<div class="notice warning"><strong>Warnings</strong><ul>${warnings.map((each) => html`<li>${each}</li>`)}</ul></div>`;
}
