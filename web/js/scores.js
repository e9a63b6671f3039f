// A sequence of a result as a table of scores, and how scores are scaled to colours and written.

/**
 * Rows are attributed tokens, columns are generated ones: `scores[row][column]`, null where there is none.
 *
 * A decoder-only model's prompt is part of its target, so `source` has no rows then.
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

const depthOf = (value) => (Array.isArray(value) ? 1 + depthOf(value[0]) : 0);

/** The largest magnitude among these scores, and whether any is negative. */
export function scaleOf(values) {
  let largest = 0;
  let isSigned = false;
  for (const value of values) {
    if (value === null || value === undefined) continue;
    largest = Math.max(largest, Math.abs(value));
    isSigned ||= value < 0;
  }
  return { largest, isSigned };
}

/** The class and style that colour a score; the colours themselves are the style sheet's. */
export function heat(value, { largest, isSigned }) {
  if (value === null || value === undefined) return { class: "heat none" };
  const weight = largest ? Math.abs(value) / largest : 0;
  return { class: `heat ${isSigned ? (value < 0 ? "negative" : "positive") : "plain"}`, style: { "--w": weight.toFixed(4) } };
}

/** A score in three digits. */
export function short(value) {
  if (value === null || value === undefined) return "";
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size >= 1000 || size < 0.0005) return value.toExponential(1).replace("e+", "e");
  return value.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : 3);
}
