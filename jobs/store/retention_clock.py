"""The clock by which results age: near the wall clock, but no jump of the wall clock makes it jump.

Within a second it goes forward by at most two, and never back. After a downtime it therefore catches up as fast as time
goes by; and a wall clock that is years ahead, or was years behind, for a day makes results at most a day older.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

_FASTEST = 2.0  # seconds by which it goes forward in one second


class RetentionClock:
    """Continues at `start`, the time at which it was last stored. wall: seconds since the epoch; monotonic: seconds."""

    def __init__(self, start: float, wall: Callable[[], float], monotonic: Callable[[], float]) -> None:
        self._guard = threading.Lock()
        self._seconds = start
        self._wall = wall
        self._monotonic = monotonic
        self._read_at = monotonic()

    def now(self) -> float:
        """Return its time, in seconds since the epoch."""
        with self._guard:
            elapsed = self._monotonic() - self._read_at
            self._read_at += elapsed
            behind = self._wall() - self._seconds
            if math.isfinite(behind):
                self._seconds += min(max(0.0, behind), _FASTEST * elapsed)
            return self._seconds
