"""Progress of a whole request: one fraction and one ETA over its stages, texts and methods, and the texts so far.

Knows no model, no clock and no job, so it can be tested alone. The ETA that it reports is the expected time of the work
that is left; measuring elapsed time and correcting the ETA by it is left to the receiver of the reports.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from models import Progress, Stage

Report = Callable[[Progress], None]
Work = tuple[Stage, str | None]  # a stage, and the method whose it is; None where all methods share it
_MOST_CHARACTERS = 16_000  # of all texts in a report: each event about the job carries them
# The stages whose time nobody can expect: weights to read, rates to measure, one-time work of a method.
_UNKNOWN = {Stage.QUEUED, Stage.LOADING_MODEL, Stage.MEASURING, Stage.PREPARING}


class RequestProgress:
    """Joins the work of all stages and methods, each weighted by its expected seconds.

    The fraction is the share of the expected time that is done. It never decreases: whenever the expectation changes
    (`expect`), or the request starts anew (`restart`), what is left of the bar is divided among the work that is left.
    """

    def __init__(self, report: Report, *, texts: int = 1, names_methods: bool = False) -> None:
        """`texts`: the number of inputs. `names_methods`: reports say which method is running (of a comparison)."""
        self._report = report
        self._names_methods = names_methods
        self._plan: dict[Work, float] = {}  # seconds, in the order of the work
        self._base = 0.0  # the fraction at which the plan begins
        self._fraction = 0.0
        self._texts = [""] * texts
        self.latest = Progress()

    def restart(self) -> None:
        """Begin an attempt: the first, or one more after the device ran out of memory."""
        self._plan = {}
        self.show((Stage.LOADING_MODEL, None), 0.0)

    def expect(self, plan: Mapping[Work, float]) -> None:
        """Set the seconds that the work which is left should take, in its order."""
        self._plan, self._base = dict(plan), self._fraction

    def show(
        self,
        work: Work,
        share: float,
        *,
        stage: Stage | None = None,
        steps_done: int = 0,
        steps_total: int | None = None,
    ) -> None:
        """Report that this share (0 to 1) of a work is done. `stage`: shown in place of the work's own."""
        stage, total = stage or work[0], sum(self._plan.values())
        if work in self._plan and total > 0:
            before = sum(list(self._plan.values())[: list(self._plan).index(work)])
            done = (before + min(share, 1.0) * self._plan[work]) / total
            self._fraction = min(1.0, max(self._fraction, self._base + (1 - self._base) * done))
        self._send(
            Progress(
                stage=stage,
                method=work[1] if self._names_methods else None,
                steps_done=steps_done,
                steps_total=steps_total,
                fraction=self._fraction,
                eta_seconds=None if stage in _UNKNOWN or not total else self._seconds_left(total),
            )
        )

    def write_text(self, index: int, text: str) -> None:
        """Report the target of input number `index`, or what is generated of it so far: the text behind the prompt."""
        if self._texts[index] != text:
            self._texts[index] = text
            self._send(self.latest)

    def saving(self) -> None:
        """Report that everything is attributed, and the result is being stored."""
        self._fraction = 1.0
        self._send(self.latest.model_copy(update={"stage": Stage.SAVING, "fraction": 1.0, "eta_seconds": 0.0}))

    def _seconds_left(self, total: float) -> float:
        return round(total * (1 - self._fraction) / (1 - self._base) if self._base < 1 else 0.0, 3)

    def _send(self, progress: Progress) -> None:
        room = max(1, _MOST_CHARACTERS // len(self._texts))
        texts = [each[:room] for each in self._texts] if any(self._texts) else None
        self.latest = progress.model_copy(update={"generated_text": texts})
        self._report(self.latest)
