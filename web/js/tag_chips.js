// The tags of a job, each as a chip.
import { html } from "./preact.js";

export function TagChips({ tags = {} }) {
  const all = Object.entries(tags);
  return all.length > 0 && html`
    <span class="tags">${all.map(([name, value]) => html`<span class="tag" key=${name} dir="auto">${name}${value && `: ${value}`}</span>`)}</span>`;
}
