// One job: its facts, progress, actions and result.
import { duration, hasEnded, methodsOf, phaseOf, runTime, titleOf, when } from "./job.js";
import { JobNotes } from "./job_notes.js";
import { JobQuestion } from "./job_question.js";
import { html, useEffect, useState } from "./preact.js";
import { Notice, useReadProblem } from "./problem_notice.js";
import { ProgressBar } from "./progress.js";
import { ResultView } from "./result_view.js";
import { formHash, go } from "./route.js";
import { ShareButton } from "./share_dialog.js";

export function JobView({ id, parameters, store, catalogue }) {
  const open = () => store.open(id).catch(setReadProblem);
  const [readProblem, setReadProblem] = useReadProblem(() => store.get(id) ?? open());
  const [actionProblem, setActionProblem] = useState(null); // of the last button that was clicked
  const problem = actionProblem ?? readProblem;
  useEffect(() => {
    open();
    return () => store.open(null);
  }, [id]);
  const job = store.get(id);
  useTitle(job);
  if (problem && !job) return html`<${Notice} problem=${problem}>${!store.isReadOnly && html`<p><a href=${formHash()}>Submit a job</a></p>`}<//>`;
  if (!job) return html`<p class="muted" role="status">Loading…</p>`;
  const attempt = (action) => async () => {
    setActionProblem(null);
    try {
      await action();
    } catch (problem) {
      setActionProblem(problem);
    }
  };
  const cancel = attempt(() => store.cancel(job));
  const remove = attempt(async () => {
    await store.remove(job);
    go(formHash());
  });
  return html`
    <article class="job-view" aria-labelledby="job-title">
      <header class="job-head">
        <h1 id="job-title" dir="auto" title=${titleOf(job.request)}>${titleOf(job.request)}</h1>
        ${!store.isReadOnly && html`<div class="actions">
          ${!hasEnded(job) && html`
            <button onClick=${cancel} disabled=${job.cancel_requested}>${job.cancel_requested ? "Stopping…" : "Cancel"}</button>`}
          ${job.request && html`<a class="button" href=${formHash({ from: job.job_id })}>Edit and run again</a>`}
          <${ShareButton} job=${job} />
          ${hasEnded(job) && html`<${Delete} onDelete=${remove} />`}
        </div>`}
        <p class="facts">
          <span class="status ${job.status}">${job.status}</span>
          <span>${when(job.created_at)}${runTime(job) !== null && `, ran ${duration(runTime(job))}`}</span>
        </p>
        <${JobQuestion} job=${job} />
      </header>
      <p class="hidden" role="status">${phaseOf(job)}</p>
      ${!store.isReadOnly && html`<${JobNotes} key=${job.job_id} job=${job} store=${store} />`}
      ${problem && html`<${Notice} problem=${problem} />`}
      ${!hasEnded(job) && html`<div class="under-way"><${ProgressBar} job=${job} /><${TextSoFar} job=${job} /></div>`}
      ${job.status === "failed" && html`<${Notice} problem=${job.error} />`}
      ${job.status === "cancelled" && html`<p class="muted">The job was cancelled.</p>`}
      ${job.expired_at && html`<p class="muted">The result was removed to make room. Run it again to get it back.</p>`}
      ${hasScores(job) && html`<${ResultView} job=${job} parameters=${parameters} catalogue=${catalogue} store=${store} />`}
    </article>
  `;
}

const SCORED = ["attributing", "saving"]; // other stages count steps of their own

/** Whether there may be scores to show. A running job has those of the tokens that are attributed so far. */
function hasScores({ status, progress, expired_at, request }) {
  if (expired_at || status === "pending") return false;
  const isLaterMethod = methodsOf(request).indexOf(progress.method) > 0; // those before it are done
  return status === "completed" || isLaterMethod || (progress.steps_done > 0 && SCORED.includes(progress.stage));
}

/** What the model has written so far; the result has it once there are scores. */
function TextSoFar({ job }) {
  const texts = hasScores(job) ? [] : (job.progress.generated_text ?? []).filter(Boolean);
  if (!texts.length) return null;
  return html`
    <section class="so-far">
      <h2>Generated so far</h2>
      ${texts.map((text) => html`<p dir="auto">${text}</p>`)}
    </section>
  `;
}

function Delete({ onDelete }) {
  const [isSure, setSure] = useState(false);
  if (!isSure) return html`<button class="quiet" onClick=${() => setSure(true)}>Delete</button>`;
  return html`<span role="group" aria-label="Delete this job and its result?">
    <button class="danger" onClick=${onDelete}>Delete job and result</button> <button class="quiet" onClick=${() => setSure(false)}>Keep</button>
  </span>`;
}

function useTitle(job) {
  const title = job ? `${job.status}: ${titleOf(job.request).slice(0, 40)}` : "";
  useEffect(() => {
    const before = document.title;
    if (title) document.title = title;
    return () => {
      document.title = before;
    };
  }, [title]);
}
