// The jobs that are selected in the list, and what can be done with them together.
import { signal } from "../vendor/signals-core.js";
import { hasEnded } from "./job.js";
import { html, useState } from "./preact.js";
import { Notice } from "./problem_notice.js";
import { compareHash } from "./route.js";

export const MOST_COMPARED = 8; // jobs, as the server compares at once

/** The ids of the selected jobs. */
export class Selection {
  ids = signal(new Set());
  #last = null; // the job that was clicked last, from which a range begins

  has(id) {
    return this.ids.value.has(id);
  }

  /** Select a job or not; with `isRange`, all jobs of `order` between it and the one before. */
  toggle(id, isSelected, { order = [], isRange = false } = {}) {
    const [from, to] = [order.indexOf(this.#last), order.indexOf(id)].sort((a, b) => a - b);
    const ids = isRange && from >= 0 ? order.slice(from, to + 1) : [id];
    this.#last = id;
    this.set(ids, isSelected);
  }

  set(ids, isSelected) {
    const chosen = new Set(this.ids.value);
    for (const each of ids) chosen[isSelected ? "add" : "delete"](each);
    this.ids.value = chosen;
  }

  clear() {
    this.ids.value = new Set();
  }
}

const canCompare = (job) => job.status === "completed" && !job.expired_at;

/** The bar above the list: select all that is shown, and act on the selected jobs. */
export function SelectionBar({ selection, store, shown }) {
  const [isSure, setSure] = useState(false);
  const [isBusy, setBusy] = useState(false);
  const [said, setSaid] = useState(null); // the problem of the last action
  const jobs = [...selection.ids.value].map((id) => store.get(id)).filter(Boolean);
  const isAll = shown.length > 0 && shown.every((job) => selection.has(job.job_id));
  const compared = jobs.filter(canCompare);
  const active = jobs.filter((job) => !hasEnded(job) && !job.cancel_requested);
  const ended = jobs.filter(hasEnded);
  const act = (action, of, done) => async () => {
    setBusy(true);
    setSure(false);
    setSaid(null);
    try {
      const ids = of.map((job) => job.job_id);
      const refused = (await action(ids)).filter(({ outcome }) => outcome !== "not_found");
      const left = new Set(refused.map(({ job_id }) => job_id));
      selection.set(ids.filter((id) => !left.has(id)), false);
      if (refused.length) setSaid({ title: `${refused.length} of ${ids.length} jobs were not ${done}`, message: refused[0].error?.detail });
    } catch (problem) {
      setSaid(problem);
    }
    setBusy(false);
  };
  return html`
    <div class="selection" role="group" aria-label="Selected jobs">
      <input type="checkbox" aria-label="Select all jobs that are shown" checked=${isAll} onChange=${() => selection.set(shown.map((job) => job.job_id), !isAll)} />
      <span class="count" role="status">${jobs.length ? `${jobs.length} selected` : "Select all"}</span>
      ${jobs.length > 0 && html`
        ${compared.length >= 2 && compared.length <= MOST_COMPARED
          ? html`<a class="button" href=${compareHash(compared.map((job) => job.job_id))}>Compare</a>`
          : html`<button disabled title=${whyNot(compared.length)}>Compare</button>`}
        ${active.length > 0 && html`<button disabled=${isBusy} onClick=${act((ids) => store.cancelMany(ids), active, "cancelled")}>Cancel${count(active, jobs)}</button>`}
        ${ended.length > 0 && !isSure && html`<button disabled=${isBusy} onClick=${() => setSure(true)}>Delete${count(ended, jobs)}</button>`}
        <button class="quiet" onClick=${() => selection.clear()}>Clear</button>
        ${isSure && html`
          <span class="sure" role="group" aria-label="Delete these jobs and their results?">
            <button class="danger" onClick=${act((ids) => store.removeMany(ids), ended, "deleted")}>Delete ${ended.length} ${ended.length === 1 ? "job and result" : "jobs and results"}</button>
            <button class="quiet" onClick=${() => setSure(false)}>Keep</button>
          </span>`}
        ${jobs.length === 1 && compared.length === 1 && html`<span class="muted help">${whyNot(1)}</span>`}`}
      ${said && html`<${Notice} problem=${said} />`}
    </div>
  `;
}

const whyNot = (count) => (count < 2 ? "Select two or more completed jobs to compare them." : `At most ${MOST_COMPARED} jobs are compared.`);

/** How many of the selected jobs an action concerns, where it is not all of them. */
const count = (some, all) => (some.length < all.length ? ` ${some.length}` : "");
