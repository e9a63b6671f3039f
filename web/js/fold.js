// Something folded away, which is made only once it is opened.
import { html, useState } from "./preact.js";

export function Fold({ className, summary, children: make }) {
  const [isOpen, setOpen] = useState(false);
  return html`
    <details class=${className} onToggle=${(event) => setOpen(event.target.open)}>
      <summary>${summary}</summary>
      ${isOpen && make()}
    </details>
  `;
}
