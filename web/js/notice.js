// A problem, told kindly.
import { html } from "./preact.js";

export function Notice({ problem, children }) {
  return html`
    <div class="notice" role="alert">
      <strong>${problem.title ?? "Something went wrong"}</strong>
      <p>${problem.message ?? problem.detail}</p>
      ${children}
    </div>
  `;
}
