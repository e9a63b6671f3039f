"""Every ETA: of a running job, of a waiting job, and of a free place in the queue (`Retry-After`).

All times are seconds by one monotonic clock, which the caller injects. Knows no threads, no store and no engine.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from models import Progress, Stage

Kind = tuple[str, str]  # model and method names: jobs of one kind take about equally long
Place = tuple[Stage, str | None]  # a stage, and in a comparison the method

_EXTRAPOLATE_FROM = 0.05  # share of a stage from which its elapsed time corrects what is expected of its rest
_MEMORY = 0.3  # of a job's expected seconds, after which a stage's earlier pace counts a third
_OVERDUE = 2.0  # seconds a job may exceed its ETA at least before the ETA is withdrawn
_SMOOTHING = 0.2  # weight of the newest duration in an exponential moving average
_MAX_KINDS = 1000  # kinds whose durations are remembered
_QUEUE_MAX_AGE = 1.0  # seconds for which a count of the waiting jobs is reused


@dataclass(frozen=True)
class _Stretch:
    """The reports about one stage of one method, from its first with these expectations."""

    place: Place
    began_at: float
    fraction: float  # of the job, at the first report
    share: float  # of the stage's steps, at the first report
    expected: float | None  # seconds until the job ends, at the first report
    pace_before: float  # real seconds for an expected one, as of the stages before
    reported_at: float
    left: float | None  # expected seconds until the job ends, at `reported_at`
    # Real and expected seconds so far, the recent ones with more weight: other jobs come and go on a machine.
    taken: float = 0.0
    done: float = 0.0

    @classmethod
    def beginning(cls, progress: Progress, now: float, pace: float) -> _Stretch:
        """Return the stretch that begins with this report."""
        expected = progress.eta_seconds
        place, share = _place_of(progress), _share_of(progress)
        return cls(place, now, progress.fraction, share, expected, pace, reported_at=now, left=expected)

    def after(self, progress: Progress, now: float) -> _Stretch:
        """Return the stretch after one more report."""
        left, taken, done = progress.eta_seconds, self.taken, self.done
        if left is None or not self.expected or self.left is None:
            return self
        kept = math.exp((left - self.left) / (_MEMORY * self.expected)) if left < self.left else 1.0
        taken, done = kept * taken + now - self.reported_at, kept * done + max(0.0, self.left - left)
        return replace(self, reported_at=now, left=left, taken=taken, done=done)

    @property
    def pace(self) -> float | None:
        """Real seconds for an expected one in this stage; None before anything of it is done."""
        return self.taken / self.done if self.done > 0 else None

    def seconds_left(self, progress: Progress, now: float) -> tuple[float | None, float]:
        """Return the seconds until the job ends, and the pace with which the next stage begins."""
        if self.left is None or self.expected is None:
            return self._extrapolated(progress, now - self.began_at), self.pace_before
        share, pace = _share_of(progress), self.pace
        if pace is None or share <= self.share or (share - self.share) / (1 - self.share) < _EXTRAPOLATE_FROM:
            return self.left * self.pace_before, self.pace_before
        # Of this stage, as expected.
        rest = min(self.left, (self.expected - self.left) * (1 - share) / (share - self.share))
        # A busy machine slows all stages alike; another error of this stage's expectation says nothing of the others.
        others = max(1.0, math.sqrt(pace))
        return pace * rest + others * (self.left - rest), others

    def _extrapolated(self, progress: Progress, elapsed: float) -> float | None:
        """Return the seconds until attributing is done where nothing is expected; None before its first step."""
        if progress.stage is not Stage.ATTRIBUTING or progress.fraction <= self.fraction:
            return progress.eta_seconds
        done = (progress.fraction - self.fraction) / (1 - self.fraction)
        return elapsed * (1 - done) / done


@dataclass(frozen=True)
class RunningEta:
    """The ETA of one running job as of its latest progress report, and what the next one is computed from."""

    kind: Kind
    started_at: float
    reported_at: float
    seconds_left: float | None = None  # at `reported_at`
    stretch: _Stretch | None = None
    pace: float = 1.0

    @classmethod
    def of_new(cls, kind: Kind, now: float) -> RunningEta:
        """Return the ETA of a job that starts now and has reported nothing."""
        return cls(kind, started_at=now, reported_at=now)

    def updated(self, progress: Progress, now: float) -> RunningEta:
        """Return the ETA after this report.

        `progress.eta_seconds` is what the engine expects of the rest, or None; it is corrected by the time that the
        present stage takes.
        """
        stretch = self.stretch
        is_other = stretch is None or stretch.place != _place_of(progress)
        if stretch is None or is_other or (stretch.expected is None) != (progress.eta_seconds is None):
            stretch = _Stretch.beginning(progress, now, self.pace)
        else:
            stretch = stretch.after(progress, now)
        left, pace = stretch.seconds_left(progress, now)
        return replace(
            self,
            reported_at=now,
            seconds_left=None if left is None else round(left, 3),
            stretch=stretch,
            pace=pace,
        )


def _place_of(progress: Progress) -> Place:
    return progress.stage, progress.method


def _share_of(progress: Progress) -> float:
    """Return the share of a stage's steps that are done; 0 for a stage without steps."""
    return progress.steps_done / progress.steps_total if progress.steps_total else 0.0


