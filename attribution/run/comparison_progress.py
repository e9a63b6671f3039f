"""Progress of a comparison: the progress of its methods as one fraction and one ETA. Knows no model and no clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from models import Progress, Stage


class ComparisonProgress:
    """Joins the methods' progress, each weighted by its expected seconds. The fraction never decreases."""

    def __init__(self, report: Callable[[Progress], None], methods: Sequence[str]) -> None:
        self._report = report
        self._methods = methods
        self._fraction = 0.0
        self._expected: Mapping[str, float] = {}

    def expect(self, seconds: Mapping[str, float]) -> None:
        """Set the time that each method should take, by name; until then all count the same, and there is no ETA."""
        self._expected = seconds

    def of_method(self, name: str) -> Callable[[Progress], None]:
        """The function that the method reports its own progress to."""
        index = self._methods.index(name)
        return lambda progress: self._report(self._joined(index, progress))

    def _joined(self, index: int, progress: Progress) -> Progress:
        is_attributing = progress.stage is Stage.ATTRIBUTING
        self._fraction = max(self._fraction, self._share(index, progress.fraction if is_attributing else 0.0))
        total = sum(self._expected.values())
        eta = round((1 - self._fraction) * total, 3) if is_attributing and total else None
        return progress.model_copy(
            update={"method": self._methods[index], "fraction": self._fraction, "eta_seconds": eta}
        )

    def _share(self, index: int, fraction: float) -> float:
        """The part of the whole (0 to 1) that is done when this fraction of method number `index` is."""
        times = [self._expected.get(name, 1.0) for name in self._methods]
        return min(1.0, (sum(times[:index]) + fraction * times[index]) / (sum(times) or 1.0))
