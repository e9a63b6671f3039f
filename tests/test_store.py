"""The job store: durable, compare-and-set, one server a directory; any order of calls against a simple model."""

from __future__ import annotations

import sqlite3
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

import job_schema
from job_records import Submission
from job_store import JobStore
from models import JobStatus, Problem, Progress, ResultPart
from problems import StorageFailed
from tests.fake_engine import request

ERROR = Problem(title="Failed", status=500, detail="because")
PARTS = [ResultPart("raw", "text", b"raw"), ResultPart("summary", "text", b"summary")]


def add(store, **what):
    return store.add(Submission(request(**what)))[0]


@pytest.fixture
def store(tmp_path):
    store = JobStore(tmp_path)
    yield store
    store.close()


def test_accepting_a_job_is_a_full_sync(store):
    with store._engine.connect() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in ("journal_mode", "synchronous")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2}  # 2 is FULL


def test_jobs_are_claimed_once_in_order_and_busy_models_last(store):
    ids = [add(store, model=model).job_id for model in ("a", "a", "b")]
    assert store.claim(busy_models=["a"]).job_id == ids[2]
    with ThreadPoolExecutor(8) as pool:
        claimed = list(pool.map(lambda _: store.claim(), range(8)))
    assert sorted(job.job_id for job in claimed if job) == sorted(ids[:2])


def test_a_finished_attempt_cannot_finish_again(store):
    add(store)
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
    add(store)
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
    add(store)
    job = store.claim()
    store._results.write(job.job_id, job.attempt, PARTS[:1])  # the process dies here, before the row
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
    for table in job_schema.metadata.sorted_tables:
        assert {column["name"] for column in inspector.get_columns(table.name)} == set(table.columns.keys())
    with store._engine.connect() as connection:
        version = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar_one()
    assert version == job_schema.schema_version()


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
        self.doomed: set[str] = set()
        self.expired: set[str] = set()

    @rule(target=jobs)
    def add(self):
        job = add(self.store)
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

    @rule(job_id=jobs, ending=st.sampled_from(["complete", "fail", "requeue", "cancel"]))
    def end(self, job_id, ending):
        job = self.held.get(job_id)
        if job is None or job_id not in self.expected:
            return
        running = self.expected[job_id] is JobStatus.RUNNING and job.attempt == self.attempts[job_id]
        if ending == "complete":
            moved, after = self.store.complete(job, PARTS, Progress()), JobStatus.COMPLETED
        elif ending == "fail":
            moved, after = self.store.fail(job, ERROR), JobStatus.FAILED
        elif ending == "cancel":
            moved, after = self.store.cancel(job), JobStatus.CANCELLED
        else:
            moved, after = self.store.requeue(job), JobStatus.PENDING
        assert moved == running
        if moved:
            self.expected[job_id] = after
            self.attempts[job_id] -= after is JobStatus.PENDING

    @rule(job_id=jobs)
    def cancel(self, job_id):
        status = self.expected.get(job_id)
        job = self.store.request_cancel(job_id)
        if status is None:
            assert job is None
            return
        if status is JobStatus.PENDING:
            self.expected[job_id] = JobStatus.CANCELLED
        elif status is JobStatus.RUNNING:
            self.doomed.add(job_id)
        assert job.status is self.expected[job_id]

    @rule(job_id=jobs)
    def delete(self, job_id):
        status = self.expected.get(job_id)
        job = self.store.delete(job_id)
        assert (job.status if job else None) is status
        if status is not None and status.is_terminal:
            del self.expected[job_id]

    @rule(keep=st.integers(1, 3))
    def expire(self, keep):
        completed = [job_id for job_id, status in self.expected.items() if status is JobStatus.COMPLETED]
        left = [job_id for job_id in completed if job_id not in self.expired]
        expired = self.store.expire(before=0, keep=keep, keep_bytes=10**9)
        assert len(expired) == max(0, len(left) - keep)
        assert set(expired) <= set(left)
        self.expired |= set(expired)

    @rule()
    def crash(self):
        self.store.close()
        self.store = JobStore(self.path)
        self.store.recover(2, lambda job: ERROR)
        for job_id, status in self.expected.items():
            if status is JobStatus.RUNNING and job_id in self.doomed:
                self.expected[job_id] = JobStatus.CANCELLED
            elif status is JobStatus.RUNNING:
                self.expected[job_id] = JobStatus.PENDING if self.attempts[job_id] < 2 else JobStatus.FAILED

    @invariant()
    def the_store_agrees(self):
        for job_id, status in self.expected.items():
            assert self.store.get(job_id).status is status
            has_result = status is JobStatus.COMPLETED and job_id not in self.expired
            assert bool(self.store.files(job_id)) == has_result

    def teardown(self):
        self.store.close()
        self.folder.cleanup()


TestStore = StoreMachine.TestCase
TestStore.settings = hypothesis_settings(max_examples=25, stateful_step_count=25, deadline=None)
