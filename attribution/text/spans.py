"""The tokens of a part of a text that a request selects: of a span of the target, or of a segment of the input.

Works on the notes of tokens (see `readable_tokens.annotate`), and so needs no tokenizer: parts of a stored result are
found in the same way.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

from attribution_schema.spans import TextSelection
from problems import InputRejected

_SHOWN = 60  # characters of a text in a message


@dataclass(frozen=True)
class TokenSpan:
    """Tokens that stand next to each other, [start, end), and what to call them."""

    name: str
    start: int
    end: int
    text: str

    def __len__(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class TracePlan:
    """Target positions of an answer and of the reasoning before it, and how often a trace passes through the latter."""

    answer: range
    reasoning: range
    hops: int


@dataclass(frozen=True)
class SelectableText:
    """The tokens among which parts are selected: those at the positions [first, end) of `notes`.

    Their text begins with the first of them, and a search for what stands before a part (`after`, `between`) also looks
    at the text of the tokens before. `what` is its name in messages. `origin` is the offset from which characters are
    counted, where tokens in front of the text are none that its author wrote.
    """

    notes: Sequence[Mapping[str, Any]]
    first: int
    end: int
    what: str
    origin: int = 0

    def find(
        self, selection: TextSelection, where: str, warnings: list[str], *, without_blanks: bool = False
    ) -> TokenSpan:
        """The tokens of a selection, rounded outward to whole tokens. Adds to `warnings`.

        `where`: the selection's place in the request, for messages. `without_blanks`: blanks at its ends, which may be
        the beginning of another token, select nothing. Raises `InputRejected` where it selects nothing.
        """
        if selection.start is not None or selection.end is not None:
            start, end = self._positions(selection, where)
            found = self._text_of(start, end)
        else:
            begin, stop = self._characters(selection, where, warnings)
            if without_blanks:
                selected = self.text[begin:stop]
                begin, stop = stop - len(selected.lstrip()), begin + len(selected.rstrip())
            if begin >= stop:
                raise InputRejected(f"{where} selects nothing of {self.what}.")
            start, end = self._tokens(begin, stop)
            found, asked = self._text_of(start, end).strip(), self.text[begin:stop].strip()
            if found != asked:
                warnings.append(
                    f"{where} begins or ends within a token: {_shown(found)} is attributed for {_shown(asked)}."
                )
        return TokenSpan(selection.name or shortened(found.strip() or found), start, end, self._text_of(start, end))

    def _text_of(self, start: int, end: int) -> str:
        return self.text[self._offsets[start - self.first] : self._offsets[end - self.first]]

    @cached_property
    def text(self) -> str:
        """The text of the tokens."""
        return "".join(_piece(note) for note in self.notes[self.first : self.end])

    @cached_property
    def _offsets(self) -> list[int]:
        """The offset in the text at which each token begins, and behind them that of its end."""
        return list(accumulate((len(_piece(note)) for note in self.notes[self.first : self.end]), initial=0))

    def _positions(self, selection: TextSelection, where: str) -> tuple[int, int]:
        start = self.first if selection.start is None else selection.start
        end = self.end if selection.end is None else selection.end
        if not self.first <= start < end <= self.end:
            raise InputRejected(
                f"{where} has the positions {start} to {end}, and those of {self.what} are {self.first} to {self.end}."
            )
        return start, end

    def _characters(self, selection: TextSelection, where: str, warnings: list[str]) -> tuple[int, int]:
        """The offsets of the selection in the text, [begin, stop)."""
        if selection.characters is not None:
            begin, stop = selection.characters
            length = len(self.text) - self.origin
            if stop > length:
                raise InputRejected(f"{where} ends at character {stop}, and {self.what} has {length}.")
            return self.origin + begin, self.origin + stop
        if selection.text is not None:
            begin = self._place(selection.text, selection, where, warnings)
            return begin, begin + len(selection.text)
        if selection.after is not None:
            return self._behind(selection.after, selection, where, warnings), self._offset_of_ending()
        if selection.between is not None:
            before, behind = selection.between
            begin = self._behind(before, selection, where, warnings)
            stop = self.text.find(behind, begin)
            if stop < 0:
                raise InputRejected(f"{where}: {_shown(behind)} does not occur behind {_shown(before)}.")
            return begin, stop
        return 0, self._offset_of_ending()

    def _offset_of_ending(self) -> int:
        """Where the text ends without the special tokens at its end, such as the one that ended its generation."""
        notes = list(self.notes[self.first : self.end])
        while len(notes) > 1 and notes[-1].get("special"):
            notes.pop()
        return sum(len(_piece(note)) for note in notes)

    def _behind(self, marker: str, selection: TextSelection, where: str, warnings: list[str]) -> int:
        """The offset behind a marker, which may begin before the text; 0 where it ends right before it, as where a
        template opens a thought.
        """
        before = "".join(_piece(note) for note in self.notes[: self.first])
        reach = min(len(marker) - 1, len(before))
        places = [place - reach for place in _places(marker, before[len(before) - reach :] + self.text)]
        if not places and marker in before:
            if selection.occurrence is None and self._is_last_before(before.rindex(marker) + len(marker)):
                return 0
            raise InputRejected(
                f"{where}: {_shown(marker)} does not occur in {self.what}, only before it, with other text behind it."
            )
        return self._chosen(places, marker, selection, where, warnings) + len(marker)

    def _is_last_before(self, offset: int) -> bool:
        """Whether only blanks and special tokens stand between this offset in the tokens before and the text."""
        end = 0
        for note in self.notes[: self.first]:
            start, end = end, end + len(_piece(note))
            is_apart = bool(note.get("special")) and start >= offset
            if end > offset and not is_apart and _piece(note)[max(offset - start, 0) :].strip():
                return False
        return True

    def _place(self, wanted: str, selection: TextSelection, where: str, warnings: list[str]) -> int:
        return self._chosen(_places(wanted, self.text), wanted, selection, where, warnings)

    def _chosen(
        self, places: Sequence[int], wanted: str, selection: TextSelection, where: str, warnings: list[str]
    ) -> int:
        """That of the places of a text which the selection means."""
        if not places:
            raise InputRejected(
                f"{where}: {_shown(wanted)} does not occur in {self.what}, which is {_shown(self.text)}."
            )
        if selection.occurrence is None:
            if len(places) > 1:
                warnings.append(
                    f"{where}: {_shown(wanted)} occurs {len(places)} times; the first was taken. `occurrence` says "
                    "which."
                )
            return places[0]
        if not -len(places) <= selection.occurrence < len(places):
            times = "once" if len(places) == 1 else f"{len(places)} times"
            raise InputRejected(
                f"{where}: {_shown(wanted)} occurs {times}; there is no occurrence {selection.occurrence}."
            )
        return places[selection.occurrence]

    def _tokens(self, begin: int, stop: int) -> tuple[int, int]:
        """The positions of the tokens that have a character of [begin, stop)."""
        offsets = self._offsets
        start, end = bisect_right(offsets, begin) - 1, bisect_left(offsets, stop)
        while start > 0 and "continues" in self.notes[self.first + start]:
            start -= 1
        while self.first + end < self.end and "continues" in self.notes[self.first + end]:
            end += 1  # the other bytes of its last character
        return self.first + start, self.first + end


def _places(wanted: str, text: str) -> list[int]:
    """The offsets at which a text occurs in another."""
    places = []
    place = text.find(wanted)
    while place >= 0:
        places.append(place)
        place = text.find(wanted, place + 1)
    return places


def _piece(note: Mapping[str, Any]) -> str:
    return "" if "continues" in note else str(note.get("text", ""))


def shortened(text: str) -> str:
    """A text as a name or in a message."""
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def _shown(text: str) -> str:
    return repr(shortened(text))
