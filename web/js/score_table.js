// A sequence of a result as a table of scores: attributed tokens in rows, generated tokens in columns.

/**
 * `{rows, columns, scores, depth}`. `scores[row][column]` is null where Inseq has no score; each is nested `depth - 1`
 * times further where the result is not fully aggregated.
 *
 * `source` has no rows for a decoder-only model: its prompt is part of its target.
 */
export function tableOf(sequence) {
  const { source, target, source_attributions, target_attributions, attr_pos_start: start, attr_pos_end: end } = sequence;
  const rowsOf = (side, tokens, scores) =>
    (scores ?? []).map((row, index) => ({ side, index, token: tokens[index], scores: row }));
  const rows = [...rowsOf("source", source, source_attributions), ...rowsOf("target", target, target_attributions)];
  return {
    rows,
    columns: target.slice(start, end).map((token, index) => ({ token, position: start + index })),
    scores: rows.map((row) => row.scores),
    depth: depthOf(rows[0]?.scores),
  };
}

/**
 * Whether a row is the very token of a column. Tokens do not depend on themselves; a word of several tokens, or another
 * unit of text, has the score of its later tokens for its earlier ones there.
 */
export const isOwn = (table, row, column) => {
  const { side, index } = table.rows[row] ?? {};
  return side === "target" && index === table.columns[column]?.position;
};

/** All scores that colours are scaled to, without those of `isHidden` rows and of tokens for themselves. */
export const scaledScores = (table, isHidden = () => false) =>
  table.depth === 1 ? table.scores.flatMap((scores, row) => (isHidden(row) ? [] : scores.filter((_, column) => !isOwn(table, row, column)))) : [];

const depthOf = (value) => (Array.isArray(value) ? 1 + depthOf(value[0]) : 0);