class JobDurations:
    """Moving averages of the seconds that completed jobs ran, for each kind and over all kinds. Safe for threads."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._means: dict[Kind, float] = {}
        self._overall: float | None = None

    def add(self, kind: Kind, seconds: float) -> None:
        """Learn that a job of this kind completed after running for so many seconds."""
        with self._guard:
            self._means[kind] = _moving_average(self._means.pop(kind, None), seconds)
            self._overall = _moving_average(self._overall, seconds)
            while len(self._means) > _MAX_KINDS:
                del self._means[next(iter(self._means))]

    def typical(self, kind: Kind) -> float | None:
        """Return the mean seconds of this kind; the overall mean if unknown; None before any job has completed."""
        return self._means.get(kind, self._overall)

    def overall(self) -> float | None:
        """Return the mean seconds over all kinds; None before any job has completed."""
        return self._overall

    def mean_of(self, waiting: Mapping[Kind, int]) -> float | None:
        """Return the mean seconds of these jobs, given as a count for each kind; None before any has completed."""
        total, count = 0.0, 0
        for kind, number in waiting.items():
            seconds = self.typical(kind)
            if seconds is None:
                return None
            total, count = total + number * seconds, count + number
        return total / count if count else self._overall


def _moving_average(mean: float | None, value: float) -> float:
    return value if mean is None else mean + _SMOOTHING * (value - mean)


class EtaEstimator:
    """Computes ETAs from the running jobs, the waiting jobs and the durations of completed jobs.

    workers: jobs that can run at once, over all devices. running: returns the ETA state of each running job.
    waiting: returns how many jobs of each kind wait. clock: monotonic seconds.
    """

    def __init__(
        self,
        workers: int,
        running: Callable[[], Iterable[RunningEta]],
        waiting: Callable[[], Mapping[Kind, int]],
        clock: Callable[[], float],
    ) -> None:
        self._workers = workers
        self._running = running
        self._waiting = waiting
        self._clock = clock
        self._waiting_cache: tuple[float, Mapping[Kind, int]] = (-math.inf, {})  # when it was read, and the counts
        self.durations = JobDurations()

    def of_running(self, job: RunningEta) -> float | None:
        """Return the seconds until a running job ends: as last reported, else typical, less the time since then.

        None if neither is known, and None for a job that is overdue: no estimate is possible any more.
        """
        expected, since = job.seconds_left, job.reported_at
        if expected is None:
            expected, since = self.durations.typical(job.kind), job.started_at
        if expected is None:
            return None
        left = expected - (self._clock() - since)
        return None if left < -max(expected, _OVERDUE) else round(max(0.0, left), 3)

    def of_waiting(self, kind: Kind, ahead: int) -> float | None:
        """Return the seconds until a job of this kind with `ahead` jobs before it ends; None if unknown."""
        wait, run = self.until_start(ahead), self.durations.typical(kind)
        return None if wait is None or run is None else round(wait + run, 3)

    def until_start(self, ahead: int) -> float | None:
        """Return the seconds until a worker takes a job that has `ahead` waiting jobs before it; None if unknown."""
        left = self._seconds_left()
        if not ahead and len(left) < self._workers:
            return 0.0
        known = [each for each in left if each is not None]
        # A running job without an ETA counts like the mean of those that have one.
        running = sum(known) / len(known) * len(left) if known else self.durations.overall()
        mean = self.durations.mean_of(self._waiting_counts()) if ahead else 0.0
        if running is None or mean is None:
            return None
        if not ahead:
            return min(known, default=running / max(1, len(left)))  # the first job that ends frees a worker
        return (running + ahead * mean) / self._workers

    def retry_after(self) -> int:
        """Return the whole seconds, at least 1, until the next running job should end and a place becomes free."""
        known = [each for each in self._seconds_left() if each is not None]
        return max(1, math.ceil(min(known, default=1.0)))

    def _seconds_left(self) -> list[float | None]:
        return [self.of_running(job) for job in self._running()]

    def _waiting_counts(self) -> Mapping[Kind, int]:
        now = self._clock()
        if now - self._waiting_cache[0] > _QUEUE_MAX_AGE:
            self._waiting_cache = (now, self._waiting())
        return self._waiting_cache[1]
