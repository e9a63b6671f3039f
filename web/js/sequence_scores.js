// Scores of a sequence beside the attributions, such as the self-attention of an encoder: a table each.
import { Fold } from "./fold.js";
import { Matrix } from "./matrix.js";
import { html } from "./preact.js";
import { scaleOf } from "./scores.js";

export function SequenceScores({ sequence, onSay }) {
  const tables = Object.entries(sequence.sequence_scores ?? {}).map(([name, scores]) => [name, tableOf(name, scores, sequence)]);
  return tables.map(([name, table]) => table && html`
    <${Fold} key=${name} className="all" summary=${name}>
      ${() => html`<${Matrix} table=${table} scale=${scaleOf(table.scores.flat())} selection=${{}} onSay=${onSay} />`}
    <//>`);
}

/**
 * Rows are attended to, columns attend: an encoder's source tokens each other, a decoder's steps what it was given before.
 * Other shapes are not shown: nothing tells whose they are.
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
