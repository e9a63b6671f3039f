// Tokens as text in which nothing is invisible: spaces, control and format characters become signs.
//
// The server and the client have the same rule in attribution_reading/shown_tokens.py, and tests/test_page.py compares
// which characters the page and the server show by their code. The signs for white space are the page's own.

const SIGNS = { " ": "·", "\n": "↵", "\r": "␍", "\t": "⇥", "\u00a0": "⍽" };
const NAMES = { " ": "space", "\n": "line feed", "\r": "carriage return", "\t": "tab", "\u00a0": "no-break space" };
// Unicode's general categories. Format characters (Cf) include those that reverse the direction of the text after them.
const INVISIBLE = /[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Cn}\p{Zs}\p{Zl}\p{Zp}]/u;
const JOINERS = new Set(["\u200c", "\u200d"]); // they change how the letters or emoji around them are drawn
const RIGHT_TO_LEFT = /[\p{Script=Hebrew}\p{Script=Arabic}\p{Script=Syriac}\p{Script=Thaana}\p{Script=Nko}]/gu;
const LETTERS = /\p{L}/gu;

/** A token's readable text if the result has it, else the tokenizer's own. */
export const textOf = (token) => token.text ?? token.token;

/** The writing direction of most letters of these tokens: `ltr` or `rtl`. */
export function directionOf(tokens) {
  const text = tokens.map(textOf).join("");
  const rightToLeft = text.match(RIGHT_TO_LEFT)?.length ?? 0;
  return rightToLeft * 2 > (text.match(LETTERS)?.length ?? 0) ? "rtl" : "ltr";
}

/**
 * The pieces of a text, in order: `{text}` for a run of visible characters, `{sign, name, character}` for an invisible one.
 * Spaces and joiners between other characters count as visible.
 */
export function piecesOf(text) {
  const characters = [...text];
  const first = characters.findIndex((character) => character !== " ");
  const last = characters.findLastIndex((character) => character !== " ");
  const pieces = [];
  characters.forEach((character, index) => {
    const isInner = (character === " " || JOINERS.has(character)) && first < index && index < last;
    if (INVISIBLE.test(character) && !isInner) {
      const code = codePoint(character);
      pieces.push({ sign: SIGNS[character] ?? code, name: NAMES[character] ?? code, character });
    } else if (pieces.at(-1)?.text) pieces.at(-1).text += character;
    else pieces.push({ text: character });
  });
  return pieces;
}

const codePoint = (character) => `U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;

/** A text on one line, without invisible characters except spaces and joiners. */
export const oneLine = (text) => text.replace(/\s+/g, " ").replace(/(?![\u200c\u200d])[\p{Cc}\p{Cf}]/gu, "");

const shown = (text) => piecesOf(text.replace(/^ +(?=\S)/, "")).map(({ text, sign, character }) => text ?? (character === " " ? " " : sign)).join("");
// Each part of a sentence has its own writing direction.
const isolated = (text) => `\u2068${text}\u2069`;

/** A token in quotation marks, for a sentence, with what it is contrasted with. */
export const quoted = (token) =>
  `“${isolated(shown(textOf(token)))}”${token.contrast === undefined ? "" : ` rather than “${isolated(shown(token.contrast))}”`}`;
