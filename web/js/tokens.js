// Tokens as text that people can see: white space, control and invisible characters get a sign.
import { html } from "./preact.js";

const GLYPHS = { " ": "·", "\n": "↵", "\r": "␍", "\t": "⇥", "\u00a0": "⍽" };
const WORDS = { " ": "space", "\n": "line feed", "\r": "carriage return", "\t": "tab", "\u00a0": "no-break space" };
// Also those that turn the direction of what follows them.
const HIDDEN = /[\p{Cc}\p{Cf}\p{Zs}\p{Zl}\p{Zp}]/u;
const JOINERS = new Set(["\u200c", "\u200d"]); // within a text they are a part of how it is written
const RIGHT_TO_LEFT = /[\p{Script=Hebrew}\p{Script=Arabic}\p{Script=Syriac}\p{Script=Thaana}\p{Script=Nko}]/gu;
const LETTERS = /\p{L}/gu;

export const textOf = (token) => token.text ?? token.token;

/** The direction that most letters of these tokens are written in. */
export function directionOf(tokens) {
  const text = tokens.map(textOf).join("");
  const rightToLeft = text.match(RIGHT_TO_LEFT)?.length ?? 0;
  return rightToLeft * 2 > (text.match(LETTERS)?.length ?? 0) ? "rtl" : "ltr";
}

/** The pieces of a text: runs of what is seen, and single characters that are not. */
export function piecesOf(text) {
  const pieces = [];
  for (const character of text) {
    const isPart = JOINERS.has(character) && pieces.at(-1)?.text;
    if (HIDDEN.test(character) && !isPart) {
      const code = codePoint(character);
      pieces.push({ sign: GLYPHS[character] ?? code, name: WORDS[character] ?? code });
    } else if (pieces.at(-1)?.text) pieces.at(-1).text += character;
    else pieces.push({ text: character });
  }
  return pieces;
}

const codePoint = (character) => `U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;

/** A token's text; a sign is drawn by the style sheet, so that it is no part of the text. */
export function TokenText({ token }) {
  const pieces = piecesOf(textOf(token));
  const isBlank = pieces.every((piece) => piece.sign);
  return html`<bdi class="token-text">${pieces.map(({ text, sign, name }) =>
    sign ? html`<span class="sign" data-sign=${sign}>${isBlank && html`<span class="hidden">${name}</span>`}</span>` : text)}</bdi>`;
}

/** A token as it is quoted in a sentence. */
export const quoted = (token) => `“${piecesOf(textOf(token)).map(({ text, sign }) => text ?? sign).join("")}”`;
