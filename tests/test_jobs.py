"""The lifecycle of jobs over HTTP, with the fake engine."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from fastapi.testclient import TestClient

from job_manager import JobManager
from jobs import workers
from jobs.store.job_store import JobStore
from jobs.store.records import ALL_OWNERS
from jobs.store.result_files import ResultFiles
from main import create_app
from models import JobStatus, Stage
from problems import StorageFailed
from settings import Settings
from tests.fake_engine import LOCAL, FakeEngine, body, ended, request, submit, until_running
from tests.serving import until


def test_a_worker_outlives_every_kind_of_failure(app):
    ids = [app.post("/attribution/jobs", json=body(text)).json()["job_id"] for text in ("fail", "raise", "hello")]
    failed, raised, done = (ended(app, job_id) for job_id in ids)
    assert failed["error"]["detail"] == "The text says fail."
    assert failed["error"]["status"] == 422
    assert raised["error"]["type"] == "/problems/attribution-failed"
    assert raised["error"]["detail"] == "ZeroDivisionError: division by zero"
    assert done["status"] == "completed"
    assert app.get(done["links"]["results"]).json() == {"text": "hello", "seed": 0}


def test_queue_position_progress_and_results_that_are_not_there_yet(app):
    running, first, second = (submit(app, text) for text in ("hold", "sleep:0", "hello"))
    until_running(app, running)
    job = app.get(f"/attribution/jobs/{running}")
    assert job.headers["retry-after"] == "1"
    assert job.json()["status"] == "running"
    progress = job.json()["progress"]
    assert (progress["stage"], progress["steps_done"], progress["steps_total"]) == ("attributing", 1, 4)
    assert progress["eta_seconds"] is not None
    positions = [app.get(f"/attribution/jobs/{job_id}").json()["queue_position"] for job_id in (running, first, second)]
    assert positions == [None, 0, 1]
    early = app.get(f"/attribution/jobs/{second}/results")
    assert early.status_code == 409
    assert early.headers["retry-after"] == "1"
    assert early.json()["type"] == "/problems/result-not-ready"
    app.app.state.services.engine.go_on.set()
    assert ended(app, second)["status"] == "completed"


def test_a_job_that_has_ended_needs_no_more_time(app):
    """Whatever it expected when it ended: a cancelled or failed one had steps to do."""
    running = submit(app, "hold")
    until_running(app, running)
    waiting = submit(app, "hello")
    assert app.get(f"/attribution/jobs/{running}").json()["progress"]["eta_seconds"] is not None
    for each in (waiting, running):
        app.post(f"/attribution/jobs/{each}/cancel")
    for job_id in (running, waiting, submit(app, "fail"), submit(app, "hello")):
        assert ended(app, job_id)["progress"]["eta_seconds"] is None
    assert {each["progress"]["eta_seconds"] for each in app.get("/attribution/jobs").json()["jobs"]} == {None}


@pytest.mark.parametrize("ask", [{"params": {"wait": 60}}, {"headers": {"Prefer": "wait=60"}}])
def test_waiting_for_the_end_of_a_job(app, ask):
    job_id = submit(app, "sleep:0.4")
    began = time.monotonic()
    assert app.get(f"/attribution/jobs/{job_id}", **ask).json()["status"] == "completed"
    assert time.monotonic() - began < 50
    assert app.get(f"/attribution/jobs/{job_id}", **ask).json()["status"] == "completed"  # immediately


def test_waiting_no_longer_than_asked(app):
    job_id = submit(app, "hold")
    until_running(app, job_id)
    answer = app.get(f"/attribution/jobs/{job_id}", params={"wait": 0.2})
    assert answer.json()["status"] == "running"
    assert answer.headers["retry-after"] == "1"
    assert app.get(f"/attribution/jobs/{job_id}", params={"wait": 61}).status_code == 422
    assert app.get("/attribution/jobs/nope", params={"wait": 5}).status_code == 404
    assert app.app.state.services.watch.watchers == 0


def test_waiting_clients_cost_no_thread(app):
    job_id = submit(app, "hold")
    with ThreadPoolExecutor(100) as pool:
        waiting = [pool.submit(app.get, f"/attribution/jobs/{job_id}", params={"wait": 60}) for _ in range(100)]
        until(lambda: app.app.state.services.watch.watchers == 100)
        # If waiting clients occupied Starlette's 40 threads, this request would wait for the end of the job.
        assert app.get("/attribution/methods").status_code == 200
        assert not any(each.done() for each in waiting)
        app.app.state.services.engine.go_on.set()
        assert {each.result().json()["status"] for each in waiting} == {"completed"}


def test_torchs_threads_are_divided_among_the_workers(tmp_path, monkeypatch):
    engine = FakeEngine()
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    with TestClient(create_app(Settings(data_dir=tmp_path, workers_per_device=3), engine), LOCAL) as client:
        assert (
            ended(client, client.post("/attribution/jobs", json=body("hello")).json()["job_id"])["status"]
            == "completed"
        )
    assert engine.threads == 2


def test_many_clients_are_answered_while_every_worker_is_busy(app):
    running = submit(app, "hold")
    until_running(app, running)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: app.post("/attribution/jobs", json=body("hello")).status_code, range(64)))
    assert answers == [202] * 64
    assert app.get(f"/attribution/jobs/{running}").json()["status"] == "running"


def test_shutdown_puts_running_jobs_back(tmp_path):
    store = JobStore(tmp_path)
    engine = FakeEngine()
    manager = JobManager(store, engine.run, devices=["cpu"])
    manager.start()
    job = manager.submit(request("forever"))
    until(lambda: manager.get(job.job_id, ALL_OWNERS).progress.stage is Stage.ATTRIBUTING)
    manager.stop(grace=0.1)
    after = store.get(job.job_id, ALL_OWNERS)
    assert (after.status, after.attempt) == (JobStatus.PENDING, 0)
    assert not any(thread.is_alive() for thread in manager._workers._threads)
    store.close()


def test_a_full_disk_fails_no_other_job(tmp_path, monkeypatch):
    """A job fails if its result cannot be stored in time; in `test_disk`, the disk has room again in time."""
    monkeypatch.setattr(workers, "_STORE_PATIENCE", 0.0)
    engine = FakeEngine()
    with TestClient(create_app(Settings(data_dir=tmp_path), engine), LOCAL) as client:
        original = ResultFiles._write
        monkeypatch.setattr(ResultFiles, "_write", lambda *_: (_ for _ in ()).throw(StorageFailed("No space left.")))
        job = ended(client, client.post("/attribution/jobs", json=body("hello")).json()["job_id"])
        assert job["error"]["type"] == "/problems/storage-failed"
        monkeypatch.setattr(ResultFiles, "_write", original)
        assert (
            ended(client, client.post("/attribution/jobs", json=body("hello")).json()["job_id"])["status"]
            == "completed"
        )


def test_an_unexpected_error_is_a_problem_with_an_id_and_no_traceback(tmp_path, capsys):
    engine = FakeEngine()
    engine.methods = lambda: 1 / 0
    with TestClient(create_app(Settings(data_dir=tmp_path), engine), LOCAL) as client:
        answer = client.get("/attribution/methods")
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"] == "/problems/internal-error"
    assert "ZeroDivisionError" not in answer.text
    logged = capsys.readouterr().out
    assert "ZeroDivisionError" in logged
    assert answer.headers["x-request-id"] in logged
