"""Durable jobs: their life, crashes, recovery and shutdown. With an engine that needs no torch, except at the end."""

from __future__ import annotations

import random
import sqlite3
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

import job_store
from job_manager import JobManager
from job_store import JobStore
from main import create_app
from models import AttributionRequest, JobStatus, Problem, Progress, ResultPart, Stage
from problems import StorageFailed
from settings import Settings
from tests import reference
from tests.conftest import BUNDLED, LOOKUP, PHRASEBOOK, PROMPT, SENTENCE
from tests.fake_engine import FakeEngine
from tests.serving import Server

ERROR = Problem(title="Failed", status=500, detail="because")
LOCAL = "http://127.0.0.1"  # a name that the server answers to
PARTS = [ResultPart("raw", "text", b"raw"), ResultPart("summary", "text", b"summary")]


def request(text="hello", model="m"):
    return AttributionRequest(model=model, method="saliency", input_text=text)


@pytest.fixture
def store(tmp_path):
    store = JobStore(tmp_path)
    yield store
    store.close()


def body(text, **more):
    return {"model": "m", "method": "saliency", "input_text": text, **more}


@pytest.fixture
def app(tmp_path):
    with TestClient(create_app(Settings(data_dir=tmp_path), FakeEngine()), LOCAL) as client:
        yield client


def ended(client, job_id, timeout=20):
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        job = client.get(f"/attribution/jobs/{job_id}").json()
        if JobStatus(job["status"]).is_terminal:
            return job
        time.sleep(0.01)
    raise AssertionError(job)


# The store


def test_accepting_a_job_is_a_full_sync(store):
    with store._engine.connect() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in ("journal_mode", "synchronous")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2}  # 2 is FULL


def test_jobs_are_claimed_once_in_order_and_busy_models_last(store):
    ids = [store.add(request(model=model)).job_id for model in ("a", "a", "b")]
    assert store.claim(busy_models=["a"]).job_id == ids[2]
    with ThreadPoolExecutor(8) as pool:
        claimed = list(pool.map(lambda _: store.claim(), range(8)))
    assert sorted(job.job_id for job in claimed if job) == sorted(ids[:2])


def test_a_finished_attempt_cannot_finish_again(store):
    store.add(request())
    first = store.claim()
    assert [job.job_id for job in store.recover(3, lambda job: ERROR)] == [first.job_id]
    second = store.claim()
    assert (first.attempt, second.attempt) == (1, 2)
    assert store.complete(first, PARTS, Progress()) is False  # the attempt before the crash comes too late
    assert store.files(first.job_id) == {}
    assert store.complete(second, PARTS, Progress()) is True
    assert store.fail(second, ERROR) is False
    assert store.requeue(second) is False
    assert store.get(second.job_id).status is JobStatus.COMPLETED
    assert store.read(store.files(second.job_id)["raw"]) == b"raw"


def test_a_damaged_result_is_told_and_not_served(store, tmp_path):
    store.add(request())
    job = store.claim()
    store.complete(job, PARTS, Progress())
    stored = store.files(job.job_id)["raw"]
    (tmp_path / "results" / stored.name).write_bytes(b"rax")
    with pytest.raises(StorageFailed, match="damaged"):
        store.read(stored)
    (tmp_path / "results" / stored.name).unlink()
    with pytest.raises(StorageFailed, match="cannot be read"):
        store.read(stored)


def test_files_of_a_dead_attempt_are_swept(tmp_path):
    store = JobStore(tmp_path)
    store.add(request())
    job = store.claim()
    store._write_file(job, PARTS[0])  # the process dies here, before the row
    (tmp_path / "results" / ".x.part").write_bytes(b"half")
    store.close()
    store = JobStore(tmp_path)
    assert list((tmp_path / "results").iterdir()) == []
    store.close()


def test_one_server_per_data_directory(store, tmp_path):
    with pytest.raises(StorageFailed, match="Another server"):
        JobStore(tmp_path)


