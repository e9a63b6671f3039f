"""A thread that does something now and then, beside the jobs. Knows nothing of what it does."""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog

log = structlog.get_logger(__name__)

_PATIENCE = 5.0  # seconds that a stop waits for work under way


class Periodic:
    """Calls `work` every `interval` seconds, from `start` to `stop`; an error of it is logged, and ends nothing."""

    def __init__(self, name: str, interval: float, work: Callable[[], object]) -> None:
        self._name = name
        self._interval = interval
        self._work = work
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)

    def start(self) -> None:
        """Begin; the first call comes after one interval."""
        self._thread.start()

    def stop(self) -> None:
        """Call no more, and wait for a call that is under way (a few seconds at most)."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(_PATIENCE)

    def _loop(self) -> None:
        while not self._stopped.wait(self._interval):
            try:
                self._work()
            except Exception:  # a thread that died of it would never come back
                log.exception("periodic_work_failed", work=self._name)
