// The list of jobs beside the page's main content.
import { hasEnded, methodsOf, stateOf, STATUSES, titleOf, when } from "./job.js";
import { html, useState } from "./preact.js";
import { ProgressBar } from "./progress.js";
import { formHash, jobHash } from "./route.js";

export function JobList({ store, openId }) {
  const [isLoading, setLoading] = useState(false);
  const more = async () => {
    setLoading(true);
    await store.more();
    setLoading(false);
  };
  return html`
    <aside class="jobs" aria-label="Jobs">
      <div class="jobs-head">
        <h2>Jobs</h2>
        <label class="inline">Status
          <select value=${store.status.value} onChange=${(event) => store.filter(event.target.value)}>
            <option value="">all</option>
            ${STATUSES.map((status) => html`<option value=${status}>${status}</option>`)}
          </select>
        </label>
        <a class="button" href=${formHash()}>New job</a>
      </div>
      ${store.problem.value && html`<p class="error" role="alert">${store.problem.value.message}</p>`}
      ${store.isLoaded.value && !store.list.value.length && html`<p class="muted">${store.status.value ? `No ${store.status.value} jobs.` : "No jobs yet."}</p>`}
      ${store.earlier.value.length > 0 && html`
        <h3 id="earlier">Earlier, still under way</h3>
        <${Entries} jobs=${store.earlier.value} openId=${openId} label="earlier" />
        <h3 id="newest">Newest</h3>`}
      <${Entries} jobs=${store.list.value} openId=${openId} label=${store.earlier.value.length > 0 ? "newest" : undefined} />
      ${store.cursor.value && html`<button onClick=${more} disabled=${isLoading}>Load more</button>`}
    </aside>
  `;
}

function Entries({ jobs, openId, label }) {
  return html`
    <ul aria-labelledby=${label}>
      ${jobs.map((job) => html`<${Entry} key=${job.job_id} job=${job} isOpen=${job.job_id === openId} />`)}
    </ul>
  `;
}

function Entry({ job, isOpen }) {
  return html`
    <li>
      <a class="job" href=${jobHash(job.job_id)} aria-current=${isOpen ? "page" : undefined}>
        <span class="job-text" dir="auto">${titleOf(job.request)}</span>
        <span class="job-meta">
          <span class="status ${job.status}">${hasEnded(job) ? stateOf(job) : job.status}</span>
          <span class="muted">${methodsOf(job.request).join(", ")} · ${job.request?.model} · ${when(job.created_at)}</span>
        </span>
        ${!hasEnded(job) && html`<${ProgressBar} job=${job} />`}
      </a>
    </li>
  `;
}
