"""How far running jobs are: what they tell, with the time left added, kept in memory and written now and then."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import structlog

from jobs.periodic import Periodic
from jobs.store.job_store import JobStore
from jobs.store.records import JobRecord
from jobs.waiting_time import Pace
from models import Progress, Stage
from problems import StorageFailed

log = structlog.get_logger(__name__)

_PROGRESS_INTERVAL = 1.0  # seconds between two writes of progress
_OVERDUE = 2.0  # seconds behind its time that a job is taken to be nearly done
_TELL_INTERVAL = 0.2  # seconds between two notices of one job's progress to those who watch


@dataclass(frozen=True)
class Live:
    """What a running job told last, and when."""

    job: JobRecord
    started: float
    progress: Progress
    told: float

    def left(self, now: float, pace: Pace) -> float | None:
        """Seconds that it still needs: those it told of, or what such jobs take, less the time since."""
        told, since = self.progress.eta_seconds, self.told
        if told is None:
            told, since = pace.typical(self.job.kind), self.started
        if told is None:
            return None
        left = told - (now - since)
        # It takes longer than was thought: how much longer, nothing says.
        return None if left < -max(told, _OVERDUE) else round(max(0.0, left), 3)


class Reporter:
    """Takes a job's progress: adds the time left, keeps the latest in memory, tells of it now and then."""

    def __init__(
        self,
        job: JobRecord,
        live: dict[str, Live],
        clock: Callable[[], float],
        tell: Callable[[str], None],
    ) -> None:
        self._job, self._live, self._clock, self._tell = job, live, clock, tell
        self._told = 0.0
        self.latest = Progress()
        self._stage: Stage | None = None
        self._stage_began = 0.0
        self._steps_before = 0
        self._started = clock()

    def __call__(self, progress: Progress) -> None:
        now = self._clock()
        changed = progress.stage is not self._stage
        if changed:
            self._stage, self._stage_began, self._steps_before = progress.stage, now, progress.steps_done
        done = progress.steps_done - self._steps_before
        # A comparison tells of all its methods itself.
        if progress.stage is Stage.ATTRIBUTING and progress.steps_total and done > 0 and progress.method is None:
            left = progress.steps_total - progress.steps_done
            progress = progress.model_copy(update={"eta_seconds": round((now - self._stage_began) / done * left, 3)})
        self.latest = progress
        self._live[self._job.job_id] = Live(self._job, self._started, progress, now)
        if changed or now - self._told >= _TELL_INTERVAL:
            self._told = now
            self._tell(self._job.job_id)


class ProgressWriter(Periodic):
    """Writes the progress of running jobs to the store, once a second: no job waits for the disk."""

    def __init__(self, store: JobStore, live: dict[str, Live]) -> None:
        self._store = store
        self._live = live
        self._written: dict[str, Progress] = {}
        super().__init__("progress", _PROGRESS_INTERVAL, self._write)

    def _write(self) -> None:
        now = dict(self._live)
        news = [(each.job, each.progress) for key, each in now.items() if self._written.get(key) != each.progress]
        try:
            if news:
                self._store.save_progress(news)
        except StorageFailed as error:
            log.warning("progress_not_stored", error=error.detail)
            return
        self._written = {key: each.progress for key, each in now.items()}
