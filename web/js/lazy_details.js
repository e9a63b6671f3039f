// A `<details>` element whose content is drawn only while it is open.
import { html, useState } from "./preact.js";

export function LazyDetails({ className, summary, children: draw }) {
  const [isOpen, setOpen] = useState(false);
  return html`
    <details class=${className} onToggle=${(event) => setOpen(event.target.open)}>
      <summary>${summary}</summary>
      ${isOpen && draw()}
    </details>
  `;
}
