"""Units of text: which tokens make up a word, a line, a sentence, a paragraph or a message.

Words and sentences are those of Unicode Standard Annex #29 (https://unicode.org/reports/tr29/). A unit consists of
whole tokens: a token that begins in one unit and ends in the next belongs to the first. No unit contains a special
token beside others, tokens of the chat template beside written ones, tokens of two messages, or tokens of the prompt
beside generated ones.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate, groupby, pairwise
from typing import Any

from uniseg.sentencebreak import SentenceBreak, sentence_boundaries, sentence_break
from uniseg.wordbreak import word_boundaries

Note = Mapping[str, Any]  # of one token: `text`, and where it has them `continues`, `special`, `label`, `turn`, ...
Span = tuple[int, int]  # [start, end) of token positions

_LINE_ENDS = re.compile(r"(?:\r\n|[\n\r\u2028\u2029])+")
_PARAGRAPH_ENDS = re.compile(r"\n[ \t\r]*\n\s*|\u2029\s*")


def _words(text: str) -> Iterable[int]:
    # One space that is a token of its own belongs to the word behind it, as it does in tokens such as " word".
    return (each for each in word_boundaries(text) if not _is_behind_a_space(text, each))


def _is_behind_a_space(text: str, place: int) -> bool:
    before, behind = text[max(0, place - 2) : place], text[place : place + 1]
    return before.endswith(" ") and not before[:-1].isspace() and behind.isalnum()


_ABSORBED = {SentenceBreak.EXTEND, SentenceBreak.FORMAT}  # in the rules, they belong to the character before
_REPEATED = {SentenceBreak.SP, SentenceBreak.CLOSE}
_LONGEST_RUN = 8


def _sentences(text: str) -> Iterable[int]:
    """Where sentences end. No sentence ends within a run of spaces, of brackets or of marks, over which the library
    looks back at each of its characters, in time that grows with the square of the run: long ones are shortened.
    """
    kept, offsets = list[str](), list[int]()
    before, run, absorbed = None, 0, 0
    for offset, character in enumerate(text):
        kind = sentence_break(character)
        if kind in _ABSORBED:
            absorbed += 1
        else:
            run = run + 1 if kind == before and kind in _REPEATED else 0
            before, absorbed = kind, 0
        if max(run, absorbed) < _LONGEST_RUN:
            kept.append(character)
            offsets.append(offset)
    ends = [*offsets[1:], len(text)]
    # Behind a character that was kept, and what was left out behind it.
    return (0 if each == 0 else ends[each - 1] for each in sentence_boundaries("".join(kept)))


UNITS = ("words", "lines", "sentences", "paragraphs", "messages")
SEGMENTS = "segments"  # the parts of the input that a request named, and the rest of it
# For each unit, the offsets at which one may end and the next begin.
_BOUNDARIES: dict[str, Callable[[str], Iterable[int]]] = {
    "words": _words,
    "lines": lambda text: (each.end() for each in _LINE_ENDS.finditer(text)),
    "sentences": _sentences,
    "paragraphs": lambda text: (each.end() for each in _PARAGRAPH_ENDS.finditer(text)),
    "messages": lambda _text: (),
}


def unit_spans(notes: Sequence[Note], unit: str, *, borders: Iterable[int] = ()) -> list[Span]:
    """Return the spans of a side's units in order; together they contain every token once.

    notes: one for each token, see `attribution.text.readable_tokens.annotate`. unit: a name of `UNITS`, or
    `SEGMENTS`.
    borders: further positions at which a unit begins.
    """
    if unit == SEGMENTS:
        return _segment_spans(notes)
    starts = {0, *borders}
    for key, run in groupby(range(len(notes)), key=lambda position: _part_of_text(notes[position], position)):
        positions = list(run)
        starts.add(positions[0])
        if key[0] is None:
            starts.update(positions[0] + each for each in _starts_within([notes[each] for each in positions], unit))
    return list(pairwise([*sorted(each for each in starts if each < len(notes)), len(notes)])) if notes else []


def segment_label(name: str, text: str) -> str:
    """How a segment of this name is shown in the place of its text: by the text where the name is no other one."""
    words = text.strip()
    if words == name or (name.endswith("…") and words.startswith(name[:-1])):
        return text
    before, behind = text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :]
    return before + name + (behind if words else "")


def _segment_spans(notes: Sequence[Note]) -> list[Span]:
    """The spans of segments, of what is between them, and of each token that is none of the input."""

    def part(position: int) -> tuple[object, ...]:
        note = notes[position]
        name = note.get("segment")
        if name:
            return (name,)
        return (name, position) if name is None else (name, *_part_of_text(note, position))

    runs = [list(run) for _, run in groupby(range(len(notes)), key=part)]
    return [(run[0], run[-1] + 1) for run in runs]


def _part_of_text(note: Note, position: int) -> tuple[object, ...]:
    """What a token shares with those that it may form a unit with. A special token, or one without an id, is alone."""
    alone = position if note.get("special") or note.get("label") else None
    return alone, note.get("turn"), note.get("template"), note.get("prompt")


def _starts_within(notes: Sequence[Note], unit: str) -> list[int]:
    """Where units begin among tokens that are one part of a text, counted from the first token."""
    pieces = ["" if "continues" in each else str(each["text"]) for each in notes]
    text, offsets = "".join(pieces), list(accumulate(map(len, pieces), initial=0))[:-1]
    begins = {offset: index for index, offset in enumerate(offsets) if "continues" not in notes[index]}
    found = {_token_start(text, each, begins, offsets) for each in _BOUNDARIES[unit](text)}
    starts = sorted({each for each in found if each is not None} | {0})
    if unit == "words":
        return starts
    # Blank lines between two paragraphs belong to the first one.
    ends = [*starts[1:], len(pieces)]
    return [start for start, end in zip(starts, ends, strict=True) if not start or "".join(pieces[start:end]).strip()]


def _token_start(text: str, boundary: int, begins: dict[int, int], offsets: list[int]) -> int | None:
    """The token that begins a unit at this boundary; None where no token begins.

    `begins`: each token's position by its offset in the text; `offsets`: those of all tokens, in order.
    """
    blank = boundary
    while blank not in begins and blank > 0 and text[blank - 1].isspace():
        blank -= 1  # the blanks before a word may be the beginning of its token
    if blank in begins:
        return begins[blank]
    following = bisect_right(offsets, boundary)
    while following < len(offsets) and begins.get(offsets[following]) != following:
        following += 1  # it continues a character
    return following if following < len(offsets) else None
