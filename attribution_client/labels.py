"""Tokens as people read them: without the tokenizer's marks, with blanks and invisible characters made visible."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from attribution_schema.result import Token

_SPACE_MARKS, _NEWLINE_MARK = ("Ġ", "▁"), "Ċ"
_VISIBLE = {" ": "␣", "\n": "⏎", "\r": "␍", "\t": "⇥"}
_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zs", "Zl", "Zp"}
_LONGEST = 18  # letters


def label(token: Token) -> str:
    """What to write for a token: its `text` where the result was asked for `decode_tokens`, else without the marks."""
    text = token.text
    if text is None:
        text = token.token.replace(_NEWLINE_MARK, "\n")
        for mark in _SPACE_MARKS:
            text = text.replace(mark, " ")
    shown = text.strip(" ") or text or "∅"
    if not shown.strip():
        shown = "".join(_VISIBLE.get(each, f"U+{ord(each):04X}") for each in shown)
    shown = "".join(_VISIBLE.get(each, each) if each != " " else each for each in shown)
    shown = "".join(f"U+{ord(each):04X}" if each != " " and _is_unseen(each) else each for each in shown)
    return shown if len(shown) <= _LONGEST else shown[: _LONGEST - 1] + "…"


def labels(tokens: Iterable[Token]) -> list[str]:
    """The labels of tokens, in order."""
    return [label(token) for token in tokens]


def _is_unseen(character: str) -> bool:
    return unicodedata.category(character) in _UNSEEN


def readable(text: str) -> str:
    """A text in which nothing is invisible, so that none of it can command a terminal."""
    return "".join(each if each in " \n" or not _is_unseen(each) else f"U+{ord(each):04X}" for each in text)
