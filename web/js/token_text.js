// Draws a token with its invisible characters as signs.
import { html } from "./preact.js";
import { piecesOf, textOf } from "./shown_tokens.js";

/** A token's text. The style sheet draws the signs, so that they are not part of text that is copied. */
export function TokenText({ token }) {
  const pieces = piecesOf(textOf(token));
  const isBlank = pieces.every((piece) => piece.sign);
  return html`<bdi class="token-text">${pieces.map(({ text, sign, name }) =>
    sign ? html`<span class="sign" data-sign=${sign}>${isBlank && html`<span class="hidden">${name}</span>`}</span>` : text)}</bdi>`;
}
