// What is selected in a sequence: a generated token (`{column}`), an attributed token (`{row}`), or the whole answer
// (`{}`), and the scores that belong to it.
import { scaleOf } from "./number_scale.js";
import { isOwn } from "./score_table.js";
import { textOf } from "./shown_tokens.js";

/**
 * The selection in the address: `pos` is a generated token, `row` an attributed one. `at` is a place in the text, such
 * as `target120`: after a merge of tokens it finds the token that has the chosen one.
 */
export function selectionOf({ pos, row, at }, table) {
  const within = (text, length) => (/^\d+$/.test(text ?? "") && Number(text) < length ? Number(text) : undefined);
  const chosen = within(row, table.rows.length);
  if (chosen !== undefined) return { row: chosen };
  const column = within(pos, table.columns.length);
  if (column !== undefined) return { column };
  if (table.columns.length === 1) return { column: 0 };
  const found = at ? selectionAt(at, table) : {};
  return isWhole(found) && areSpans(table) ? { column: 0 } : found;
}

/** Whether the columns are spans, which may overlap: they are no parts of a whole. */
export const areSpans = (table) => table.columns.length > 0 && table.columns.every(({ token }) => token.span);

export const selectionParameters = ({ column, row }) => ({ row: row === undefined ? "" : String(row), pos: column === undefined ? "" : String(column), at: "" });

export const isWhole = ({ column, row }) => column === undefined && row === undefined;

/** The place in the text of a selection, for `at`. */
export function placeOf({ column, row }, table) {
  if (row !== undefined) return `${table.rows[row].side}${offsets(table.rows, table.rows[row].side)[row]}`;
  if (column !== undefined) return `generated${offsets(table.columns)[column]}`;
  return "";
}

function selectionAt(place, table) {
  const [, side, digits] = /^([a-z]+)(\d+)$/.exec(place) ?? [];
  if (!side) return {};
  const tokens = side === "generated" ? table.columns : table.rows;
  const begins = offsets(tokens, side === "generated" ? undefined : side);
  const found = tokens.findLastIndex((_, index) => begins[index] !== undefined && begins[index] <= Number(digits));
  if (found < 0) return {};
  return side === "generated" ? { column: found } : { row: found };
}

/** Where each token begins in the text of its side, in characters; undefined for tokens of another side. */
function offsets(tokens, side) {
  let length = 0;
  return tokens.map(({ token, side: own }) => {
    if (own !== side) return undefined;
    const begin = length;
    length += token.continues ? 0 : textOf(token).length;
    return begin;
  });
}

const isGenerated = (table, { side, index }) => side === "target" && index >= (table.columns[0]?.position ?? Infinity);

/**
 * The scores that colour the tokens: of each row for a generated token or the whole answer, of each column for an
 * attributed token. Those for the whole answer are sums over its tokens, of the rows that are not part of it. A token has
 * none for itself.
 */
export function scoresFor(table, { column, row }) {
  const unlessOwn = (value, row, column) => (isOwn(table, row, column) ? undefined : value);
  if (column !== undefined) return { of: "rows", values: table.scores.map((each, index) => unlessOwn(each[column], index, column)) };
  if (row !== undefined) return { of: "columns", values: (table.scores[row] ?? []).map((value, index) => unlessOwn(value, row, index)) };
  return { of: "rows", values: table.rows.map((each) => (isGenerated(table, each) ? undefined : sum(each.scores))) };
}

function sum(values) {
  const known = values.filter((value) => value !== null && value !== undefined);
  return known.length ? known.reduce((total, value) => total + value, 0) : null;
}

/** The scale of a selection's colours: up to its own largest score, but signed where the whole table is. */
export const scaleOfSelection = (table, scale, selection, isHidden = () => false) => ({
  ...scaleOf(scoresFor(table, selection).values.filter((_, index) => !isHidden(index))),
  isSigned: scale.isSigned,
});

/** The largest scores for a selection, each `{token, value, row}` or `{token, value, column}`; never a token's own. */
export function strongest(table, selection, count, isHidden = () => false) {
  const { of, values } = scoresFor(table, selection);
  const tokens = of === "rows" ? table.rows : table.columns;
  return values
    .map((value, index) => ({ token: tokens[index].token, value, [of === "rows" ? "row" : "column"]: index }))
    .filter(({ value, row }) => value !== null && value !== undefined && !(row !== undefined && isHidden(row)))
    .sort((a, b) => Math.abs(b.value) - Math.abs(a.value))
    .slice(0, count);
}

/** The generated token that has the largest score of a token before it. */
export function strongestColumn(table) {
  if (!strongestColumns.has(table)) {
    let best = { size: -1, column: 0 };
    table.scores.forEach((scores, row) => scores.forEach((value, column) => {
      if (Math.abs(value ?? 0) > best.size && !isOwn(table, row, column)) best = { size: Math.abs(value ?? 0), column };
    }));
    strongestColumns.set(table, best.column);
  }
  return strongestColumns.get(table);
}

const strongestColumns = new WeakMap(); // by table
