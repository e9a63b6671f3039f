"""A thread that calls a function at a fixed interval. Knows nothing of the function."""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog

log = structlog.get_logger(__name__)

_STOP_TIMEOUT = 5.0  # seconds that `stop` waits for a running call


class Periodic:
    """Calls `work` every `interval` seconds between `start` and `stop`. An exception is logged, and the calls go on."""

    def __init__(self, name: str, interval: float, work: Callable[[], object]) -> None:
        self._name = name
        self._interval = interval
        self._work = work
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread; the first call comes after one interval."""
        self._thread.start()

    def stop(self) -> None:
        """Make no more calls, and wait up to 5 seconds for a running one."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(_STOP_TIMEOUT)

    def _loop(self) -> None:
        while not self._stopped.wait(self._interval):
            try:
                self._work()
            except Exception:  # without this the thread would end
                log.exception("periodic_work_failed", work=self._name)
