// The table of all scores (attributed tokens by generated tokens) and the table of step scores.
import { arrowKeyNavigation } from "./arrow_key_navigation.js";
import { heat, scaleOf, short } from "./number_scale.js";
import { html, useMemo, useState } from "./preact.js";
import { isOwn } from "./score_table.js";
import { directionOf, quoted } from "./shown_tokens.js";
import { TokenText } from "./token_text.js";
import { sentence } from "./token_view.js";

const MAX_CELLS = 20_000; // more would make the browser pause

export function Matrix({ table, scale, selection, onSelect, onHover }) {
  const [isAsked, setAsked] = useState(false);
  const cells = table.rows.length * table.columns.length;
  if (cells > MAX_CELLS && !isAsked) {
    return html`<p>The table has ${cells.toLocaleString()} cells. <button onClick=${() => setAsked(true)}>Show it anyway</button></p>`;
  }
  const hover = ({ target }) => {
    const cell = target.closest("td[data-row]");
    if (!cell) return;
    const { row, column } = cell.dataset;
    onHover(sentence(table.rows[row].token, table.columns[column].token, table.scores[row][column]));
  };
  const body = useMemo(() => table.rows.map((row, index) => html`
    <tr key=${index}>
      <th scope="row" class=${row.side}><${TokenText} token=${row.token} /></th>
      ${row.scores.map((value, column) => {
        const colour = isOwn(table, index, column) ? { class: "own" } : heat(value, scale);
        return html`<td key=${column} role="gridcell" class=${colour.class} style=${colour.style} tabindex=${index || column ? -1 : 0}
          data-row=${index} data-column=${column} data-value=${value ?? undefined}>${short(value)}</td>`;
      })}
    </tr>`), [table, scale]);
  return html`
    <div class="scroll" role="region" aria-label="Table of scores" tabindex="0">
      <table class="matrix" role="grid" aria-label="Scores of each attributed token (rows) for each generated token (columns)"
        dir=${directionOf(table.columns.map(({ token }) => token))}
        onKeyDown=${arrowKeyNavigation("td[data-row]")} onPointerOver=${hover} onFocusIn=${hover}>
        <thead>
          <tr>
            <th scope="col"><span class="hidden">Attributed token</span></th>
            ${table.columns.map(({ token }, column) => html`
              <th scope="col" key=${column}>
                ${onSelect
                  ? html`<button type="button" class="token" tabindex="-1" aria-pressed=${selection.column === column}
                      onClick=${() => onSelect({ column })}><${TokenText} token=${token} /></button>`
                  : html`<${TokenText} token=${token} />`}
              </th>`)}
          </tr>
        </thead>
        <tbody>${body}</tbody>
      </table>
    </div>
  `;
}

export function StepScores({ sequence, columns, onHover }) {
  const entries = Object.entries(sequence.step_scores ?? {});
  if (!entries.length) return null;
  return html`
    <section class="step-scores">
      <h3>Step scores</h3>
      <div class="scroll" role="region" aria-label="Step scores" tabindex="0">
        <table class="matrix" dir=${directionOf(columns.map(({ token }) => token))}>
          <thead>
            <tr>
              <th scope="col"><span class="hidden">Step score</span></th>
              ${columns.map(({ token }) => html`<th scope="col"><${TokenText} token=${token} /></th>`)}
            </tr>
          </thead>
          <tbody>
            ${entries.map(([name, values]) => html`<${StepScore} name=${name} values=${values} columns=${columns} onHover=${onHover} />`)}
          </tbody>
        </table>
      </div>
    </section>
  `;
}

function StepScore({ name, values, columns, onHover }) {
  const { largest } = scaleOf(values);
  return html`
    <tr>
      <th scope="row" class="name">${name}</th>
      ${values.map((value, column) => html`
        <td class="bar" data-value=${value ?? undefined}
          style=${{ "--w": largest && value !== null ? (Math.abs(value) / largest).toFixed(4) : 0 }}
          onPointerEnter=${() => onHover(`${name} of ${quoted(columns[column]?.token ?? { token: "" })}: ${value}`)}>${short(value)}</td>`)}
    </tr>
  `;
}
