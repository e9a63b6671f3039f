// The job of a link for others, as `JobView` reads it. Without the key that an event stream needs, it is polled.
import { signal } from "../vendor/signals-core.js";
import { getJson } from "./api.js";
import { hasEnded } from "./job.js";

const POLL_INTERVAL = 2000; // milliseconds

export class SharedJobStore {
  #path;
  #job = signal(null);
  #timer = null;

  /** Whether the job cannot be cancelled, deleted or run again here. */
  isReadOnly = true;

  /** path: of the link. */
  constructor(path) {
    this.#path = path.replace(/\/$/, "");
  }

  get id() {
    return this.#job.value?.job_id;
  }

  get() {
    return this.#job.value ?? undefined;
  }

  async read() {
    this.#job.value = await getJson(`${this.#path}/job`);
    return this.#job.value;
  }

  /** Follow the job until it ends; with null, no more. */
  async open(id) {
    clearTimeout(this.#timer);
    if (!id || hasEnded(this.#job.value)) return;
    const again = async () => {
      await this.read().catch(() => {}); // at the next time
      if (!hasEnded(this.#job.value)) this.#timer = setTimeout(again, POLL_INTERVAL);
    };
    this.#timer = setTimeout(again, POLL_INTERVAL);
  }
}
