// Draws a token with its invisible characters as signs.
import { html } from "./preact.js";
import { piecesOf, textOf } from "./shown_tokens.js";

/**
 * A token's text by itself, without the space that most tokens begin with. The style sheet draws the signs, so that they are
 * not part of text that is copied.
 */
export function TokenText({ token }) {
  const pieces = piecesOf(textOf(token).replace(/^ (?=\S)/, ""));
  const isBlank = pieces.every((piece) => piece.sign);
  return html`<bdi class="token-text">${pieces.map(({ text, sign, name }) =>
    sign ? html`<span class="sign" data-sign=${sign}>${isBlank && html`<span class="hidden">${name}</span>`}</span>` : text)}</bdi>`;
}

/** A token within running text: spaces and line breaks are what they are, and other invisible characters signs. */
export function RunningText({ token }) {
  if (token.continues) return null; // its character stands in the token before
  return piecesOf(textOf(token)).map(({ text, sign, character }) =>
    (text ?? (character === " " ? " " : html`<span class="sign" data-sign=${sign}></span>${character === "\n" && "\n"}`)));
}
