"""Progress of a comparison: the progress of its methods as one fraction and one ETA."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from models import Progress, Stage

_ETA_FROM_PROGRESS = 0.05  # from this fraction on, the ETA is extrapolated from the elapsed time


class JointProgress:
    """Joins the methods' progress; each method's share is its expected seconds."""

    def __init__(
        self,
        report: Callable[[Progress], None],
        methods: Sequence[str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._report = report
        self._methods = methods
        self._clock = clock
        self._began: float | None = None  # when the first method began to attribute
        self._fraction = 0.0
        self.expected: dict[str, float] = {}  # seconds of each method, once the texts are known

    def of_method(self, index: int) -> Callable[[Progress], None]:
        """Return the function to which the method number `index` reports."""
        return lambda progress: self._report(self._joined(index, progress))

    def _joined(self, index: int, progress: Progress) -> Progress:
        name, now = self._methods[index], self._clock()
        if progress.stage is not Stage.ATTRIBUTING:
            self._fraction = max(self._fraction, self._share(index, 0.0))
            return progress.model_copy(update={"method": name, "fraction": self._fraction})
        if self._began is None:
            self._began = now
        self._fraction = max(self._fraction, self._share(index, progress.fraction))
        left = None
        if self._fraction >= _ETA_FROM_PROGRESS:
            left = (now - self._began) * (1 - self._fraction) / self._fraction
        elif total := sum(self.expected.values()):
            left = (1 - self._fraction) * total
        eta = None if left is None else round(left, 3)
        return progress.model_copy(update={"method": name, "fraction": self._fraction, "eta_seconds": eta})

    def _share(self, index: int, fraction: float) -> float:
        times = [self.expected.get(name, 1.0) for name in self._methods]
        return min(1.0, (sum(times[:index]) + fraction * times[index]) / (sum(times) or 1.0))
