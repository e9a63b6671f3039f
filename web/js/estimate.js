// The estimate of a job's time, passes and memory, kept up to date as the request is typed.
import { getJson } from "./api.js";
import { duration } from "./job.js";
import { html, useEffect, useState } from "./preact.js";

const PAUSE = 700; // milliseconds without a change before the server is asked
const SLOW = 400; // milliseconds from which on a wait is worth a word
const QUIET = new Set([0, 401, 422]); // statuses of problems that a draft has by itself, or that are said elsewhere

const megabytes = (bytes) => `${Math.max(1, Math.round(bytes / 2 ** 20)).toLocaleString("en")} MB`;

/**
 * `request` is null while there is nothing to ask: the draft is not complete, or its model is not on the server's machine.
 * An estimate may load the model, so a request is sent after a pause alone, and only one at a time.
 */
export function Estimate({ request, isCold }) {
  const [answer, setAnswer] = useState({}); // {body, found, problem}: to the request with this body
  const [isSlow, setSlow] = useState(false);
  const [warm, setWarm] = useState(null); // the model of the last estimate, which is in memory
  const body = request && JSON.stringify(request);
  useEffect(() => {
    if (!body) return undefined;
    const asking = new AbortController();
    const timers = [];
    timers.push(setTimeout(async () => {
      timers.push(setTimeout(() => setSlow(true), SLOW));
      try {
        setAnswer({ body, found: await getJson("/attribution/estimate", { method: "POST", body: request, signal: asking.signal }) });
        setWarm(request.model);
      } catch (problem) {
        if (!asking.signal.aborted) setAnswer({ body, problem });
      }
    }, PAUSE));
    return () => {
      asking.abort();
      timers.forEach(clearTimeout);
      setSlow(false);
    };
  }, [body]);
  const { found, problem } = answer.body === body ? answer : {};
  const isWaiting = body && answer.body !== body;
  const words = isWaiting
    ? (isSlow && isCold && warm !== request.model ? "loading the model…" : "estimating…")
    : found ? sentence(found) : problem && !QUIET.has(problem.status) ? problem.message : "";
  return html`
    <div class="estimate" role="status">${words}
      ${found?.warnings.length > 0 && html`<ul>${found.warnings.map((warning) => html`<li key=${warning}>${warning}</li>`)}</ul>`}
    </div>
  `;
}

function sentence({ seconds, is_upper_bound, forward_passes, backward_passes, peak_memory_bytes, device, fits }) {
  const passes = `${(forward_passes + backward_passes).toLocaleString("en")} passes`;
  const time = seconds.total < 1 ? duration(seconds.total) : `${is_upper_bound ? "at most about" : "about"} ${duration(seconds.total)}`;
  return `${time} on ${device}: ${passes}, ${megabytes(peak_memory_bytes)}${fits ? "" : ", which does not fit in memory"}`;
}
