"""Tokens as labels: without the tokenizer's marks, and with signs or codes for invisible characters."""

from __future__ import annotations

from collections.abc import Iterable

from attribution_reading.shown_tokens import EMPTY, code_point, is_invisible, shown_characters
from attribution_schema.result import Token

_SPACE_MARKS, _NEWLINE_MARK = ("Ġ", "▁"), "Ċ"
_LONGEST = 18  # characters
SIDE_TITLES = {"source": "source tokens", "target": "prompt and prefix"}


def label(token: Token, longest: int = _LONGEST) -> str:
    """Return a token's label, at most `longest` characters: its decoded text, or else the token without the marks.

    Spaces at the ends are left out, except of a token that has nothing else.
    """
    text = token_text(token)
    shown = "".join(each for each, _ in shown_characters(text.strip(" ") or text)) or EMPTY
    return shown if len(shown) <= longest else shown[: longest - 1] + "…"


def token_text(token: Token) -> str:
    """Return a token's decoded text if it has one, or the token with spaces in the place of the marks."""
    text = token.text
    if text is None:
        text = token.token.replace(_NEWLINE_MARK, "\n")
        for mark in _SPACE_MARKS:
            text = text.replace(mark, " ")
    return text


def labels(tokens: Iterable[Token]) -> list[str]:
    """Return the labels of tokens, in order."""
    return [label(token) for token in tokens]


def readable(text: str) -> str:
    """Return a text with codes for invisible characters, so that no control sequence in it reaches a terminal."""
    return "".join(each if each in " \n" or not is_invisible(each) else code_point(each) for each in text)
