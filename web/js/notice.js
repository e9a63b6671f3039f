// A problem, told kindly, and for as long as it is true.
import { onAnswer } from "./api.js";
import { html, useEffect, useState } from "./preact.js";

/** A problem and how to set it. That the server did not answer is forgotten when it does; then `again` is called. */
export function useProblem(again) {
  const [problem, setProblem] = useState(null);
  useEffect(() => {
    if (!problem?.isSilence) return;
    return onAnswer(() => {
      setProblem(null);
      again?.();
    });
  }, [problem]);
  return [problem, setProblem];
}

export function Notice({ problem, children }) {
  return html`
    <div class="notice" role="alert">
      <strong>${problem.title ?? "Something went wrong"}</strong>
      <p>${problem.message ?? problem.detail}</p>
      ${children}
    </div>
  `;
}