def test_a_store_of_a_newer_version_is_refused_and_kept(tmp_path):
    JobStore(tmp_path).close()
    with sqlite3.connect(tmp_path / "jobs.sqlite3") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StorageFailed, match="newer version"):
        JobStore(tmp_path)
    with sqlite3.connect(tmp_path / "jobs.sqlite3") as connection:
        assert connection.execute("SELECT count(*) FROM jobs").fetchone() == (0,)


def test_the_migrations_make_the_tables_that_the_store_uses(store):
    inspector = sa.inspect(store._engine)
    for table in job_store.metadata.sorted_tables:
        assert {column["name"] for column in inspector.get_columns(table.name)} == set(table.columns.keys())
    with store._engine.connect() as connection:
        version = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar_one()
    assert version == job_store.schema_version()


class StoreMachine(RuleBasedStateMachine):
    """Any order of calls on the store against a dictionary that says what should be."""

    jobs = Bundle("jobs")

    @initialize()
    def open(self):
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name)
        self.store = JobStore(self.path)
        self.expected: dict[str, JobStatus] = {}
        self.held: dict[str, object] = {}
        self.attempts: dict[str, int] = {}

    @rule(target=jobs)
    def add(self):
        job = self.store.add(request())
        self.expected[job.job_id], self.attempts[job.job_id] = JobStatus.PENDING, 0
        return job.job_id

    @rule()
    def claim(self):
        waiting = [job_id for job_id, status in self.expected.items() if status is JobStatus.PENDING]
        job = self.store.claim()
        assert (job.job_id if job else None) == (waiting[0] if waiting else None)
        if job:
            self.attempts[job.job_id] += 1
            assert job.attempt == self.attempts[job.job_id]
            self.expected[job.job_id], self.held[job.job_id] = JobStatus.RUNNING, job

    @rule(job_id=jobs, ending=st.sampled_from(["complete", "fail", "requeue"]))
    def end(self, job_id, ending):
        job = self.held.get(job_id)
        if job is None:
            return
        running = self.expected[job_id] is JobStatus.RUNNING and job.attempt == self.attempts[job_id]
        if ending == "complete":
            moved, after = self.store.complete(job, PARTS, Progress()), JobStatus.COMPLETED
        elif ending == "fail":
            moved, after = self.store.fail(job, ERROR), JobStatus.FAILED
        else:
            moved, after = self.store.requeue(job), JobStatus.PENDING
        assert moved == running
        if moved:
            self.expected[job_id] = after
            self.attempts[job_id] -= after is JobStatus.PENDING

    @rule()
    def crash(self):
        self.store.close()
        self.store = JobStore(self.path)
        self.store.recover(2, lambda job: ERROR)
        for job_id, status in self.expected.items():
            if status is JobStatus.RUNNING:
                self.expected[job_id] = JobStatus.PENDING if self.attempts[job_id] < 2 else JobStatus.FAILED

    @invariant()
    def the_store_agrees(self):
        for job_id, status in self.expected.items():
            assert self.store.get(job_id).status is status
            assert bool(self.store.files(job_id)) == (status is JobStatus.COMPLETED)

    def teardown(self):
        self.store.close()
        self.folder.cleanup()


TestStore = StoreMachine.TestCase
TestStore.settings = hypothesis_settings(max_examples=25, stateful_step_count=25, deadline=None)


# The manager, behind HTTP


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
    running, first, second = [
        app.post("/attribution/jobs", json=body(text)).json()["job_id"] for text in ("sleep:1.5", "sleep:0", "hello")
    ]
    time.sleep(0.5)
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
    assert ended(app, second)["status"] == "completed"


@pytest.mark.parametrize("ask", [{"params": {"wait": 20}}, {"headers": {"Prefer": "wait=20"}}])
def test_waiting_for_the_end_of_a_job(app, ask):
    job_id = app.post("/attribution/jobs", json=body("sleep:0.4")).json()["job_id"]
    began = time.monotonic()
    assert app.get(f"/attribution/jobs/{job_id}", **ask).json()["status"] == "completed"
    assert time.monotonic() - began < 15
    assert app.get(f"/attribution/jobs/{job_id}", **ask).json()["status"] == "completed"  # at once


