"""Removes results beyond the limits of age, number and bytes; their jobs stay, marked as expired."""

from __future__ import annotations

import structlog

from jobs.periodic import Periodic
from jobs.store.job_store import JobStore
from problems import StorageFailed
from settings import Settings

log = structlog.get_logger(__name__)

_DAY = 86400.0


class Retention(Periodic):
    """Removes results beyond the limits, every `retention_interval_seconds`."""

    def __init__(self, store: JobStore, settings: Settings) -> None:
        self._store = store
        self._settings = settings
        super().__init__("retention", settings.retention_interval_seconds, self._sweep)

    def _sweep(self) -> None:
        try:
            expired = self._store.expire(
                max_age=self._settings.results_max_days * _DAY,
                keep=self._settings.results_max_count,
                keep_bytes=self._settings.results_max_bytes,
            )
        except StorageFailed as error:
            log.warning("retention_failed", error=error.detail)
            return
        if expired:
            log.info("results_expired", count=len(expired))
