// A button that asks the server for a job's time, passes and memory before the job is submitted.
import { getJson } from "./api.js";
import { duration } from "./job.js";
import { html, useEffect, useState } from "./preact.js";

const megabytes = (bytes) => `${Math.max(1, Math.round(bytes / 2 ** 20)).toLocaleString()} MB`;

/** The button and the estimate, which is cleared when the request changes. The form shows problems. */
export function Estimate({ request, onProblem }) {
  const [found, setFound] = useState(null);
  const body = JSON.stringify(request);
  useEffect(() => setFound(null), [body]);
  const ask = async () => {
    onProblem(null);
    try {
      setFound(await getJson("/attribution/estimate", { method: "POST", body: request }));
    } catch (problem) {
      onProblem(problem);
    }
  };
  return html`
    <button type="button" onClick=${ask}>Estimate</button>
    <span class="estimate" role="status">${found && sentence(found)}</span>
  `;
}

function sentence({ seconds, is_upper_bound, forward_passes, backward_passes, peak_memory_bytes, device, fits }) {
  const passes = `${(forward_passes + backward_passes).toLocaleString()} passes`;
  const time = seconds.total < 1 ? duration(seconds.total) : `${is_upper_bound ? "at most about" : "about"} ${duration(seconds.total)}`;
  return `${time} on ${device}: ${passes}, ${megabytes(peak_memory_bytes)}${fits ? "" : ", which does not fit in memory"}`;
}
