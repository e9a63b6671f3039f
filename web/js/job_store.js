// The jobs that the page knows: pages of the list, kept up to date by events and polling. Its state is signals, so a
// component that reads their `.value` follows them. Knows nothing of how jobs are shown.
import { batch, computed, effect, signal } from "../vendor/signals-core.js";
import { call, getJson, withQuery } from "./api.js";
import { hasEnded } from "./job.js";
import { watch } from "./job_events.js";

const PAGE_SIZE = 20;
const MAX_EARLIER = 100; // running jobs behind the first page, and as many pending ones
const POLL_INTERVAL = 4000; // milliseconds; finds the jobs of other clients
// A browser opens at most six connections to a server, and the page needs some for other calls. Active jobs beyond
// these are only polled.
const MAX_STREAMS = 3;

export class JobStore {
  #jobs = signal(new Map()); // by id
  #order = signal([]); // ids of the listed jobs, newest first
  #active = signal([]); // ids of jobs that were running or pending behind the first page
  #opened = signal(null); // id of the job that the page shows
  #watches = new Map(); // id of a job to the AbortController of its event stream
  #timer = null;
  #stopWatching = null;
  #filterChanges = 0;

  /** The status that the list is filtered by, or an empty string. */
  status = signal("");
  /** The cursor of the next page, or null. */
  cursor = signal(null);
  isLoaded = signal(false);
  /** The problem of the last request for the list, or null. */
  problem = signal(null);

  /** The jobs of the list, newest first. */
  list = computed(() => this.#order.value.map((id) => this.#jobs.value.get(id)));

  /** Running and pending jobs that are older than those of the list. */
  earlier = computed(() => {
    const listed = new Set(this.#order.value);
    const unlisted = this.#active.value.filter((id) => !listed.has(id)).flatMap((id) => this.#jobs.value.get(id) ?? []);
    return unlisted.filter((job) => !hasEnded(job));
  });

  get(id) {
    return this.#jobs.value.get(id);
  }

  start() {
    this.#stopWatching = effect(() => this.#watchActive());
    this.refresh();
    this.#timer = setInterval(() => document.hidden || this.refresh(), POLL_INTERVAL);
  }

  stop() {
    clearInterval(this.#timer);
    this.#stopWatching?.();
    for (const watching of this.#watches.values()) watching.abort();
    this.#watches.clear();
  }

  filter(status) {
    this.#filterChanges += 1;
    batch(() => {
      this.status.value = status;
      this.#order.value = [];
      this.#active.value = [];
      this.isLoaded.value = false;
    });
    return this.refresh();
  }

  /** Read the first page again and keep the older jobs that were loaded; find the active jobs behind it. */
  async refresh() {
    const isWhole = await this.#load({}, (page) => {
      const oldest = page.jobs.at(-1)?.job_id;
      const known = this.#order.value.indexOf(oldest);
      const older = page.next_cursor && known >= 0 ? this.#order.value.slice(known + 1) : [];
      if (!older.length) this.cursor.value = page.next_cursor;
      this.#order.value = [...page.jobs.map((job) => job.job_id), ...older];
      if (!page.next_cursor) this.#active.value = []; // there are no jobs behind this page
      return !page.next_cursor;
    });
    if (isWhole !== false || this.status.value) return;
    const found = {};
    const read = (status) =>
      this.#load({ status, limit: MAX_EARLIER }, (page) => (found[status] = page.jobs.map((job) => job.job_id)));
    await Promise.all(["running", "pending"].map(read));
    if (found.running && found.pending) this.#active.value = [...new Set([...found.running, ...found.pending])];
  }

  /** Read the next page. */
  more() {
    return this.#load({ cursor: this.cursor.value }, (page) => {
      const seen = new Set(this.#order.value);
      const added = page.jobs.map((job) => job.job_id).filter((id) => !seen.has(id));
      this.#order.value = [...this.#order.value, ...added];
      this.cursor.value = page.next_cursor;
    });
  }

  /** Read the job that the page shows; its event stream comes before those of all others. */
  async open(id) {
    this.#opened.value = id;
    if (!id) return;
    this.put(await getJson(`/attribution/jobs/${encodeURIComponent(id)}`));
    if (!this.#order.value.includes(id)) this.refresh(); // it may be newer than the list
  }

  async cancel(job) {
    this.put(await getJson(job.links.cancel, { method: "POST" }));
  }

  async remove(job) {
    await call(job.links.self, { method: "DELETE" });
    batch(() => {
      this.#order.value = this.#order.value.filter((id) => id !== job.job_id);
      const others = new Map(this.#jobs.value);
      others.delete(job.job_id);
      this.#jobs.value = others;
    });
  }

  put(job) {
    this.#jobs.value = new Map(this.#jobs.value).set(job.job_id, job);
  }

  /** Take over the jobs of a page, except those of which an event brought a newer state while the page was read. */
  #merge(jobs) {
    const merged = new Map(this.#jobs.value);
    for (const job of jobs) {
      const known = merged.get(job.job_id);
      const isOlder = known && (hasEnded(known) ? !hasEnded(job) : known.progress.fraction > job.progress.fraction);
      if (!isOlder || job.attempt > known.attempt) merged.set(job.job_id, job);
    }
    this.#jobs.value = merged;
  }

  /** Read a page of the list and give it to `take`, whose value it returns; undefined if that failed. */
  async #load(parameters, take) {
    const filterChanges = this.#filterChanges;
    try {
      const query = { limit: PAGE_SIZE, status: this.status.value, ...parameters };
      const page = await getJson(withQuery("/attribution/jobs", query));
      if (filterChanges !== this.#filterChanges) return; // the page answers an older filter
      return batch(() => {
        this.#merge(page.jobs);
        this.isLoaded.value = true;
        this.problem.value = null;
        return take(page);
      });
    } catch (problem) {
      this.problem.value = problem;
    }
  }

  /** Open event streams for the active jobs that matter most, and close the others. */
  #watchActive() {
    const active = [...this.#jobs.value.values()].filter((job) => !hasEnded(job));
    const rank = (job) => (job.job_id === this.#opened.value ? 0 : job.status === "running" ? 1 : 2);
    const wanted = active.sort((a, b) => rank(a) - rank(b)).slice(0, MAX_STREAMS);
    const ids = new Set(wanted.map((job) => job.job_id));
    for (const [id, watching] of this.#watches) {
      if (!ids.has(id)) {
        watching.abort();
        this.#watches.delete(id);
      }
    }
    for (const job of wanted) {
      if (this.#watches.has(job.job_id)) continue;
      const watching = new AbortController();
      this.#watches.set(job.job_id, watching);
      watch(job, (current) => this.put(current), watching.signal);
    }
  }
}
