"""The job store: durability, compare-and-set, one server per directory, and a stateful test against a simple model."""

from __future__ import annotations

import itertools
import math
import re
import sqlite3
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from jobs.store import schema
from jobs.store.job_store import JobStore
from jobs.store.listing import Filters
from jobs.store.records import ALL_OWNERS, Submission
from models import JobStatus, JobUpdate, Problem, Progress, ResultPart
from problems import KeyReused, QueueFull, ResultDamaged, StorageFailed
from tests.fake_engine import request
from tests.serving import until

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
    with store._database.engine.connect() as connection:
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
    assert store.complete(first, PARTS, Progress()) is False  # an attempt from before the crash
    assert store.files(first.job_id) == {}
    assert store.complete(second, PARTS, Progress()) is True
    assert store.fail(second, ERROR) is False
    assert store.requeue(second) is False
    assert store.get(second.job_id, ALL_OWNERS).status is JobStatus.COMPLETED
    assert store.read(store.files(second.job_id)["raw"]) == b"raw"


def test_a_damaged_result_is_told_and_not_served(store, tmp_path):
    add(store)
    job = store.claim()
    store.complete(job, PARTS, Progress())
    stored = store.files(job.job_id)["raw"]
    (tmp_path / "results" / stored.name).write_bytes(b"rax")
    with pytest.raises(ResultDamaged, match="damaged"):
        store.read(stored)
    (tmp_path / "results" / stored.name).unlink()
    with pytest.raises(ResultDamaged, match="gone from the disk"):
        store.read(stored)


def test_files_of_a_dead_attempt_are_swept(tmp_path):
    store = JobStore(tmp_path)
    add(store)
    job = store.claim()
    store._results.write(job.job_id, job.attempt, PARTS[:1])  # simulates a crash before the row is written
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
    inspector = sa.inspect(store._database.engine)
    for table in schema.metadata.sorted_tables:
        assert {column["name"] for column in inspector.get_columns(table.name)} == set(table.columns.keys())
    with store._database.engine.connect() as connection:
        version = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar_one()
    config = Config()
    config.set_main_option("script_location", str(Path(schema.__file__).parent / "migrations"))
    assert version == ScriptDirectory.from_config(config).get_current_head()


def in_one_group(store, *submissions):
    """Submit all while a first submission holds the lock, so that they share a transaction; returns their outcomes."""
    commits = []
    sa.event.listen(store._database.engine, "commit", commits.append)
    with ThreadPoolExecutor(len(submissions) + 1) as pool:
        with store._database.write_lock:
            leader = pool.submit(store.add, Submission(request("the first, alone")))
            until(lambda: store._accept._is_led and not store._accept._waiting)
            futures = []
            for each in submissions:
                futures.append(pool.submit(store.add, each))
                until(lambda: len(store._accept._waiting) == len(futures))
        leader.result()
        outcomes = [future.exception() or future.result() for future in futures]
    assert len(commits) == 2
    return outcomes


def test_submissions_that_come_together_share_a_transaction_and_keep_their_order(store):
    outcomes = in_one_group(store, *(Submission(request(f"text {index}")) for index in range(30)))
    assert all(is_new for _, is_new in outcomes)
    jobs = [job for job, _ in outcomes]
    assert [job.queue_position for job in jobs] == list(range(1, 31))  # after the first submission
    assert [store.queue_position(job) for job in jobs] == list(range(1, 31))
    for index, job in enumerate(jobs):
        assert replace(job, queue_position=None) == store.get(job.job_id, ALL_OWNERS)
        assert job.request.input_text == f"text {index}"
    assert [job.seq for job in jobs] == sorted(job.seq for job in jobs)
    store.claim()
    assert [store.claim().job_id for _ in jobs] == [job.job_id for job in jobs]


