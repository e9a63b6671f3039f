// Results of several jobs side by side. A token that is selected in one is selected in all that have it.
import { html, useMemo, useState } from "./preact.js";
import { scaleOf } from "./number_scale.js";
import { jobHash } from "./route.js";
import { tableOf } from "./score_table.js";
import { Legend } from "./sequence_view.js";
import { textOf } from "./shown_tokens.js";
import { TokenView } from "./token_view.js";

/** In the address, `pos` or `row` is the selected token, and `of` the number of the result in which it was selected. */
export function CompareRuns({ runs, index, parameters, onShow }) {
  const [hovered, setHovered] = useState("");
  const tables = useMemo(() => runs.map(({ sequences }) => sequences[index] && tableOf(sequences[index])), [runs, index]);
  const from = tables[Number(parameters.of)] ? Number(parameters.of) : tables.findIndex(Boolean);
  const chosen = selectionIn(parameters, tables[from]);
  const select = (at) => ({ column, row }) =>
    onShow({ of: at ? String(at) : "", pos: row === undefined ? String(column) : "", row: row === undefined ? "" : String(row) });
  return html`
    <section class="compare-results" aria-labelledby="compare-results">
      <div class="bar-of-numbers">
        <h2 id="compare-results">Results</h2>
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
  return html`
    <section class="column" aria-label=${run.name}>
      <h3><a href=${jobHash(run.job.job_id)} dir="auto">${run.name}</a></h3>
      ${!table && html`<p class="muted">This job has no text of this number.</p>`}
      ${table && !isFlat && html`<p class="muted">${table.rows.length ? "These scores have more dimensions than two." : "This method gives no attributions."}</p>`}
      ${isFlat && !selection && html`<p class="muted" role="status">The selected token is not in this text.</p>`}
      ${isFlat && html`
        ${selection && html`<${Legend} scale=${scaleOfToken(table, selection)} of="this token" />`}
        <${TokenView} sequence=${sequence} table=${table} scale=${scaleOfToken(table, selection ?? {})} selection=${selection ?? {}} onSelect=${onSelect} onHover=${onHover} />`}
    </section>
  `;
}

/** The scale of the scores that are shown, signed where any score of the result is. */
function scaleOfToken(table, { column, row }) {
  const shown = column !== undefined ? table.scores.map((scores) => scores[column]) : (table.scores[row] ?? []);
  return { ...scaleOf(shown), isSigned: scaleOf(table.scores.flat()).isSigned };
}

function selectionIn({ pos, row }, table) {
  const within = (text, length) => (/^\d+$/.test(text ?? "") && Number(text) < length ? Number(text) : undefined);
  const chosen = within(row, table?.rows.length ?? 0);
  return chosen !== undefined ? { row: chosen } : { column: within(pos, table?.columns.length ?? 0) ?? strongest(table) };
}

/** The generated token with the largest score, which shows most. */
function strongest(table) {
  const sizes = (table?.columns ?? []).map((_, column) => scaleOf(table.scores.map((scores) => scores[column])).largest);
  return Math.max(0, sizes.indexOf(Math.max(...sizes)));
}

/** The selection of the same token in another result; undefined where it has none. */
export function followed({ column, row }, from, to) {
  if (!from || !to) return undefined;
  const texts = (entries) => entries.map(({ side = "", token }) => side + textOf(token).trim());
  const at = column !== undefined ? counterpart(texts(from.columns), column, texts(to.columns)) : counterpart(texts(from.rows), row, texts(to.rows));
  return at === undefined ? undefined : column !== undefined ? { column: at } : { row: at };
}

/** The place in `others` of the text at `place`: the same place if it has the same text, else the nearest that has. */
function counterpart(texts, place, others) {
  const places = others.flatMap((text, at) => (text === texts[place] ? [at] : []));
  return places.sort((a, b) => Math.abs(a - place) - Math.abs(b - place))[0];
}
