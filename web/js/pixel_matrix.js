// A large table of scores as pixels, with the numbers of the row and column under the pointer or the keyboard's cell.
import { html, useEffect, useRef, useState } from "./preact.js";
import { short } from "./number_scale.js";
import { isOwn } from "./score_table.js";
import { sentence } from "./token_view.js";

const [LEAST, MOST] = [3, 14]; // CSS pixels of a cell
const LARGEST_HEIGHT = 900; // CSS pixels
const STEPS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

export function PixelMatrix({ table, scale, selection, onSelect, onHover, onNumbers }) {
  const [rows, columns] = [table.rows.length, table.columns.length];
  const canvas = useRef(null);
  const [cell, setCell] = useState(null); // `[row, column]` of the keyboard
  const height = Math.max(LEAST, Math.min(MOST, Math.floor(LARGEST_HEIGHT / rows)));
  const width = Math.max(LEAST, Math.min(MOST, Math.floor(1200 / columns)));
  const scheme = useColorScheme();
  useEffect(() => draw(canvas.current, table, scale, { width, height }), [table, scale, width, height, scheme]);
  const at = ({ offsetX, offsetY }) => [clamp(Math.floor(offsetY / height), rows), clamp(Math.floor(offsetX / width), columns)];
  const tell = ([row, column]) => onHover(sentence(table.rows[row].token, table.columns[column].token, table.scores[row][column]));
  const move = (event) => {
    const step = STEPS[event.key];
    if (event.key === "Enter" && cell) onSelect({ column: cell[1] });
    if (!step) return;
    event.preventDefault();
    event.stopPropagation();
    const next = cell ? [clamp(cell[0] + step[0], rows), clamp(cell[1] + step[1], columns)] : [0, selection.column ?? 0];
    setCell(next);
    tell(next);
  };
  const marked = cell ?? (selection.column !== undefined ? [null, selection.column] : [selection.row ?? null, null]);
  return html`
    <p class="help muted">
      ${rows.toLocaleString()} attributed tokens (rows) by ${columns.toLocaleString()} generated tokens (columns). Point at a cell for its score;
      a click selects its generated token. <button type="button" class="link" onClick=${onNumbers}>Show the numbers</button>
    </p>
    <div class="scroll" role="region" aria-label="Table of scores as pixels" tabindex="0" onKeyDown=${move}>
      <div class="pixels" style=${{ width: `${columns * width}px`, height: `${rows * height}px` }}>
        <canvas ref=${canvas} role="img" aria-label=${`Scores of ${rows} attributed tokens for ${columns} generated tokens`}
          onPointerMove=${(event) => tell(at(event))} onClick=${(event) => onSelect({ column: at(event)[1] })}></canvas>
        ${marked[1] !== null && html`<span class="mark" style=${{ left: `${marked[1] * width}px`, width: `${width}px`, top: 0, bottom: 0 }}></span>`}
        ${marked[0] !== null && html`<span class="mark" style=${{ top: `${marked[0] * height}px`, height: `${height}px`, left: 0, right: 0 }}></span>`}
      </div>
    </div>
    ${cell && html`<p class="hidden" role="status">${short(table.scores[cell[0]][cell[1]]) || "no score"}</p>`}
  `;
}

const clamp = (index, length) => Math.min(Math.max(index, 0), length - 1);

/** Colour each cell as the style sheet colours tokens: its own style is asked for the ends of the scale. */
function draw(canvas, table, { largest }, { width, height }) {
  const style = getComputedStyle(canvas);
  const ratio = window.devicePixelRatio || 1;
  const [columns, rows] = [table.columns.length, table.rows.length];
  canvas.width = columns * width * ratio;
  canvas.height = rows * height * ratio;
  canvas.style.width = `${columns * width}px`;
  canvas.style.height = `${rows * height}px`;
  const pen = canvas.getContext("2d");
  const ends = { zero: "--score-zero", more: "--score-more", less: "--score-less" };
  const color = (name, share) => `color-mix(in oklab, ${style.getPropertyValue(ends[name])} ${share}%, ${style.getPropertyValue(ends.zero)})`;
  const shades = { more: shadesOf(pen, (share) => color("more", share)), less: shadesOf(pen, (share) => color("less", share)) };
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  table.scores.forEach((scores, row) => scores.forEach((value, column) => {
    if (value === null || value === undefined || isOwn(table, row, column)) return;
    const share = largest ? Math.min(1, Math.abs(value) / largest) : 0;
    pen.fillStyle = shades[value < 0 ? "less" : "more"][Math.round(share * 100)];
    pen.fillRect(column * width, row * height, width, height);
  }));
}

/** The 101 shades of one end. A canvas takes what CSS takes, but parsing a mix for each of thousands of cells is slow. */
function shadesOf(pen, mix) {
  return Array.from({ length: 101 }, (_, share) => {
    pen.fillStyle = mix(share);
    return pen.fillStyle;
  });
}

/** Counts the changes between light and dark, after which a canvas must be drawn again. */
function useColorScheme() {
  const [changes, setChanges] = useState(0);
  useEffect(() => {
    const query = matchMedia("(prefers-color-scheme: dark)");
    const follow = () => setChanges((count) => count + 1);
    query.addEventListener("change", follow);
    return () => query.removeEventListener("change", follow);
  }, []);
  return changes;
}
