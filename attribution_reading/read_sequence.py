"""One sequence as a reader sees it: readable tokens with their notes, scores, and the strongest of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    contrast: str | None = None  # the text of the token that it is contrasted with
    is_template: bool = False  # added by a chat template, or a special token
    is_prompt: bool = False  # of a decoder-only model's prompt
    is_span: bool = False  # a part of the answer that was attributed as a whole, behind the text's own tokens
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
    """A part of a sequence: a turn of a conversation, or its prompt, answer, source, target or spans."""

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

    @property
    def opening(self) -> int | None:
        """The generated token whose scores are shown where none is chosen: the only one, or the first of several spans,
        which may overlap; None for the whole answer.
        """
        generated = self.generated
        return 0 if len(generated) == 1 or (generated and all(each.is_span for each in generated)) else None

    def of_token(self, column: int) -> dict[Row, float]:
        """The scores of the attributed tokens for one generated token; a unit of several tokens has none for itself."""
        own = ("target", self.start + column)
        return {row: float(each[column]) for row, each in self._rows() if row != own and np.isfinite(each[column])}

    def of_answer(self) -> dict[Row, float]:
        """The sum of each attributed token's scores over the generated ones, for the tokens that are not generated.

        Of the finite scores: the sum of others has no place on a scale.
        """
        return {
            row: float(each[np.isfinite(each)].sum(dtype=np.float64))
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
        spans = next((place for place, each in enumerate(target) if each.is_span), len(target))
        parts = [*self._parts_of_text(target[:spans]), Block("Spans", "target", spans, target[spans:])]
        return [each for each in parts if each.tokens]

    def _parts_of_text(self, target: Sequence[ReadToken]) -> Iterable[Block]:
        """The blocks without that of the spans; `target` are the tokens of the text."""
        if "source" in self.scores:
            return [*_parts("source", self.tokens["source"], "Source"), *_parts("target", target, "Target")]
        if any(each.role for each in target):
            return _parts("target", target, "")
        # The attributed tokens may begin later than the answer. Results of older versions do not know their prompt.
        prompt = sum(1 for _ in takewhile(lambda each: each.is_prompt, target)) or self.start
        return [
            Block("Prompt", "target", 0, target[:prompt]),
            Block("Generated text", "target", prompt, target[prompt:]),
        ]

    def _rows(self) -> Iterator[tuple[Row, Scores]]:
        for side in SIDES:
            for position, scores in enumerate(self.scores.get(side, ())):
                yield (side, position), scores


def _parts(side: str, tokens: Sequence[ReadToken], label: str) -> Iterator[Block]:
    """The turns of a side that is a conversation; else the whole side under its label."""
    start = 0
    for _, run in groupby(tokens, key=lambda each: each.turn):
        turn = list(run)
        yield Block(turn[0].role or label, side, start, turn)
        start += len(turn)
