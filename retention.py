"""Results are kept for a time, up to a number and an amount of bytes; their jobs stay, marked as expired."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import structlog

from job_store import JobStore
from problems import StorageFailed
from settings import Settings

log = structlog.get_logger(__name__)

_DAY = 86400.0


class Retention:
    """A thread that looks now and then."""

    def __init__(self, store: JobStore, settings: Settings, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._settings = settings
        self._clock = clock
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="retention", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join(5.0)

    def sweep(self) -> list[str]:
        """Remove what is beyond the limits now. Returns the ids of the jobs whose results are gone."""
        expired = self._store.expire(
            before=self._clock() - self._settings.results_max_days * _DAY,
            keep=self._settings.results_max_count,
            keep_bytes=self._settings.results_max_bytes,
        )
        if expired:
            log.info("results_expired", count=len(expired))
        return expired

    def _loop(self) -> None:
        while not self._stopped.wait(self._settings.retention_interval_seconds):
            try:
                self.sweep()
            except StorageFailed as error:
                log.warning("retention_failed", error=error.detail)