def test_in_a_group_each_submission_has_its_own_outcome(store):
    """Idempotency keys, quotas and refusals have the same effect in one transaction as in sequence."""
    store.add(Submission(request("before"), "old"))
    limits = {"max_pending": 7, "max_pending_of_owner": 3}
    outcomes = in_one_group(
        store,
        Submission(request("a"), "new", "ann", **limits),
        Submission(request("a"), "new", "ann", **limits),  # repeated
        Submission(request("b"), "new", "ann", **limits),  # same key, other request
        Submission(request("a"), "new", "ben", **limits),  # same key, other owner
        Submission(request("before"), "old", **limits),  # key of an earlier transaction
        Submission(request("other"), "old", **limits),
        Submission(request("c"), None, "ann", **limits),
        Submission(request("d"), None, "ann", **limits),
        Submission(request("e"), None, "ann", **limits),  # ann already has three
        Submission(request("f"), None, "ben", **limits),
        Submission(request("g"), None, "eve", **limits),  # seven already wait
        Submission(request("a"), "new", "ann", **limits),  # repeated: accepted even if the queue is full
    )
    kinds = [type(each) if isinstance(each, Exception) else each[1] for each in outcomes]
    assert kinds == [
        True, False, KeyReused, True, False, KeyReused, True, True, QueueFull, True, QueueFull, False
    ]  # fmt: skip
    assert outcomes[0][0].job_id == outcomes[1][0].job_id == outcomes[11][0].job_id
    assert outcomes[4][0].request.input_text == "before"
    assert "of this key" in outcomes[8].detail
    assert outcomes[10].detail.startswith("7 jobs are waiting")
    assert store.active() == {JobStatus.PENDING: 7, JobStatus.RUNNING: 0}
    accepted = [job for job, is_new in (each for each in outcomes if isinstance(each, tuple)) if is_new]
    assert [job.queue_position for job in accepted] == [1, 2, 4, 5, 5]  # owners take turns
    assert [store.queue_position(job) for job in accepted][-1] == accepted[-1].queue_position


def test_what_the_database_refuses_of_one_submission_harms_no_other(store):
    with store._database.writer.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TRIGGER refuse BEFORE INSERT ON jobs WHEN new.model = 'bad' BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
    with ThreadPoolExecutor(9) as pool:
        with store._database.write_lock:
            futures = [pool.submit(add, store, model="bad" if index == 4 else "good") for index in range(9)]
            until(lambda: len(store._accept._waiting) == 8)
        outcomes = [future.exception() for future in futures]
    assert [type(each) for each in outcomes] == [StorageFailed if index == 4 else type(None) for index in range(9)]
    assert store.active() == {JobStatus.PENDING: 8, JobStatus.RUNNING: 0}


def test_a_damaged_result_is_not_reused(store, tmp_path):
    wanted = Submission(request(reuse=True), reuse_key="same")
    first, _ = store.add(wanted)
    store.complete(store.claim(), PARTS, Progress())
    reused, _ = store.add(wanted)
    assert (reused.reused_from, reused.status) == (first.job_id, JobStatus.COMPLETED)
    assert store.read(store.files(reused.job_id)["raw"]) == b"raw"
    (tmp_path / "results" / store.files(reused.job_id)["summary"].name).write_bytes(
        b"changed"
    )  # reuse looks at the newest result
    again, _ = store.add(wanted)
    assert (again.reused_from, again.status) == (None, JobStatus.PENDING)
    assert sorted(file.name[:32] for file in (tmp_path / "results").iterdir()) == sorted(
        [first.job_id, reused.job_id] * 2
    )


def test_listings_and_the_queue_search_an_index_whatever_is_asked(store):
    """No SQL statement of listings, the queue, submissions or polls scans the jobs table or sorts rows."""
    statements = {}
    sa.event.listen(
        store._database.engine,
        "before_cursor_execute",
        lambda _connection, _cursor, statement, parameters, *_: statements.setdefault(statement, parameters),
    )
    choices = {
        "status": [None, JobStatus.COMPLETED],
        "model": [None, "m"],
        "method": [None, "saliency"],
        "tags": [(), [("a", None)], [("a", "1"), ("b", None)]],
        "search": [None, "tea mil"],
    }
    for values in itertools.product(*choices.values()):
        for before in (None, 10):
            store.page(Filters(*values, owner="ann"), limit=10, before=before)
    listed = len(statements)
    assert listed >= 96
    job, _ = store.add(Submission(request(tags={"a": "1"}), "key", "ann", max_pending=10, max_pending_of_owner=10))
    store.add(Submission(request(reuse=True), "key", "ben", reuse_key="same"))
    store.queue_position(job)
    store.page(Filters(owner="ann"), limit=10)
    store.active()
    claimed = store.claim(["another"])
    store.claim(["m"])
    store.save_progress([(claimed, Progress())])
    store.complete(claimed, PARTS, Progress())
    store.get(job.job_id, "ann")
    store.files(job.job_id)
    store.recover(3, lambda job: ERROR)
    store.update(job.job_id, "ann", JobUpdate(name="n", tags={"a": "2"}))
    store.facets("ann")
    store.request_cancel(job.job_id)
    store.delete(job.job_id)
    store.keys.look_up("secret")
    assert len(statements) > listed + 15
    for statement, parameters in list(statements.items()):
        if statement.startswith(("SELECT", "UPDATE", "DELETE", "WITH")):
            with store._database.engine.connect() as connection:
                steps = [row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)]
            # Scans of these two indexes are allowed: they have only pending and only running jobs.
            # SQLite calls a look-up in the index of words a scan too, and one of the values that facets found so far.
            scans = [step for step in steps if step.startswith("SCAN") and "CONSTANT ROW" not in step]
            assert (
                all(
                    re.search(r"INDEX jobs_(waiting|running)$|^SCAN (job_words VIRTUAL TABLE INDEX|found$)", each)
                    for each in scans
                )
                or "api_keys" in statement
            ), (statement, steps)
            assert not any("TEMP B-TREE" in step for step in steps), (statement, steps)


