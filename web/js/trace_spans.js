// The spans of a trace as the server reads them in a query: `19:20`, `after:</think>`, `text:milk`.
import { textOf } from "./shown_tokens.js";

const OPEN = "<think>";
const CLOSE = "</think>";

const textOfAll = (tokens) => tokens.map((token) => (token.continues ? "" : textOf(token))).join("");

/** The tokens [first, last] of the generated text as a span. */
export const positions = (first, last = first) => `${first}:${last + 1}`;

/**
 * What to trace before the reader says so: of a text with a chain of thought, what stands behind it, through it. Else the
 * chosen token, or the last one that is no special token, through all that was generated before.
 */
export function defaultSpans({ target, attr_pos_start: start, attr_pos_end: end }, { column } = {}) {
  const generated = target.slice(start, end);
  const text = textOfAll(generated);
  if (column === undefined && text.includes(CLOSE) && text.split(CLOSE).at(-1).trim()) {
    const isOpened = text.includes(OPEN) || textOfAll(target.slice(0, start)).includes(OPEN);
    return { trace: `after:${CLOSE}`, through: isOpened ? `between:${OPEN},${CLOSE}` : "" };
  }
  const last = generated.findLastIndex((token) => !token.special);
  return { trace: positions(start + (column ?? Math.max(last, 0))), through: "" };
}

/**
 * The generated tokens that are selected on the page as text, else the one that is chosen (`column`); undefined for
 * neither.
 */
export function selectedSpan({ attr_pos_start: start }, { column } = {}) {
  const selected = getSelection();
  const columns = selected.isCollapsed ? [] : [...document.querySelectorAll(".reading [data-column]")]
    .filter((element) => selected.containsNode(element, true)).map((element) => Number(element.dataset.column));
  if (columns.length) return positions(start + columns[0], start + columns.at(-1));
  return column === undefined ? undefined : positions(start + column);
}
