"""Progress of one method on a request's texts: counts work and reports it as `Progress`.

Knows no model, no clock and no job, so it can be tested alone. The ETA it reports is the expected time of the work that
is left; measuring elapsed time and correcting the ETA is left to the receiver of the reports.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum, auto

from models import Progress, Stage

Report = Callable[[Progress], None]


class Unit(Enum):
    """What one unit of attribution work is."""

    STEP = auto()  # the attribution of one generated token
    FORWARD = auto()  # a forward pass, for methods that attribute all generated tokens in one step


class ProgressCounter:
    """Counts generated tokens, then attributed units over several texts. The attributed count never decreases.

    Order of calls: `begin_generating` for each text whose target is generated, `begin_attributing` once, and
    `begin_text` for each text. In between, `forward_begins`, `steps_done` and `part_done` may come in any order.
    """

    def __init__(self, report: Report, unit: Unit = Unit.STEP) -> None:
        self._report = report
        self._unit = unit
        self._stage = Stage.LOADING_MODEL
        self._done = 0
        self._total: int | None = None
        self._expected_seconds: float | None = None
        self._forwards = 0  # of the present text's generation or attribution
        self._before = 0  # units of the texts before the present one
        self._units = 0  # of the present text
        self._share = (0.0, 1.0)  # the part of the present text that its present attempt counts from, and to
        self.latest = Progress()

    def begin_generating(self, most_tokens: int | None) -> None:
        """Begin a text's generation of at most so many tokens; each forward pass generates one."""
        self._stage, self._done, self._total, self._forwards = Stage.GENERATING, 0, most_tokens, 0

    def begin_attributing(self, total: int) -> None:
        """Begin the attribution of all texts, `total` units. Nothing is counted before the first text."""
        self._stage, self._done, self._total = Stage.ATTRIBUTING, 0, total
        self._before = self._units = 0

    def expect(self, seconds: float) -> None:
        """Set the time that the attribution of all texts should take; until then there is no ETA."""
        self._expected_seconds = seconds

    def begin_text(self, units: int) -> None:
        """Begin the next text; the one before it counts as done."""
        self._before += self._units
        self._units, self._forwards, self._share = units, 0, (0.0, 1.0)
        self._done = max(self._done, self._before)
        self._send()

    def begin_attempt(self, begin: float, end: float) -> None:
        """Count the steps of the present text, which begin anew, from one part of it (0 to 1) to another."""
        self._share = (begin, end)

    def forward_begins(self) -> None:
        """Count a forward pass, in the stages whose unit it is."""
        self._forwards += 1
        if self._stage is Stage.GENERATING:
            self._done = self._forwards
            self._send()
        elif self._unit is Unit.FORWARD:
            self._advance(self._forwards)

    def steps_done(self, steps: int) -> None:
        """Note that so many steps of the present text are done."""
        if self._unit is Unit.STEP:
            self._advance(steps)

    def part_done(self, part: float) -> None:
        """Note that a part (0 to 1) of the present text is done."""
        self._advance(int(part * self._units))

    @contextmanager
    def preparing(self) -> Iterator[None]:
        """Within the block, the stage is PREPARING: the method does one-time work on the model."""
        before, self._stage = self._stage, Stage.PREPARING
        self._send()
        yield
        self._stage = before
        self._send()

    def saving(self) -> Progress:
        """The progress after the last text: everything is attributed, and the result is being stored."""
        return self.latest.model_copy(update={"stage": Stage.SAVING, "fraction": 1.0, "eta_seconds": None})

    def _advance(self, units: int) -> None:
        begin, end = self._share
        done = self._before + int(begin * self._units + (end - begin) * min(units, self._units))
        if done > self._done:
            self._done = done
            self._send()

    def _send(self) -> None:
        fraction = min(1.0, self._done / self._total) if self._total else 0.0
        eta = None
        if self._stage is Stage.ATTRIBUTING and self._expected_seconds is not None:
            eta = round(self._expected_seconds * (1 - fraction), 3)
        self.latest = Progress(
            stage=self._stage, steps_done=self._done, steps_total=self._total, fraction=fraction, eta_seconds=eta
        )
        self._report(self.latest)
