// Further scores of a sequence, such as the self-attention of an encoder: one table for each.
import { LazyDetails } from "./lazy_details.js";
import { Matrix } from "./matrix.js";
import { scaleOf } from "./number_scale.js";
import { html } from "./preact.js";

export function SequenceScores({ sequence, onHover }) {
  const tables = Object.entries(sequence.sequence_scores ?? {}).map(([name, scores]) => [name, tableOf(name, scores, sequence)]);
  return tables.map(([name, table]) => table && html`
    <${LazyDetails} key=${name} className="all" summary=${name}>
      ${() => html`<${Matrix} table=${table} scale=${scaleOf(table.scores.flat())} selection=${{}} onHover=${onHover} />`}
    <//>`);
}

/**
 * Rows are the tokens attended to; columns are the attending ones: source tokens in an encoder, generated tokens in a
 * decoder. False for scores of another shape, because it is unknown which tokens they belong to.
 */
function tableOf(name, scores, { source, target, attr_pos_start: start, attr_pos_end: end }) {
  const isOfSource = name.startsWith("encoder");
  const [rows, columns] = isOfSource ? [source, source] : [target.slice(0, end - 1), target.slice(start, end)];
  const fits = scores.length === rows.length && scores.every((row) => row.length === columns.length && !row.some(Array.isArray));
  return fits && {
    rows: rows.map((token, index) => ({ side: isOfSource ? "source" : "target", index, token, scores: scores[index] })),
    columns: columns.map((token, position) => ({ token, position })),
    scores,
    depth: 1,
  };
}
