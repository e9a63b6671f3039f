// Follows a job through its server-sent events, which it reads with `fetch`: an `EventSource` cannot send an
// Authorization header.
import { createParser } from "../vendor/eventsource-parser/index.js";
import { call } from "./api.js";
import { hasEnded } from "./job.js";

const RECONNECT_AFTER = 2000; // milliseconds

/** The events of one response, each `{id, event, data}`, until the server closes the connection. */
async function* eventsOf(response) {
  const parsed = [];
  const parser = createParser({ onEvent: (event) => parsed.push(event) });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    parser.feed(value);
    yield* parsed.splice(0);
  }
}

/**
 * Call `onJob` with the job after each of its changes. Reconnects after a lost connection; resolves when the job has
 * ended, when the server refuses (401, 404) or when `signal` is aborted.
 */
export async function watch(job, onJob, signal) {
  let lastId;
  let ended = false;
  while (!ended && !signal.aborted) {
    try {
      const headers = { Accept: "text/event-stream", ...(lastId ? { "Last-Event-ID": lastId } : {}) };
      const response = await call(job.links.events, { headers, signal });
      if (response.status === 204) return;
      for await (const { id, data } of eventsOf(response)) {
        lastId = id ?? lastId;
        const current = JSON.parse(data);
        ended = hasEnded(current);
        onJob(current);
      }
    } catch (problem) {
      if (signal.aborted || [401, 404].includes(problem.status)) return;
    }
    if (!ended) await new Promise((resolve) => setTimeout(resolve, RECONNECT_AFTER));
  }
}
