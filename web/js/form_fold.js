// A folded group of the form, whose summary says what is set in it.
import { parse } from "./field_specs.js";
import { html } from "./preact.js";

export function Fold({ title, state, className = "", isOpen = false, children }) {
  return html`
    <details class=${`fold ${className}`} open=${isOpen}>
      <summary>${title}${state && html` <span class="state">${state}</span>`}</summary>
      <div class="fold-content">${children}</div>
    </details>
  `;
}

/** How many of these fields have another value than their default: "2 set", or nothing. */
export function setAmong(specs, values) {
  const count = specs.filter((spec) => parse(spec, values[spec.pointer]) !== undefined).length;
  return count ? `${count} set` : "";
}
