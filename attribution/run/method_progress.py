"""Progress of one method on a request's texts: counts its work, and what generates its targets, in steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum, auto

from attribution.run.request_progress import RequestProgress, Work
from models import Stage


class Unit(Enum):
    """What one unit of attribution work is."""

    STEP = auto()  # the attribution of one generated token
    FORWARD = auto()  # a forward pass, for methods that attribute all generated tokens in one step


class MethodProgress:
    """Counts generated tokens, then attributed units, over several texts. The counts of a stage never decrease.

    Order of calls: `expect_generating` once and `begin_generating` for each text whose target is generated,
    `begin_attributing` once, and `begin_text` for each text. In between, `forward_begins`, `steps_done` and `part_done`
    may come in any order, and `checking` and `preparing` may be entered.
    """

    def __init__(self, request: RequestProgress, method: str, unit: Unit = Unit.STEP) -> None:
        self.request = request
        self._method = method
        self._unit = unit
        self._stage = Stage.LOADING_MODEL
        self._work: Work = (Stage.LOADING_MODEL, None)
        self._done = 0
        self._total: int | None = None
        self._share = 0.0  # of the work
        self._forwards = 0  # of the present text's generation or attribution, or of the present probe
        self._before = 0  # units of the texts before the present one; tokens, while targets are generated
        self._units = 0  # of the present text
        self._most_tokens: list[int] = []  # of the texts whose generation has not begun
        self._prompts: list[float] = []  # and the time of each one's first forward, in those of a token
        self._begun_prompts = 0.0  # the sum of those that have begun
        self._ahead = 0.0  # the time of what precedes the present text's steps, in units
        self._range = (0.0, 1.0)  # the part of the present text that its present attempt counts from, and to
        self._expected_forwards = 1  # of the present probe

    def measuring(self) -> None:
        """Begin to measure the model's speed."""
        self._enter((Stage.MEASURING, None), None)
        self._send()

    def expect_generating(self, most_tokens: Sequence[int], prompts: Sequence[float] = ()) -> None:
        """Set the most tokens of each target that is generated; each forward pass generates one.

        `prompts`: how many times as long as the others each target's first forward takes, over the whole prompt.
        """
        self._enter((Stage.GENERATING, None), sum(most_tokens))
        self._before = self._forwards = self._units = 0
        self._most_tokens = list(most_tokens)
        self._prompts, self._begun_prompts = [each - 1 for each in prompts] or [0.0] * len(most_tokens), 0.0

    def begin_generating(self) -> None:
        """Begin the next text's generation; the one before it has ended, perhaps before its most tokens."""
        self._before += min(self._forwards, self._units)
        if self._forwards == 1:  # the prompt's own was all
            self._begun_prompts += self._prompts.pop(0)
        self._units, self._forwards = self._most_tokens.pop(0), 0
        self._total = self._before + self._units + sum(self._most_tokens)
        self._send()

    def begin_attributing(self, total: int) -> None:
        """Begin the attribution of all texts, `total` units. Nothing is counted before the first text."""
        self._enter((Stage.ATTRIBUTING, self._method), total)
        self._before = self._units = 0

    def begin_text(self, units: int) -> None:
        """Begin the next text; the one before it counts as done."""
        self._before += self._units
        self._units, self._forwards, self._ahead, self._range = units, 0, 0.0, (0.0, 1.0)
        self._done = max(self._done, self._before)
        self._share = max(self._share, self._before / self._total if self._total else 0.0)
        self._send()

    def begin_attempt(self, begin: float, end: float) -> None:
        """Count the steps of the present text, which begin anew, from one part of it (0 to 1) to another."""
        self._range = (begin, end)

    def forward_begins(self) -> None:
        """Count a forward pass, in the stages whose unit it is."""
        if self._stage is Stage.GENERATING and self._total is not None:
            self._forwards += 1
            self._done = min(self._before + min(self._forwards, self._units), self._total)
            if self._forwards == 2:  # noqa: PLR2004 - the prompt's is done
                self._begun_prompts += self._prompts.pop(0)
            # The present forward has only begun.
            share = (self._done - 1 + self._begun_prompts) / (self._total + self._begun_prompts + sum(self._prompts))
            self._share = max(self._share, share)
            self._send()
        elif self._stage is Stage.CHECKING:
            self._forwards += 1
            self._send()
        elif self._stage is Stage.ATTRIBUTING and self._unit is Unit.FORWARD:
            self._forwards += 1
            self._advance(self._forwards)

    def steps_done(self, steps: int) -> None:
        """Note that so many steps of the present text are done."""
        if self._stage is Stage.ATTRIBUTING and self._unit is Unit.STEP:
            self._advance(steps, self._units * (steps + self._ahead) / (self._units + self._ahead))

    def part_done(self, part: float, spent: float | None = None) -> None:
        """Note that a part (0 to 1) of the present text is done, and that part of its time `spent`, if another."""
        if spent is not None and spent < 1:
            self._ahead = max(0.0, self._units * (spent - part) / (1 - spent))
        self._advance(part * self._units, None if spent is None else spent * self._units)

    @contextmanager
    def preparing(self) -> Iterator[None]:
        """Within the block, the stage is PREPARING: the method does one-time work on the model."""
        before, self._stage = self._stage, Stage.PREPARING
        self._send()
        try:
            yield
        finally:
            self._stage = before
        self._send()

    @contextmanager
    def checking(self, forwards: int) -> Iterator[None]:
        """Within the block, the stage is CHECKING: a probe of the model runs about so many forward passes."""
        stage, counted = self._stage, self._forwards
        self._stage, self._forwards, self._expected_forwards = Stage.CHECKING, 0, max(1, forwards)
        self._send()
        try:
            yield
        finally:
            self._stage, self._forwards = stage, counted
        self._send()

    def _enter(self, work: Work, total: int | None) -> None:
        self._work, self._stage, self._done, self._total, self._share = work, work[0], 0, total, 0.0

    def _advance(self, units: float, spent: float | None = None) -> None:
        """Note the units of the present text that its present attempt has done, and those whose time is `spent`."""
        done = max(self._done, int(self._reached(units) + 1e-9))
        share = self._reached(units if spent is None else spent) / self._total if self._total else 0.0
        if share > self._share or done > self._done:
            self._share, self._done = max(self._share, share), done
            self._send()

    def _reached(self, units: float) -> float:
        """So many units of the present text's present attempt, as units of all texts."""
        begin, end = self._range
        return self._before + begin * self._units + (end - begin) * min(units, self._units)

    def _send(self) -> None:
        if self._stage is Stage.CHECKING:
            done, total = min(self._forwards, self._expected_forwards), self._expected_forwards
            self.request.show((Stage.CHECKING, self._method), done / total, steps_done=done, steps_total=total)
            return
        self.request.show(self._work, self._share, stage=self._stage, steps_done=self._done, steps_total=self._total)