def test_a_store_of_an_older_version_keeps_its_jobs_and_tags(tmp_path):
    engine = schema.open_database(tmp_path / "jobs.sqlite3")
    config = Config()
    config.set_main_option("script_location", str(Path(schema.__file__).parent / "migrations"))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0004")
        for number in (1, 2):
            connection.exec_driver_sql(
                "INSERT INTO jobs (job_id, status, model, method, request, attempt, created_at, owner) "
                "VALUES (?, 'pending', 'm', 'saliency', ?, 0, 1.0, 'ann')",
                (f"job-{number}", request(tags={"a": str(number)}).model_dump_json()),
            )
            connection.exec_driver_sql("INSERT INTO job_tags VALUES (?, 'a', ?)", (f"job-{number}", str(number)))
    engine.dispose()
    store = JobStore(tmp_path)
    try:
        by_tag = {
            value: [job.job_id for job in store.page(Filters(tags=[("a", value)], owner="ann"), limit=9)]
            for value in ("1", "2", None)
        }
        assert by_tag == {"1": ["job-1"], "2": ["job-2"], None: ["job-2", "job-1"]}
        assert store.page(Filters(tags=[("a", None)], owner="ben"), limit=9) == []
        assert [store.claim().job_id, store.claim().job_id] == ["job-1", "job-2"]
    finally:
        store.close()


class StoreMachine(RuleBasedStateMachine):
    """A stateful test: any order of calls on the store, against a dictionary with the expected statuses."""

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
            # A job with a requested cancellation is cancelled instead of becoming pending.
            after = JobStatus.CANCELLED if job_id in self.doomed else JobStatus.PENDING
            moved = self.store.requeue(job)
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
        expired = self.store.expire(max_age=math.inf, keep=keep, keep_bytes=10**9)
        assert len(expired) == max(0, len(left) - keep)
        assert set(expired) <= set(left)
        self.expired |= set(expired)

    @rule()
    def crash(self):
        self.store.close()
        self.store = JobStore(self.path)
        self.store.recover(2, lambda job: ERROR)
        running = [job_id for job_id, status in self.expected.items() if status is JobStatus.RUNNING]
        for job_id in running:
            # Only a job that ran alone is given up.
            again = JobStatus.PENDING if self.attempts[job_id] < 2 or len(running) > 1 else JobStatus.FAILED
            self.expected[job_id] = JobStatus.CANCELLED if job_id in self.doomed else again
        waiting = [job_id for job_id, status in self.expected.items() if status is JobStatus.PENDING]
        assert self.store.suspects(2) == [job_id for job_id in waiting if self.attempts[job_id] >= 2]

    @invariant()
    def the_store_agrees(self):
        for job_id, status in self.expected.items():
            assert self.store.get(job_id, ALL_OWNERS).status is status
            has_result = status is JobStatus.COMPLETED and job_id not in self.expired
            assert bool(self.store.files(job_id)) == has_result

    def teardown(self):
        self.store.close()
        self.folder.cleanup()


TestStore = StoreMachine.TestCase
TestStore.settings = hypothesis_settings(max_examples=15, stateful_step_count=25, deadline=None)
