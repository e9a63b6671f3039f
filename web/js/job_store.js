// The jobs that the page knows: pages of the list, kept live. Knows nothing of how they are shown.
import { call, getJson, withQuery } from "./api.js";
import { watch } from "./events.js";
import { hasEnded } from "./job.js";

const PAGE = 20;
const MOST_EARLIER = 100; // of those that run, and of those that wait
const POLL = 4000; // milliseconds between two looks for jobs of other clients
// A browser opens six connections to a server, and the page needs some for itself: further active jobs are polled.
const STREAMS = 3;

export class JobStore {
  #jobs = new Map();
  #order = [];
  #active = [];
  #listeners = new Set();
  #watches = new Map();
  #timer = null;
  #generation = 0;
  #opened = null;
  status = "";
  cursor = null;
  isLoaded = false;
  problem = null;

  get list() {
    return this.#order.map((id) => this.#jobs.get(id));
  }

  /** Jobs older than those of the list that run or wait. */
  get earlier() {
    const listed = new Set(this.#order);
    const unlisted = this.#active.filter((id) => !listed.has(id)).flatMap((id) => this.#jobs.get(id) ?? []);
    return unlisted.filter((job) => !hasEnded(job));
  }

  get(id) {
    return this.#jobs.get(id);
  }

  subscribe(listener) {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  start() {
    this.refresh();
    this.#timer = setInterval(() => document.hidden || this.refresh(), POLL);
  }

  stop() {
    clearInterval(this.#timer);
    for (const watching of this.#watches.values()) watching.abort();
    this.#watches.clear();
  }

  filter(status) {
    this.status = status;
    this.#order = [];
    this.#active = [];
    this.isLoaded = false;
    this.#generation += 1;
    return this.refresh();
  }

  /** Read the first page again; what was loaded of older jobs stays. And which jobs behind it run or wait. */
  async refresh() {
    const isWhole = await this.#load({}, (page) => {
      const oldest = page.jobs.at(-1)?.job_id;
      const known = this.#order.indexOf(oldest);
      const older = page.next_cursor && known >= 0 ? this.#order.slice(known + 1) : [];
      if (!older.length) this.cursor = page.next_cursor;
      this.#order = [...page.jobs.map((job) => job.job_id), ...older];
      if (!page.next_cursor) this.#active = []; // nothing is behind it any more
      return !page.next_cursor;
    });
    if (isWhole !== false || this.status) return;
    const found = {};
    const read = (status) =>
      this.#load({ status, limit: MOST_EARLIER }, (page) => (found[status] = page.jobs.map((job) => job.job_id)));
    await Promise.all(["running", "pending"].map(read));
    if (found.running && found.pending) this.#active = [...new Set([...found.running, ...found.pending])];
    this.#changed();
  }

  more() {
    return this.#load({ cursor: this.cursor }, (page) => {
      const seen = new Set(this.#order);
      this.#order.push(...page.jobs.map((job) => job.job_id).filter((id) => !seen.has(id)));
      this.cursor = page.next_cursor;
    });
  }

  /** Read a job that is shown, and watch it before all others. */
  async open(id) {
    this.#opened = id;
    if (!id) return;
    this.put(await getJson(`/attribution/jobs/${encodeURIComponent(id)}`));
    if (!this.#order.includes(id)) this.refresh(); // it may be newer than the list
  }

  async cancel(job) {
    this.put(await getJson(job.links.cancel, { method: "POST" }));
  }

  async remove(job) {
    await call(job.links.self, { method: "DELETE" });
    this.#order = this.#order.filter((id) => id !== job.job_id);
    this.#jobs.delete(job.job_id);
    this.#changed();
  }

  put(job) {
    this.#jobs.set(job.job_id, job);
    this.#changed();
  }

  /** A job of a page, unless an event has told something newer while the page was under way. */
  #keep(job) {
    const known = this.#jobs.get(job.job_id);
    const isOlder = known && (hasEnded(known) ? !hasEnded(job) : known.progress.fraction > job.progress.fraction);
    if (!isOlder || job.attempt > known.attempt) this.#jobs.set(job.job_id, job);
  }

  async #load(parameters, take) {
    const generation = this.#generation;
    try {
      const query = { limit: PAGE, status: this.status, ...parameters };
      const page = await getJson(withQuery("/attribution/jobs", query));
      if (generation !== this.#generation) return; // the filter has changed meanwhile
      page.jobs.forEach((job) => this.#keep(job));
      const taken = take(page);
      this.isLoaded = true;
      this.problem = null;
      this.#changed();
      return taken;
    } catch (problem) {
      this.problem = problem;
      this.#changed();
    }
  }

  #changed() {
    this.#watchActive();
    for (const listener of this.#listeners) listener();
  }

  #watchActive() {
    const active = [...this.#jobs.values()].filter((job) => !hasEnded(job));
    const rank = (job) => (job.job_id === this.#opened ? 0 : job.status === "running" ? 1 : 2);
    const wanted = active.sort((a, b) => rank(a) - rank(b)).slice(0, STREAMS);
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
