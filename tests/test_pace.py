"""When a waiting job will begin and end, by what jobs took that ended; with a clock that the test moves."""

from __future__ import annotations

import threading

import pytest

from job_manager import JobManager
from jobs.store.job_store import JobStore
from jobs.waiting_time import Pace
from models import JobStatus, Progress, ResultPart, Stage
from tests.fake_engine import request
from tests.serving import until

A, B = ("m", "saliency"), ("m", "lime")


def test_nothing_is_told_before_a_job_has_ended():
    pace = Pace()
    assert pace.typical(A) is None
    assert pace.wait(0, {}, [], workers=1) == 0.0
    assert pace.wait(2, {A: 3}, [None], workers=1) is None


def test_the_wait_is_what_is_left_and_what_is_before():
    pace = Pace()
    pace.ended(A, 10.0)
    pace.ended(B, 2.0)
    assert (pace.typical(A), pace.typical(B)) == (10.0, 2.0)
    assert pace.typical(("other", "x")) == pytest.approx(10 + 0.2 * (2 - 10))  # as all jobs do
    assert pace.wait(0, {A: 1}, [4.0], workers=1) == 4.0
    assert pace.wait(0, {A: 1}, [4.0], workers=2) == 0.0
    assert pace.wait(4, {A: 2, B: 2}, [4.0], workers=1) == pytest.approx(4 + 4 * 6)
    assert pace.wait(4, {A: 2, B: 2}, [4.0, None], workers=2) == pytest.approx((8 + 24) / 2)


def test_a_job_that_changes_its_pace_is_followed():
    pace = Pace()
    for _ in range(30):
        pace.ended(A, 1.0)
    for _ in range(30):
        pace.ended(A, 5.0)
    assert pace.typical(A) == pytest.approx(5.0, rel=0.01)


def test_the_eta_of_a_job_counts_down_to_its_end(tmp_path):
    now, gate, entered = [100.0], threading.Event(), threading.Event()

    def run(request, *, device, report, should_cancel, offer_partial):
        report(Progress(stage=Stage.LOADING_MODEL))
        if request.inputs == ["hold"]:
            entered.set()
            gate.wait(120)
        else:
            now[0] += 10.0
        return [ResultPart("raw", "text", b"x")]

    store = JobStore(tmp_path)
    manager = JobManager(store, run, devices=["cpu"], clock=lambda: now[0])
    manager.start()
    try:
        first = manager.submit(request("first"))
        until(lambda: manager.get(first.job_id).status is JobStatus.COMPLETED)
        held = manager.submit(request("hold"))
        assert entered.wait(120)
        waiting = [manager.submit(request("later")) for _ in range(3)]
        now[0] += 2.0  # and what waits is counted anew
        etas = [manager.get(job.job_id) for job in (held, *waiting)]
        assert [job.queue_position for job in etas] == [None, 0, 1, 2]
        assert [job.progress.eta_seconds for job in etas] == [8.0, 18.0, 28.0, 38.0]
        assert manager.seconds_until_run("", 0) == pytest.approx(38.0)
        assert manager.seconds_until_run("", 5) == pytest.approx(8.0)  # a higher priority goes first
        now[0] += 3.0
        assert manager.get(waiting[-1].job_id).progress.eta_seconds == 35.0
        gate.set()
        until(lambda: manager.get(waiting[-1].job_id).status is JobStatus.COMPLETED)
        assert manager.get(waiting[-1].job_id).progress.eta_seconds is None
        until(lambda: manager.seconds_until_run("", 0) == 0.0)  # as soon as its worker has put it away
    finally:
        gate.set()
        manager.stop(5)
        store.close()
