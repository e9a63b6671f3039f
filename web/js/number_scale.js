// How scores are scaled to colours and written as numbers.
//
// A colour shows a score's share of the largest absolute score, warm for more and blue for less, as in every view
// (attribution_reading/palette.py, from which palette.css comes; tests/test_page.py compares the page with the heatmap view). Numbers are written differently: the page writes each with its own power of ten, whereas the
// heatmaps of the server and the client write one power of ten for a whole table
// (attribution_reading/number_scale.py).

/** The largest absolute value of these scores, and whether any is negative. Missing scores (null) are ignored. */
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

const [BLACK_FROM, BLACK_UNTIL] = [0.545, 0.75]; // shares of the largest score, as in the palette

/** The class and style that colour a score: `--w` is its share of the largest one. The style sheet has the colours. */
export function heat(value, { largest }) {
  if (value === null || value === undefined) return { class: "heat none" };
  const weight = largest ? Math.min(1, Math.abs(value) / largest) : 0;
  const ink = weight < BLACK_FROM ? "low" : weight > BLACK_UNTIL ? "high" : "middle";
  return { class: `heat ${value < 0 ? "less" : "more"} ${ink}`, style: { "--w": weight.toFixed(4) } };
}

/** A score in about three digits, in scientific notation where it is very large or small. */
export function short(value) {
  if (value === null || value === undefined) return "";
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size >= 1000 || size < 0.0005) return value.toExponential(1).replace("e+", "e");
  return value.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : 3);
}
