// A problem, told kindly, and for as long as it is true.
import { onAnswer } from "./api.js";
import { html, useEffect, useState } from "./preact.js";

/**
 * The problem of a read, and how to set it. That the server did not answer is forgotten when it does; then `again`
 * repeats the read. What a person did and nobody answered is not for here: it is not done by itself, so it stays said.
 */
export function useReadProblem(again) {
  const [problem, setProblem] = useState(null);
  useEffect(() => {
    if (!problem?.isSilence) return;
    return onAnswer(() => {
      setProblem(null);
      again();
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
