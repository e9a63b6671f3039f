"""Signs and codes for the characters of a token that could not be seen otherwise."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import Literal

EMPTY = "∅"  # stands for a token without characters
# Control characters other than a tab and a line feed: a browser drops or replaces them.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_SIGNS = {" ": "␣", "\n": "⏎", "\r": "␍", "\t": "⇥", "\u00a0": "⍽", "\u3000": "□"}
_INVISIBLE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zs", "Zl", "Zp"}  # Unicode's categories
_JOINERS = {"\u200c", "\u200d"}  # they shape words of several scripts, and join emoji


def shown_characters(text: str) -> Iterator[tuple[str, Literal["plain", "sign", "code"]]]:
    """Yield for each character what to show: itself (`plain`), a `sign` for a blank, or its `code`, such as U+200B.

    Spaces and joiners between other characters are plain. The spaces at the start and end of a token are signs.
    """
    first, last = len(text) - len(text.lstrip(" ")), len(text.rstrip(" ")) - 1
    for index, character in enumerate(text):
        if first < index < last and (character == " " or character in _JOINERS):
            yield character, "plain"
        elif character in _SIGNS:
            yield _SIGNS[character], "sign"
        elif is_invisible(character):
            yield code_point(character), "code"
        else:
            yield character, "plain"


def is_invisible(character: str) -> bool:
    """Return whether a character is blank, a control or format character, or not assigned."""
    return unicodedata.category(character) in _INVISIBLE


def code_point(character: str) -> str:
    """Return a character's code point in Unicode's notation, such as U+200B."""
    return f"U+{ord(character):04X}"
