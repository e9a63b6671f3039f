// Shows a problem. The problem of a failed read disappears when the server answers again.
import { onAnswer } from "./api.js";
import { html, useEffect, useState } from "./preact.js";

/**
 * State that holds the problem of a read, and its setter. When the server answers again after it did not answer, the
 * problem is cleared and `retry` repeats the read. Do not use it for actions such as Cancel: they are not repeated by
 * themselves, so their problem must stay visible.
 */
export function useReadProblem(retry) {
  const [problem, setProblem] = useState(null);
  useEffect(() => {
    if (!problem?.isUnanswered) return;
    return onAnswer(() => {
      setProblem(null);
      retry();
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
