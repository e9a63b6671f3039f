// The list of jobs beside the page's main content: search and filters, selection, and a row for each job.
import { JobFilters } from "./job_filters.js";
import { hasEnded, methodsOf, stateOf, titleOf, when } from "./job.js";
import { Selection, SelectionBar } from "./job_selection.js";
import { isFiltered } from "./list_filters.js";
import { html, useMemo, useState } from "./preact.js";
import { ProgressBar } from "./progress.js";
import { formHash, jobHash } from "./route.js";
import { TagChips } from "./tag_chips.js";

export function JobList({ store, openId }) {
  const selection = useMemo(() => new Selection(), []);
  const [isLoading, setLoading] = useState(false);
  const [current, setCurrent] = useState(null); // the row that the Tab key enters
  const [pinned, earlier, list] = [[store.pinned.value ?? []].flat(), store.earlier.value, store.list.value];
  const shown = [...pinned, ...earlier, ...list];
  const order = shown.map((job) => job.job_id);
  const isGrouped = pinned.length + earlier.length > 0;
  const stop = order.includes(current) ? current : order.includes(openId) ? openId : order[0];
  const rows = (jobs, label) => html`
    <ul aria-labelledby=${label} aria-label=${label ? undefined : "Jobs"}>
      ${jobs.map((job) => html`<${Row} key=${job.job_id} job=${job} selection=${selection} order=${order}
        isOpen=${job.job_id === openId} isStop=${job.job_id === stop} />`)}
    </ul>
  `;
  const more = async () => {
    setLoading(true);
    await store.more();
    setLoading(false);
  };
  return html`
    <aside class="jobs" aria-label="Jobs">
      <div class="jobs-head">
        <h2>Jobs</h2>
        <a class="button" href=${formHash()}>New job</a>
      </div>
      <${JobFilters} store=${store} />
      ${store.problem.value && html`<p class="error" role="alert">${store.problem.value.message}</p>`}
      ${shown.length > 0 && html`<${SelectionBar} selection=${selection} store=${store} shown=${shown} />`}
      <div class="rows" onKeyDown=${moveAmongRows} onFocusIn=${({ target }) => setCurrent(target.closest("li")?.dataset.id ?? current)}>
        ${pinned.length > 0 && html`<h3 id="open-job">Open</h3>${rows(pinned, "open-job")}`}
        ${earlier.length > 0 && html`<h3 id="earlier">Earlier, still under way</h3>${rows(earlier, "earlier")}`}
        ${isGrouped && list.length > 0 && html`<h3 id="newest">${isFiltered(store.filters.value) ? "Found" : "Newest"}</h3>`}
        ${list.length > 0 && rows(list, isGrouped ? "newest" : undefined)}
      </div>
      ${store.isLoaded.value && !list.length && html`<p class="muted" role="status">${isFiltered(store.filters.value) ? "No job matches." : "No jobs yet."}</p>`}
      ${store.cursor.value && html`<button onClick=${more} disabled=${isLoading}>Load more</button>`}
    </aside>
  `;
}

function Row({ job, selection, order, isOpen, isStop }) {
  const { request, tags } = job;
  const title = titleOf(request);
  const tabindex = isStop ? 0 : -1;
  const select = (event) => selection.toggle(job.job_id, event.target.checked, { order, isRange: event.shiftKey });
  return html`
    <li class="row" data-id=${job.job_id}>
      <input type="checkbox" class="pick" aria-label=${`Select ${title}`} checked=${selection.has(job.job_id)} onClick=${select} tabindex=${tabindex} />
      <a class="job" href=${jobHash(job.job_id)} aria-current=${isOpen ? "page" : undefined} tabindex=${tabindex}>
        <span class="job-when muted">
          <time datetime=${job.created_at}>${when(job.created_at)}</time>
          ${job.status !== "completed" && html`<span class="status ${job.status}">${hasEnded(job) ? stateOf(job) : job.status}</span>`}
          ${job.status === "completed" && job.expired_at && html`<span class="muted">result removed</span>`}
        </span>
        <span class=${request?.name ? "job-text named" : "job-text"} dir="auto">${title}</span>
        <span class="job-meta muted">${methodsOf(request).join(", ")} · ${request?.model}</span>
        <${TagChips} tags=${tags} />
        ${!hasEnded(job) && html`<${ProgressBar} job=${job} />`}
      </a>
    </li>
  `;
}

/** Up and down move the focus between rows, Home and End to the first and the last; left and right within a row. */
function moveAmongRows(event) {
  const { key, target, currentTarget } = event;
  const row = target.closest("li.row");
  if (!row || event.altKey || event.ctrlKey || event.metaKey) return;
  const kind = target.matches(".pick") ? ".pick" : ".job";
  const other = { ArrowLeft: ".pick", ArrowRight: ".job" }[key];
  if (key === " " && kind === ".job") {
    row.querySelector(".pick").click();
    return event.preventDefault();
  }
  const all = [...currentTarget.querySelectorAll("li.row")];
  const at = { ArrowUp: all.indexOf(row) - 1, ArrowDown: all.indexOf(row) + 1, Home: 0, End: all.length - 1 }[key];
  const next = other ? row.querySelector(other) : all[at]?.querySelector(kind);
  if (!next) return;
  event.preventDefault();
  next.focus();
}
