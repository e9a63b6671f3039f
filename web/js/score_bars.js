// The strongest scores for a selection as a list of bars. A click on one selects its token.
import { scaleOf, short } from "./number_scale.js";
import { html, useState } from "./preact.js";
import { isWhole, strongest } from "./selection.js";
import { quoted, textOf } from "./shown_tokens.js";
import { TokenText } from "./token_text.js";

const FEW = 6;
const MANY = 40;

export function ScoreBars({ table, selection, isHidden, onSelect }) {
  const [isLong, setLong] = useState(false);
  const found = strongest(table, selection, MANY + 1, isHidden);
  if (!found.length) return null;
  const { largest } = scaleOf(found.map(({ value }) => value));
  return html`
    <section class="strongest" aria-live="polite">
      <h3>${headingOf(table, selection)}</h3>
      <ol class="bars">
        ${found.slice(0, isLong ? MANY : FEW).map(({ token, value, row, column }) => html`
          <li key=${`${row} ${column}`}>
            <button type="button" class="bar-token" title=${textOf(token)} onClick=${() => onSelect(row === undefined ? { column } : columnOf(table, row))}>
              <${TokenText} token=${token} /></button>
            <span class="bar-line ${value < 0 ? "less" : "more"}" style=${{ "--w": largest ? (Math.abs(value) / largest).toFixed(4) : 0 }}></span>
            <span class="number" data-value=${value}>${short(value)}</span>
          </li>`)}
      </ol>
      ${found.length > FEW && html`
        <button type="button" class="quiet" onClick=${() => setLong(!isLong)}>${isLong ? "Fewer" : "More"}</button>`}
    </section>
  `;
}

/** An attributed token that was generated is selected as a generated one. */
function columnOf(table, row) {
  const { side, index } = table.rows[row];
  const column = side === "target" ? index - table.columns[0].position : -1;
  return column >= 0 ? { column } : { row };
}

function headingOf(table, selection) {
  if (isWhole(selection)) return "The whole answer depended most on";
  return selection.column !== undefined ? `${quoted(table.columns[selection.column].token)} depended most on`
    : `${quoted(table.rows[selection.row].token)} contributed most to`;
}
