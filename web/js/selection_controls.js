// Steps through what can be selected: the whole answer, its strongest token, the token before and after.
import { html } from "./preact.js";
import { areSpans, isWhole, strongestColumn } from "./selection.js";

/** The keys that do the same while the focus is in the result's text. */
export const SELECTION_KEYS = { a: "whole", s: "strongest", "[": "previous", "]": "next" };

export function stepTo(name, table, { column }) {
  if (name === "whole") return {};
  if (name === "strongest") return { column: strongestColumn(table) };
  const step = name === "next" ? 1 : -1;
  const from = column ?? (step > 0 ? -1 : table.columns.length);
  return { column: Math.min(Math.max(from + step, 0), table.columns.length - 1) };
}

export function SelectionControls({ table, selection, onSelect }) {
  const go = (name) => () => onSelect(stepTo(name, table, selection));
  const isAt = (column) => selection.column === column;
  const [kind, generated] = areSpans(table) ? ["span", "span"] : ["token", "generated token"];
  return html`
    <div class="selection-controls" role="group" aria-label="Selection">
      ${!areSpans(table) && html`
        <button type="button" aria-pressed=${isWhole(selection)} aria-keyshortcuts="a" title="a, in the text" onClick=${go("whole")}>Whole answer</button>`}
      <button type="button" aria-pressed=${isAt(strongestColumn(table))} aria-keyshortcuts="s" title="s, in the text" onClick=${go("strongest")}>Strongest ${kind}</button>
      <button type="button" class="quiet" aria-label=${`Previous ${generated}`} aria-keyshortcuts="[" title="[, in the text"
        disabled=${isAt(0)} onClick=${go("previous")}>‹</button>
      <button type="button" class="quiet" aria-label=${`Next ${generated}`} aria-keyshortcuts="]" title="], in the text"
        disabled=${isAt(table.columns.length - 1)} onClick=${go("next")}>›</button>
    </div>
  `;
}
