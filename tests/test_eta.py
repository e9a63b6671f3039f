"""ETAs of running jobs, of waiting jobs and of a free place in the queue, with a clock that the test sets."""

from __future__ import annotations

import threading

import pytest

from job_manager import JobManager
from jobs.eta import EtaEstimator, JobDurations, RunningEta
from jobs.store.job_store import JobStore
from jobs.store.records import ALL_OWNERS
from models import JobStatus, Progress, ResultPart, Stage
from tests.fake_engine import request
from tests.serving import until

A, B = ("m", "saliency"), ("m", "lime")


class Clock:
    """A clock that only the test advances."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def estimator(clock, *running, workers=1, waiting=None):
    return EtaEstimator(workers, lambda: running, lambda: waiting or {}, clock)


def running_for(seconds_left, kind=A, now=100.0):
    """A job that reported an ETA at `now`."""
    return RunningEta.of_new(kind, now).updated(Progress(stage=Stage.LOADING_MODEL, eta_seconds=seconds_left), now)


class Job:
    """Reports the progress of one job and returns its ETAs."""

    def __init__(self, clock):
        self.clock, self.estimator = clock, estimator(clock)
        self.eta = RunningEta.of_new(A, clock.now)

    def reports(self, stage=Stage.ATTRIBUTING, fraction=0.0, *, prior=None, after=0.0, share=None):
        """Report progress `after` seconds; returns the ETA. `share`: of the stage, by default as of the job."""
        self.clock.now += after
        steps = {"steps_done": round(1000 * (fraction if share is None else share)), "steps_total": 1000}
        progress = Progress(stage=stage, fraction=fraction, eta_seconds=prior, **steps)
        self.eta = self.eta.updated(progress, self.clock.now)
        return self.estimator.of_running(self.eta)

    def after(self, seconds):
        """The ETA that many seconds later, without a new report."""
        self.clock.now += seconds
        return self.estimator.of_running(self.eta)


# A running job


def test_the_prior_holds_until_enough_is_done_to_extrapolate(clock):
    job = Job(clock)
    assert job.reports(prior=50.0) == 50.0
    assert job.after(2) == 48.0
    assert job.reports(fraction=0.04, prior=48.0, after=2) == 48.0  # from the prior; extrapolated it would be 4 s * 24
    assert job.reports(fraction=0.05, prior=47.5, after=1) == pytest.approx(5 * 0.95 / 0.05)
    # Of the last 22.5 s expected, 5 s were taken, and of all 25 s 10: the recent pace counts more.
    assert 25 * 5 / 22.5 < (left := job.reports(fraction=0.5, prior=25.0, after=5)) < 25 * 10 / 25
    assert job.after(4) == pytest.approx(left - 4)
    assert job.reports(fraction=1.0, prior=0.0, after=4) == 0.0


def test_each_stage_corrects_its_own_rest_and_half_of_the_others(clock):
    """Generating takes four times as long as expected: half of that, on the logarithmic scale, is held to be the load."""
    job = Job(clock)
    assert job.reports(Stage.GENERATING, 0.0, prior=30.0, share=0.0) == 30.0
    assert job.reports(Stage.GENERATING, 0.01, prior=29.9, share=0.01, after=0.4) == 29.9  # too early
    # 5 s expected, 20 s taken for half of the stage: 5 s of it are left at pace 4, and 20 s of others at pace 2.
    assert job.reports(Stage.GENERATING, 0.2, prior=25.0, share=0.5, after=19.6) == pytest.approx(4 * 5 + 2 * 20)
    # The next stage begins at that pace, until its own is known.
    assert job.reports(fraction=0.4, prior=20.0, share=0.0, after=20) == pytest.approx(2 * 20)
    assert job.reports(fraction=0.7, prior=10.0, share=0.5, after=10) == pytest.approx(10.0)


def test_without_steps_the_expected_time_holds(clock):
    """Nobody knows how far such a stage is."""
    job = Job(clock)
    for prior in (10.0, 8.0):
        progress = Progress(stage=Stage.CHECKING, fraction=0.5, eta_seconds=prior)
        job.eta = job.eta.updated(progress, clock.now)
        assert job.estimator.of_running(job.eta) == prior
        clock.now += 100


def test_without_a_prior_the_first_step_is_extrapolated(clock):
    job = Job(clock)
    assert job.reports() is None
    assert job.reports(fraction=0.01, after=1) == pytest.approx(99.0)


def test_only_time_and_fraction_since_attributing_began_count(clock):
    job = Job(clock)
    job.reports(Stage.LOADING_MODEL)
    job.reports(Stage.GENERATING, after=100)
    job.reports(fraction=0.2, after=100)  # attributing may begin at a fraction above 0, as in a comparison
    assert job.reports(fraction=0.6, after=3) == pytest.approx(3.0)
    job.reports(Stage.PREPARING, fraction=0.6, after=1)
    job.reports(fraction=0.6, after=1000)  # time spent preparing is not extrapolated
    assert job.reports(fraction=0.8, after=2) == pytest.approx(2.0)


def test_a_job_that_starts_again_is_extrapolated_anew(clock):
    """After running out of memory, the engine attributes from the start again, so extrapolation restarts."""
    job = Job(clock)
    job.reports()
    job.reports(fraction=0.9, after=9)
    job.reports(Stage.LOADING_MODEL)
    job.reports(fraction=0.0, after=50)
    assert job.reports(fraction=0.25, after=1) == pytest.approx(3.0)


def test_in_other_stages_the_eta_is_the_engines_or_else_typical_of_such_jobs(clock):
    job = Job(clock)
    assert job.reports(Stage.LOADING_MODEL) is None
    job.estimator.durations.add(A, 10.0)
    assert job.after(4) == 6.0
    assert job.reports(Stage.GENERATING, prior=3.0) == 3.0


def test_an_overdue_job_has_no_eta(clock):
    job = Job(clock)
    job.reports(prior=10.0)
    assert job.after(15) == 0.0
    assert job.after(6) is None  # twice the ETA
    job.reports(prior=0.5)
    assert job.after(2.4) == 0.0  # up to two seconds beyond a short ETA
    assert job.after(0.2) is None


# How long jobs take


def test_durations_are_unknown_before_a_job_has_completed():
    durations = JobDurations()
    assert durations.typical(A) is None
    assert durations.overall() is None
    assert durations.mean_of({A: 3}) is None


def test_durations_are_kept_by_kind_and_over_all():
    durations = JobDurations()
    durations.add(A, 10.0)
    durations.add(B, 2.0)
    assert (durations.typical(A), durations.typical(B)) == (10.0, 2.0)
    assert durations.typical(("other", "x")) == pytest.approx(10 + 0.2 * (2 - 10))  # unknown kind: the overall mean
    assert durations.mean_of({A: 1, B: 3}) == 4.0


def test_a_change_of_durations_is_followed():
    durations = JobDurations()
    for _ in range(30):
        durations.add(A, 1.0)
    for _ in range(30):
        durations.add(A, 5.0)
    assert durations.typical(A) == pytest.approx(5.0, rel=0.01)


# A waiting job, and a free place


def test_a_job_starts_at_once_if_a_worker_is_free(clock):
    assert estimator(clock).until_start(0) == 0.0
    assert estimator(clock, running_for(4.0), workers=2).until_start(0) == 0.0
    assert estimator(clock, running_for(None), waiting={A: 3}).until_start(2) is None  # no job has completed yet


def test_a_job_waits_for_running_jobs_and_for_those_before_it(clock):
    def eta(*left, workers):
        found = estimator(clock, *map(running_for, left), workers=workers, waiting={A: 2, B: 2})
        found.durations.add(A, 10.0)
        found.durations.add(B, 2.0)
        return found

    assert eta(4.0, workers=1).until_start(0) == 4.0
    assert eta(4.0, workers=1).until_start(4) == pytest.approx(4 + 4 * 6)
    assert eta(4.0, 9.0, workers=2).until_start(0) == 4.0  # one worker is free when the first job ends
    assert eta(4.0, workers=1).of_waiting(B, 4) == pytest.approx(4 + 4 * 6 + 2)
    # For a running job without an ETA, the mean of its kind is used: 10 s.
    assert eta(4.0, None, workers=2).until_start(4) == pytest.approx((14 + 4 * 6) / 2)


def test_the_queue_is_counted_at_most_once_a_second(clock):
    reads = []
    found = EtaEstimator(1, list, lambda: reads.append(1) or {A: 1}, clock)
    for _ in range(5):
        found.until_start(1)
    assert len(reads) == 1
    clock.now += 1.1
    found.until_start(1)
    assert len(reads) == 2


def test_a_full_queue_has_a_place_when_the_next_job_ends(clock):
    assert estimator(clock, running_for(7.2), running_for(30.0), running_for(None)).retry_after() == 8
    assert estimator(clock, running_for(0.0)).retry_after() == 1
    assert estimator(clock, running_for(None)).retry_after() == 1


# In the manager


def test_the_eta_of_a_job_counts_down_to_its_end(tmp_path, clock):
    gate, entered = threading.Event(), threading.Event()

    def run(request, *, device, report, should_cancel, offer_partial):
        report(Progress(stage=Stage.LOADING_MODEL))
        if request.inputs == ["hold"]:
            entered.set()
            gate.wait(120)
        else:
            clock.now += 10.0
        return [ResultPart("raw", "text", b"x")]

    store = JobStore(tmp_path)
    manager = JobManager(store, run, devices=["cpu"], clock=clock)
    manager.start()
    try:
        first = manager.submit(request("first"))
        until(lambda: manager.get(first.job_id, ALL_OWNERS).status is JobStatus.COMPLETED)
        held = manager.submit(request("hold"))
        assert entered.wait(120)
        waiting = [manager.submit(request("later")) for _ in range(3)]
        clock.now += 2.0  # more than a second, so the queue is counted again
        etas = [manager.get(job.job_id, ALL_OWNERS) for job in (held, *waiting)]
        assert [job.queue_position for job in etas] == [None, 0, 1, 2]
        assert [job.progress.eta_seconds for job in etas] == [8.0, 18.0, 28.0, 38.0]
        assert manager.seconds_until_run("", 0) == pytest.approx(38.0)
        assert manager.seconds_until_run("", 5) == pytest.approx(8.0)  # a higher priority goes first
        clock.now += 3.0
        assert manager.get(waiting[-1].job_id, ALL_OWNERS).progress.eta_seconds == 35.0
        gate.set()
        until(lambda: manager.get(waiting[-1].job_id, ALL_OWNERS).status is JobStatus.COMPLETED)
        assert manager.get(waiting[-1].job_id, ALL_OWNERS).progress.eta_seconds is None
        until(lambda: manager.seconds_until_run("", 0) == 0.0)  # once its worker is free
    finally:
        gate.set()
        manager.stop(5)
        store.close()
