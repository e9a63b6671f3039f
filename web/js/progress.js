// The progress of a job, as a bar and in words.
import { stateOf } from "./job.js";
import { html } from "./preact.js";

export function ProgressBar({ job }) {
  return html`
    <span class="progress">
      <progress max="1" value=${job.progress.fraction} aria-label="Progress"></progress>
      <span class="muted">${stateOf(job)}</span>
    </span>
  `;
}
