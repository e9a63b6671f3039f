// The jobs that the page knows: pages of the list, kept up to date by events and polling. Its state is signals, so a
// component that reads their `.value` follows them. Knows nothing of how jobs are shown.
import { batch, computed, effect, signal } from "../vendor/signals-core.js";
import { call, getJson, withQuery } from "./api.js";
import { hasEnded } from "./job.js";
import { watch } from "./job_events.js";
import { filtersInAddress, NO_FILTERS, putInAddress, sameFilters } from "./list_filters.js";

const PAGE_SIZE = 20;
const MAX_PAGE = 200; // jobs that the server lists, cancels or deletes in one call
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

  /** What the list is filtered by, each an empty string for any: see list_filters.js. */
  filters = signal(filtersInAddress());
  /** The models, methods and tags of all jobs, by which the list can be filtered. */
  facets = signal({ models: [], methods: [], tags: {} });
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

  /** The job that the page shows, where it is in neither of these lists. */
  pinned = computed(() => {
    const isListed = [...this.list.value, ...this.earlier.value].some((job) => job.job_id === this.#opened.value);
    return isListed ? undefined : this.#jobs.value.get(this.#opened.value);
  });

  get(id) {
    return this.#jobs.value.get(id);
  }

  start() {
    this.#stopWatching = effect(() => this.#watchActive());
    addEventListener("popstate", this.#followAddress);
    this.refresh();
    this.#timer = setInterval(() => document.hidden || this.refresh(), POLL_INTERVAL);
  }

  stop() {
    clearInterval(this.#timer);
    removeEventListener("popstate", this.#followAddress);
    this.#stopWatching?.();
    for (const watching of this.#watches.values()) watching.abort();
    this.#watches.clear();
  }

  /** Change some of the filters. */
  filter(changes) {
    const filters = { ...this.filters.value, ...changes };
    if (sameFilters(filters, this.filters.value)) return;
    putInAddress(filters);
    this.#filterChanges += 1;
    batch(() => {
      this.filters.value = filters;
      this.#order.value = [];
      this.#active.value = [];
      this.cursor.value = null;
      this.isLoaded.value = false;
    });
    return this.refresh();
  }

  clearFilters() {
    return this.filter(NO_FILTERS);
  }

  #followAddress = () => this.filter(filtersInAddress()); // the browser went back or forward

  /** Read the first page again and keep the older jobs that were loaded; find the active jobs behind it. */
  async refresh(limit = PAGE_SIZE) {
    const isWhole = await this.#load({ limit }, (page) => {
      const oldest = page.jobs.at(-1)?.job_id;
      const known = this.#order.value.indexOf(oldest);
      const older = page.next_cursor && known >= 0 ? this.#order.value.slice(known + 1) : [];
      if (!older.length) this.cursor.value = page.next_cursor;
      this.#order.value = [...page.jobs.map((job) => job.job_id), ...older];
      if (!page.next_cursor) this.#active.value = []; // there are no jobs behind this page
      return !page.next_cursor;
    });
    if (isWhole !== false || this.filters.value.status) return;
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

  /** Change the name, notes or tags of a job (a JSON Merge Patch). */
  async update(job, changes) {
    this.put(await getJson(job.links.self, { method: "PATCH", body: changes }));
    this.#readFacets();
  }

  /** Cancel several jobs. Returns the outcomes that are not `done`. */
  async cancelMany(ids) {
    const refused = await this.#onMany("cancel", ids);
    await this.refresh(Math.min(MAX_PAGE, Math.max(PAGE_SIZE, this.#order.value.length))); // all that are listed
    return refused;
  }

  /** Delete several jobs. Returns the outcomes that are not `done`. */
  async removeMany(ids) {
    const refused = await this.#onMany("delete", ids);
    const kept = new Set(refused.filter(({ outcome }) => outcome !== "not_found").map(({ job_id }) => job_id));
    this.#forget(ids.filter((id) => !kept.has(id)));
    this.refresh();
    return refused;
  }

  async cancel(job) {
    this.put(await getJson(job.links.cancel, { method: "POST" }));
  }

  async remove(job) {
    await call(job.links.self, { method: "DELETE" });
    this.#forget([job.job_id]);
  }

  async #onMany(action, ids) {
    const refused = [];
    for (let at = 0; at < ids.length; at += MAX_PAGE) {
      const body = { job_ids: ids.slice(at, at + MAX_PAGE) };
      const { outcomes } = await getJson(`/attribution/jobs/${action}`, { method: "POST", body });
      refused.push(...outcomes.filter(({ outcome }) => outcome !== "done"));
    }
    return refused;
  }

  #forget(ids) {
    batch(() => {
      this.#order.value = this.#order.value.filter((id) => !ids.includes(id));
      const others = new Map(this.#jobs.value);
      for (const id of ids) others.delete(id);
      this.#jobs.value = others;
    });
  }

  async #readFacets() {
    try {
      this.facets.value = await getJson("/attribution/jobs/facets");
    } catch {
      // The menus keep what they have; the list itself reports a server that does not answer.
    }
  }

  put(job) {
    this.#jobs.value = new Map(this.#jobs.value).set(job.job_id, job);
  }

  /** Take over the jobs of a page, except those of which an event brought a newer state while the page was read. */
  #merge(jobs) {
    const merged = new Map(this.#jobs.value);
    if (jobs.some((job) => !merged.has(job.job_id))) this.#readFacets();
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
      const query = { limit: PAGE_SIZE, ...this.filters.value, ...parameters };
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
