// Results of several jobs side by side. A token that is selected in one is selected in all that have it.
import { html, useMemo, useState } from "./preact.js";
import { scaleOf } from "./number_scale.js";
import { jobHash } from "./route.js";
import { scaledScores, tableOf } from "./score_table.js";
import { isWhole, selectionOf, selectionParameters } from "./selection.js";
import { SelectionControls } from "./selection_controls.js";
import { activeScale, Legend } from "./sequence_view.js";
import { textOf } from "./shown_tokens.js";
import { TokenView } from "./token_view.js";

const NOTHING = { column: -1 }; // a selection of no token

/** In the address, `pos` or `row` is the selected token, and `of` the number of the result in which it was selected. */
export function CompareRuns({ runs, index, parameters, onShow }) {
  const [hovered, setHovered] = useState("");
  const tables = useMemo(() => runs.map(({ sequences }) => sequences[index] && tableOf(sequences[index])), [runs, index]);
  const from = tables[Number(parameters.of)] ? Number(parameters.of) : tables.findIndex(Boolean);
  const chosen = tables[from] ? selectionOf(parameters, tables[from]) : {};
  const select = (at) => (selection) => onShow({ ...selectionParameters(selection), of: at ? String(at) : "" });
  return html`
    <section class="compare-results" aria-labelledby="compare-results">
      <div class="bar-of-numbers">
        <h2 id="compare-results">Results</h2>
        ${tables[from]?.depth === 1 && html`<${SelectionControls} table=${tables[from]} selection=${chosen} onSelect=${select(from)} />`}
        <p class="hovered-score" aria-hidden="true">${hovered || "Point at a token for its score. Select one, and it is selected in all."}</p>
      </div>
      <div class="compare-runs">
        ${runs.map((run, at) => html`
          <${Run} key=${at} run=${run} table=${tables[at]} sequence=${run.sequences[index]} selection=${at === from ? chosen : followed(chosen, tables[from], tables[at])}
            onSelect=${select(at)} onHover=${(text) => setHovered(`${run.name}: ${text}`)} />`)}
      </div>
    </section>
  `;
}

function Run({ run, table, sequence, selection, onSelect, onHover }) {
  const isFlat = table?.rows.length > 0 && table.depth === 1;
  const scale = useMemo(() => (table ? scaleOf(scaledScores(table)) : null), [table]);
  return html`
    <section class="column" aria-label=${run.name}>
      <h3><a href=${jobHash(run.job.job_id)} dir="auto">${run.name}</a></h3>
      ${!table && html`<p class="muted">This job has no text of this number.</p>`}
      ${table && !isFlat && html`<p class="muted">${table.rows.length ? "These scores have more dimensions than two." : "This method gives no attributions."}</p>`}
      ${isFlat && !selection && html`<p class="muted" role="status">The selected token is not in this text.</p>`}
      ${isFlat && html`
        ${selection && html`<${Legend} ...${activeScale({}, table, scale, selection)} />`}
        <${TokenView} sequence=${sequence} table=${table} scale=${activeScale({}, table, scale, selection ?? NOTHING).scale}
          selection=${selection ?? NOTHING} onSelect=${onSelect} onHover=${onHover} />`}
    </section>
  `;
}

/** The selection of the same token in another result; undefined where it has none. */
export function followed({ column, row }, from, to) {
  if (!from || !to) return undefined;
  if (isWhole({ column, row })) return {};
  const texts = (entries) => entries.map(({ side = "", token }) => side + textOf(token).trim());
  const at = column !== undefined ? counterpart(texts(from.columns), column, texts(to.columns)) : counterpart(texts(from.rows), row, texts(to.rows));
  return at === undefined ? undefined : column !== undefined ? { column: at } : { row: at };
}

/** The place in `others` of the text at `place`: the same place if it has the same text, else the nearest that has. */
function counterpart(texts, place, others) {
  const places = others.flatMap((text, at) => (text === texts[place] ? [at] : []));
  return places.sort((a, b) => Math.abs(a - place) - Math.abs(b - place))[0];
}
