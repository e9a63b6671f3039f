"""How long jobs take and will wait, by what those took that ended: for the ETA of a job that has not begun."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping

Kind = tuple[str, str]  # model, and method or methods

_LEARNING = 0.2  # how much of what is known a job that ended replaces
_MOST_KNOWN = 1000  # kinds that are remembered


class Pace:
    """Running means of the seconds that jobs took, of each kind and of all."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._means: dict[Kind, float] = {}
        self._overall: float | None = None

    def ended(self, kind: Kind, seconds: float) -> None:
        """A job ran to its end in so many seconds."""
        with self._guard:
            self._means[kind] = _moved(self._means.pop(kind, None), seconds)
            self._overall = _moved(self._overall, seconds)
            while len(self._means) > _MOST_KNOWN:
                del self._means[next(iter(self._means))]

    def typical(self, kind: Kind) -> float | None:
        """Seconds that a job of this kind takes, or any job where none of it has ended; None where none has at all."""
        return self._means.get(kind, self._overall)

    def wait(self, ahead: int, waiting: Mapping[Kind, int], left: Iterable[float | None], workers: int) -> float | None:
        """Seconds until a job begins that has `ahead` others before it.

        `waiting`: how many jobs of each kind wait; `left`: seconds that each running job still needs, as far as it is
        known. None where that cannot be told.
        """
        running = list(left)
        if not ahead and len(running) < workers:
            return 0.0
        known = [each for each in running if each is not None]
        rest = sum(known) / len(known) * len(running) if known else self._overall
        average = self._average(waiting) if ahead else 0.0
        if rest is None or average is None:
            return None
        if not ahead:
            return min(known, default=rest / max(1, len(running)))  # the first that is done makes room
        return (rest + ahead * average) / workers

    def _average(self, waiting: Mapping[Kind, int]) -> float | None:
        total, count = 0.0, 0
        for kind, number in waiting.items():
            seconds = self.typical(kind)
            if seconds is None:
                return None
            total, count = total + number * seconds, count + number
        return total / count if count else self._overall


def _moved(mean: float | None, value: float) -> float:
    return value if mean is None else mean + _LEARNING * (value - mean)
