"""One sequence as a reader sees it: readable tokens with their notes, scores, and the strongest of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, takewhile

import numpy as np

from attribution_reading.scored_sequence import SIDES, Scores

Row = tuple[str, int]  # an attributed token: its side and its position


@dataclass(frozen=True)
class ReadToken:
    """A token: its readable text, and what is known of it."""

    text: str
    continues: bool = False  # a character of the token before, which has its text
    is_prompt: bool = False  # of a decoder-only model's target
    is_span: bool = False  # a span of the text, attributed as a whole
    contrast: str | None = None  # the text of the token that it is contrasted with
    is_template: bool = False  # added by a chat template, or a special token
    turn: int | None = None  # in a conversation, the number of its message
    role: str | None = None  # and the role of that message

    @property
    def shown(self) -> str:
        """The text by itself, without the space that most tokens begin with."""
        return self.text.strip(" ") or self.text

    @property
    def named(self) -> str:
        """The text for a sentence, with the contrast."""
        return self.shown if self.contrast is None else f"{self.shown} rather than {self.contrast.strip()}"


@dataclass(frozen=True)
class Block:
    """A part of a sequence: a turn of a conversation, or the prompt, the answer, the source or the target."""

    label: str
    side: str
    start: int  # position of the first token
    tokens: Sequence[ReadToken]


@dataclass(frozen=True)
class Strong:
    """An attributed token and its score."""

    row: Row
    token: ReadToken
    score: float


@dataclass(frozen=True)
class ReadSequence:
    """A sequence: its tokens and scores by side, `[attributed, generated]` with NaN where there is none."""

    tokens: Mapping[str, Sequence[ReadToken]]
    scores: Mapping[str, Scores]  # a side without scores is missing
    start: int  # target position of the first generated token
    end: int  # and the position behind the last one

    @property
    def generated(self) -> Sequence[ReadToken]:
        """The generated tokens that were attributed."""
        return self.tokens["target"][self.start : self.end]

    def of_token(self, column: int) -> dict[Row, float]:
        """The scores of the attributed tokens for one generated token; a unit of several tokens has none for itself."""
        own = ("target", self.start + column)
        return {row: float(each[column]) for row, each in self._rows() if row != own and np.isfinite(each[column])}

    def of_answer(self) -> dict[Row, float]:
        """The sum of each attributed token's scores over the generated ones, for the tokens that are not generated."""
        return {
            row: float(each[np.isfinite(each)].sum())
            for row, each in self._rows()
            if not (row[0] == "target" and row[1] >= self.start) and np.isfinite(each).any()
        }

    def strongest(self, scores: Mapping[Row, float], count: int, *, hide_template: bool = False) -> list[Strong]:
        """The attributed tokens with the largest absolute scores, in order."""
        found = (Strong(row, self.tokens[row[0]][row[1]], score) for row, score in scores.items())
        kept = [each for each in found if not (hide_template and each.token.is_template)]
        return sorted(kept, key=lambda each: -abs(each.score))[:count]

    def blocks(self) -> list[Block]:
        """The parts of the sequence in reading order. A decoder-only model's prompt is the beginning of its target."""
        target = self.tokens["target"]
        if "source" in self.scores:
            return [*_parts("source", self.tokens["source"], "Source"), *_parts("target", target, "Target")]
        if any(each.role for each in target):
            return list(_parts("target", target, ""))
        # What is attributed may begin behind the prompt's end.
        end = sum(1 for _ in takewhile(lambda each: each.is_prompt, target)) or self.start
        prompt = Block("Prompt", "target", 0, target[:end])
        return [each for each in (prompt, *_parts("target", target, "Generated text", end)) if each.tokens]

    def _rows(self) -> Iterator[tuple[Row, Scores]]:
        for side in SIDES:
            for position, scores in enumerate(self.scores.get(side, ())):
                yield (side, position), scores


def _parts(side: str, tokens: Sequence[ReadToken], label: str, start: int = 0) -> Iterator[Block]:
    """The turns of a side that is a conversation, else the whole side under its label, from a position on; and each
    span that was attributed as a whole.
    """
    positions = range(start, len(tokens))
    for _, run in groupby(positions, key=lambda each: (tokens[each].turn, each if tokens[each].is_span else None)):
        part = [tokens[each] for each in run]
        yield Block("Span" if part[0].is_span else part[0].role or label, side, start, part)
        start += len(part)