def test_waiting_no_longer_than_asked(app):
    job_id = app.post("/attribution/jobs", json=body("sleep:5")).json()["job_id"]
    answer = app.get(f"/attribution/jobs/{job_id}", params={"wait": 0.2})
    assert answer.json()["status"] == "running"
    assert answer.headers["retry-after"] == "1"
    assert app.get(f"/attribution/jobs/{job_id}", params={"wait": 61}).status_code == 422
    assert app.get("/attribution/jobs/nope", params={"wait": 5}).status_code == 404
    assert app.app.state.ends._waiting == {}


def test_waiting_clients_cost_no_thread(app):
    job_id = app.post("/attribution/jobs", json=body("sleep:2")).json()["job_id"]
    with ThreadPoolExecutor(100) as pool:
        waiting = [pool.submit(app.get, f"/attribution/jobs/{job_id}", params={"wait": 30}) for _ in range(100)]
        time.sleep(1)
        held = [thread for thread in threading.enumerate() if thread.name.startswith("AnyIO worker")]
        assert len(held) <= 40  # Starlette's pool, idle by now, and answering others meanwhile:
        assert app.get("/health/live").status_code == 200
        assert {each.result().json()["status"] for each in waiting} == {"completed"}


def test_many_clients_are_answered_while_every_worker_is_busy(app):
    app.post("/attribution/jobs", json=body("sleep:3"))
    time.sleep(0.2)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: app.post("/attribution/jobs", json=body("hello")).status_code, range(64)))
    assert answers == [202] * 64


def test_shutdown_puts_running_jobs_back(tmp_path):
    store = JobStore(tmp_path)
    engine = FakeEngine()
    manager = JobManager(store, engine.run, devices=["cpu"])
    manager.start()
    job = manager.submit(request("forever"))
    while manager.get(job.job_id).progress.stage is not Stage.ATTRIBUTING:
        time.sleep(0.01)
    manager.stop(grace=0.1)
    after = store.get(job.job_id)
    assert (after.status, after.attempt) == (JobStatus.PENDING, 0)
    assert not any(thread.name.startswith("worker-") for thread in threading.enumerate())
    store.close()


def test_a_full_disk_fails_no_other_job(tmp_path, monkeypatch):
    engine = FakeEngine()
    with TestClient(create_app(Settings(data_dir=tmp_path), engine), LOCAL) as client:
        original = JobStore._write_file
        monkeypatch.setattr(JobStore, "_write_file", lambda *_: (_ for _ in ()).throw(StorageFailed("No space left.")))
        job = ended(client, client.post("/attribution/jobs", json=body("hello")).json()["job_id"])
        assert job["error"]["type"] == "/problems/storage-failed"
        monkeypatch.setattr(JobStore, "_write_file", original)
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


# Crashes of a real process


def fake_server(data_dir):
    return Server(data_dir, module="tests.fake_engine")


def test_a_job_that_kills_the_process_is_given_up(tmp_path):
    server = fake_server(tmp_path)
    server.start()
    killer = server.submit(**body("die"))
    for _ in range(2):
        server._process.wait(30)
        server.client.close()
        server.start()
    server._process.wait(30)
    server.start()
    job = server.wait(killer)
    assert job["attempt"] == 3
    assert job["error"]["type"] == "/problems/interrupted"
    assert server.result(server.run(**body("hello"))) == {"text": "hello", "seed": 0}
    assert server.stop() == 0


def test_sigterm_ends_cleanly_and_loses_nothing(tmp_path):
    with fake_server(tmp_path) as server:
        ids = [server.submit(**body(f"sleep:{0.2 + index % 3}")) for index in range(6)]
        time.sleep(0.5)
        assert server.stop() == 0
        server.start()
        assert {server.wait(job_id)["status"] for job_id in ids} == {"completed"}
        assert {server.job(job_id)["attempt"] for job_id in ids} == {1}


