// A job's server-sent events, read with fetch: an EventSource cannot send an Authorization header.
import { call } from "./api.js";
import { hasEnded } from "./job.js";

const RETRY = 2000; // milliseconds

/** The events of one connection, each `{id, data}`. */
async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    buffer += value.replaceAll("\r", "");
    let end;
    while ((end = buffer.indexOf("\n\n")) >= 0) {
      const event = { id: undefined, data: "" };
      for (const line of buffer.slice(0, end).split("\n")) {
        const [, name, text] = /^(\w*):? ?(.*)$/.exec(line) ?? [];
        if (name === "id") event.id = text;
        if (name === "data") event.data += text;
      }
      buffer = buffer.slice(end + 2);
      if (event.data) yield event;
    }
  }
}

/** Call `onJob` with a job at its every change, until it has ended or `signal` says so. */
export async function watch(job, onJob, signal) {
  let last;
  let ended = false;
  while (!ended && !signal.aborted) {
    try {
      const headers = { Accept: "text/event-stream", ...(last ? { "Last-Event-ID": last } : {}) };
      const response = await call(job.links.events, { headers, signal });
      if (response.status === 204) return;
      for await (const { id, data } of eventsOf(response)) {
        last = id ?? last;
        const current = JSON.parse(data);
        ended = hasEnded(current);
        onJob(current);
      }
    } catch (problem) {
      if (signal.aborted || [401, 404].includes(problem.status)) return;
    }
    if (!ended) await new Promise((resolve) => setTimeout(resolve, RETRY));
  }
}