def chaos(server, rounds, submit, check, *, pause):
    """Submit from several threads while the process is killed again and again; then everything accepted is checked."""
    accepted: dict[str, object] = {}
    stop = threading.Event()
    rng = random.Random(5)

    def client(index):
        numbers = random.Random(index)
        while not stop.is_set():
            try:
                wanted = submit(numbers)
                answer = httpx.post(f"{server.url}/attribution/jobs", json=wanted, timeout=10)
                if answer.status_code == 202:
                    accepted[answer.json()["job_id"]] = wanted
            except httpx.HTTPError:
                time.sleep(0.05)  # killed under us: not accepted, as far as we know
            time.sleep(numbers.uniform(0, pause))

    clients = [threading.Thread(target=client, args=(index,)) for index in range(3)]
    server.start()
    for each in clients:
        each.start()
    for _ in range(rounds):
        time.sleep(rng.uniform(0.05, 6 * pause))
        server.kill()
        server.start()
    stop.set()
    for each in clients:
        each.join()
    try:
        assert len(accepted) > rounds
        for job_id, wanted in accepted.items():
            check(job_id, wanted)
    finally:
        server.stop()
    return accepted


def test_nothing_is_lost_when_the_process_is_killed_many_times(tmp_path):
    server = Server(tmp_path, module="tests.fake_engine")

    def check(job_id, wanted):
        job = server.wait(job_id)
        if job["status"] == "failed":  # it was running in three kills, as a poisonous job would have been
            assert job["error"]["type"] == "/problems/interrupted"
            assert job["attempt"] == 3
        else:
            assert server.result(job_id) == {"text": wanted["input_text"], "seed": wanted["seed"]}

    accepted = chaos(
        server, 10, lambda rng: body(f"sleep:{rng.uniform(0, 0.3):.3f}", seed=rng.randrange(1000)), check, pause=0.2
    )
    names = [file.name for file in (tmp_path / "results").iterdir()]
    assert not any(name.startswith(".") for name in names)
    with sqlite3.connect(tmp_path / "jobs.sqlite3") as connection:
        rows = dict(connection.execute("SELECT job_id, status FROM jobs").fetchall())
        files = {row[0] for row in connection.execute("SELECT name FROM result_files")}
    assert accepted.keys() <= rows.keys()
    assert set(rows.values()) <= {"completed", "failed"}
    assert files == set(names)  # no result without its row, no row without its result


def test_real_jobs_survive_sigkill_with_the_right_numbers(tmp_path):
    """Killed with jobs pending and running, started again: every accepted job ends completed, with Inseq's numbers."""
    jobs = {
        LOOKUP: {"input_text": PROMPT, "method": "integrated_gradients", "n_steps": 300},
        PHRASEBOOK: {"input_text": SENTENCE, "method": "saliency"},
    }
    with Server(tmp_path / "data", INSEQ_API_MAX_ATTEMPTS="10") as server:
        ids = [(model, server.submit(model=model, **jobs[model])) for _ in range(6) for model in jobs]
        for pause in (0.3, 0.5):
            time.sleep(pause)
            server.kill()
            server.start()
        views = {}
        for model, job_id in ids:
            assert server.wait(job_id)["status"] == "completed"
            views.setdefault(model, []).append(server.result(job_id, granular=True)["sequence_attributions"])
    for model, each in views.items():
        assert all(view == each[0] for view in each)
        arguments = {"n_steps": 300} if model == LOOKUP else {}
        theirs = reference.attribute(BUNDLED / model, jobs[model]["input_text"], jobs[model]["method"], **arguments)
        name = "target_attributions" if model == LOOKUP else "source_attributions"
        expected = getattr(theirs.sequence_attributions[0], name).numpy()
        np.testing.assert_allclose(np.array(each[0][0][name], float), expected, rtol=1e-4, atol=1e-6)
