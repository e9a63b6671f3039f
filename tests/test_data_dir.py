"""The data directory: who may read it, what the start removes and sets aside, folders that go missing, and clocks."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing

import pytest
from alembic.script import ScriptDirectory
from fastapi.testclient import TestClient

from jobs.retention import Retention
from jobs.store import schema
from jobs.store.job_store import JobStore
from jobs.store.records import ALL_OWNERS, Submission
from main import create_app
from models import JobStatus, Problem, Progress, ResultPart
from problems import StorageFailed
from settings import Settings
from tests.fake_engine import LOCAL, FakeEngine, body, ended, request, submit, until_running
from tests.serving import until

PARTS = [ResultPart("raw", "text", b"raw"), ResultPart("summary", "text", b"summary")]
ERROR = Problem(title="Failed", status=500, detail="because")
DAY = 86400.0


def add(store, text="hello"):
    return store.add(Submission(request(text)))[0]


def complete(store, text="hello"):
    """A job that has its result; returns its id."""
    add(store, text)
    job = store.claim()
    assert store.complete(job, PARTS, Progress())
    return job.job_id


def modes(folder):
    return {path.name: path.stat().st_mode & 0o777 for path in (folder, *folder.rglob("*"))}


# Modes


def test_only_the_owner_can_read_what_the_store_writes(tmp_path):
    data_dir = tmp_path / "data"
    before = os.umask(0)
    try:
        store = JobStore(data_dir)
        complete(store)
        found = modes(data_dir)
        store.close()
    finally:
        os.umask(before)
    folders = {name for name, mode in found.items() if mode == 0o700}
    assert folders == {"data", "results"}
    assert {mode for name, mode in found.items() if name not in folders} == {0o600}
    assert {"jobs.sqlite3", "jobs.sqlite3-wal", "jobs.sqlite3-shm", "server.lock"} <= found.keys()


def test_an_older_store_that_others_can_read_is_closed_at_the_start(tmp_path):
    data_dir = tmp_path / "data"
    JobStore(data_dir).close()
    for path in (data_dir, *data_dir.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    JobStore(data_dir).close()
    assert {name: mode for name, mode in modes(data_dir).items() if mode & 0o077 and name != "server.lock"} == {}


def test_a_directory_with_files_of_others_keeps_its_mode(tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o755)
    (shared / "thesis.tex").write_text("mine")
    (shared / "thesis.tex").chmod(0o644)
    JobStore(shared).close()
    found = modes(shared)
    assert (found["shared"], found["thesis.tex"]) == (0o755, 0o644)
    assert (found["results"], found["jobs.sqlite3"]) == (0o700, 0o600)


# What the start finds in the results folder


def test_the_start_sets_aside_what_the_store_does_not_know(tmp_path):
    """An older database beside newer results: nothing is deleted, and nothing that the database names is touched."""
    store = JobStore(tmp_path)
    kept = complete(store)
    store.close()
    older = (tmp_path / "jobs.sqlite3").read_bytes()
    store = JobStore(tmp_path)
    newer = [complete(store), complete(store)]
    store.close()
    (tmp_path / "jobs.sqlite3").write_bytes(older)
    results = tmp_path / "results"
    (results / "notes.txt").write_bytes(b"mine")
    (results / "folder").mkdir()
    store = JobStore(tmp_path)
    assert {path.name for path in results.iterdir()} == {f"{kept}.1.raw", f"{kept}.1.summary", "folder", "set-aside"}
    expected = {f"{job_id}.1.{part.kind}": part.content for job_id in newer for part in PARTS} | {"notes.txt": b"mine"}
    assert {path.name: path.read_bytes() for path in (results / "set-aside").iterdir()} == expected
    assert store.read(store.files(kept)["raw"]) == b"raw"
    store.close()
    JobStore(tmp_path).close()
    assert len(list((results / "set-aside").iterdir())) == 5
    store = JobStore(tmp_path)
    store.expire(max_age=DAY, keep=3, keep_bytes=10**9)  # the limits of results hold for what is set aside
    assert len(list((results / "set-aside").iterdir())) == 3
    store.expire(max_age=DAY, keep=3, keep_bytes=2)
    assert list((results / "set-aside").iterdir()) == []
    store.close()


def test_files_with_the_same_name_are_set_aside_side_by_side(tmp_path):
    for text in (b"one", b"two"):
        JobStore(tmp_path).close()
        (tmp_path / "results" / "notes.txt").write_bytes(text)
    JobStore(tmp_path).close()
    found = {path.name: path.read_bytes() for path in (tmp_path / "results" / "set-aside").iterdir()}
    assert found == {"notes.txt": b"one", "notes.txt.1": b"two"}


def test_the_start_removes_what_attempts_of_known_jobs_left(tmp_path):
    store = JobStore(tmp_path)
    done, failed = complete(store, "done"), add(store, "failed").job_id
    assert store.fail(store.claim(), ERROR)
    waiting = add(store, "waiting").job_id
    running = store.claim().job_id
    assert running == waiting
    results = tmp_path / "results"
    for name in (f"{done}.0.raw", f"{failed}.1.raw", f"{running}.1.summary", f".{running}.1.raw.ab.part"):
        (results / name).write_bytes(b"left")
    os.link(results / f"{done}.1.raw", results / f"{'e' * 32}.0.raw")  # a reuse that was cut off
    store.close()
    JobStore(tmp_path).close()
    assert {path.name for path in results.iterdir()} == {f"{done}.1.raw", f"{done}.1.summary"}


def test_a_deleted_result_is_gone_after_a_crash_between_row_and_file(tmp_path, monkeypatch):
    store = JobStore(tmp_path)
    job_id = complete(store)
    with monkeypatch.context() as crash:
        crash.setattr(store._results, "remove", lambda names: [])
        store.delete(job_id)
    assert len(list((tmp_path / "results").iterdir())) == 2
    store.close()
    JobStore(tmp_path).close()
    assert list((tmp_path / "results").iterdir()) == []


# Folders that go missing


@pytest.fixture
def held(tmp_path):
    """A client of an app in this process, its engine and its data directory."""
    engine = FakeEngine()
    with TestClient(create_app(Settings(data_dir=tmp_path / "data"), engine), LOCAL) as client:
        try:
            yield client, engine, tmp_path / "data"
        finally:
            engine.go_on.set()


def refused(client, text):
    answer = client.post("/attribution/jobs", json=body(text))
    assert (answer.status_code, answer.json()["type"]) == (507, "/problems/storage-failed")
    assert "The operator must repair the data directory" in answer.json()["detail"]
    return answer.json()["detail"]


def test_without_the_results_folder_jobs_are_refused_and_none_is_run_until_it_is_back(held):
    client, _, data_dir = held
    before = ended(client, submit(client, "before"))["job_id"]
    running, waiting = submit(client, "hold"), submit(client, "waiting")
    until_running(client, running)
    (data_dir / "results").rename(data_dir / "moved")
    assert "is missing" in refused(client, "new")
    assert client.get("/health/ready").status_code == 503
    assert client.get(f"/attribution/jobs/{before}").json()["status"] == "completed"
    lost = client.get(f"/attribution/jobs/{before}/results")
    assert (lost.status_code, lost.json()["type"]) == (507, "/problems/storage-failed")
    client.post(f"/attribution/jobs/{running}/cancel")
    assert ended(client, running)["status"] == "cancelled"
    assert client.get(f"/attribution/jobs/{waiting}").json()["status"] == "pending"
    (data_dir / "moved").rename(data_dir / "results")
    assert ended(client, waiting)["status"] == "completed"
    assert client.get(f"/attribution/jobs/{before}/results").json() == {"text": "before", "seed": 0}
    assert client.get("/health/ready").status_code == 200


def test_a_job_whose_result_cannot_be_stored_can_be_cancelled_meanwhile(held, monkeypatch):
    client, engine, data_dir = held
    running = submit(client, "hold")
    until_running(client, running)
    store = client.app.state.services.store
    tried = []
    complete_job = store.complete
    monkeypatch.setattr(store, "complete", lambda *arguments: tried.append(1) or complete_job(*arguments))
    (data_dir / "results").rename(data_dir / "moved")
    engine.go_on.set()
    until(lambda: tried)
    assert client.post(f"/attribution/jobs/{running}/cancel").status_code == 202
    assert ended(client, running)["status"] == "cancelled"
    (data_dir / "moved").rename(data_dir / "results")
    assert ended(client, submit(client, "after"))["status"] == "completed"


def test_a_database_that_was_moved_away_takes_no_jobs(held):
    client, _, data_dir = held
    (data_dir / "jobs.sqlite3").rename(data_dir / "moved")
    assert "was removed or replaced" in refused(client, "new")
    assert client.get("/health/ready").status_code == 503
    assert not (data_dir / "jobs.sqlite3").exists()  # no empty one in its place
    (data_dir / "moved").rename(data_dir / "jobs.sqlite3")
    assert ended(client, submit(client, "new"))["status"] == "completed"


def test_a_connection_to_a_database_that_was_moved_away_makes_no_new_one(tmp_path):
    store = JobStore(tmp_path)
    store._database.engine.dispose()  # its idle connections
    (tmp_path / "jobs.sqlite3").rename(tmp_path / "moved")
    with pytest.raises(StorageFailed, match="was removed or replaced"):
        store.keys.look_up("secret")
    with pytest.raises(StorageFailed, match="was removed or replaced"):
        store.get("0" * 32, ALL_OWNERS)
    assert not (tmp_path / "jobs.sqlite3").exists()
    store.close()


# Clocks


class Clocks:
    """A wall clock that can be set, and a monotonic clock that goes with it."""

    def __init__(self, wall=1_800_000_000.0):
        self.wall, self.passed = wall, 0.0

    def sleep(self, seconds):
        self.wall += seconds
        self.passed += seconds

    def store(self, path):
        return JobStore(path, lambda: self.wall, lambda: self.passed)


@pytest.mark.parametrize("years", [10, 1e6, -10, -60])
def test_a_wrong_clock_expires_no_result(tmp_path, years):
    clocks, settings = Clocks(), Settings(data_dir=tmp_path, results_max_days=90)
    store = clocks.store(tmp_path)
    job_ids = [complete(store)]
    Retention(store, settings)._sweep()
    for restarts in (False, True):
        right = clocks.wall
        clocks.wall += years * 365 * DAY  # years ahead or behind
        if restarts:
            store.close()
            store = clocks.store(tmp_path)
        job_ids.append(complete(store))
        for _ in range(20):
            clocks.sleep(3600)
            Retention(store, settings)._sweep()
        if restarts:
            store.close()
            store = clocks.store(tmp_path)
        clocks.wall = right + 20 * 3600  # right again
        job_ids.append(complete(store))
        for _ in range(20):
            clocks.sleep(3600)
            Retention(store, settings)._sweep()
    assert [store.files(job_id).keys() for job_id in job_ids] == [{"raw", "summary"}] * len(job_ids)
    for _ in range(100):
        clocks.sleep(DAY)
        Retention(store, settings)._sweep()
    assert [store.files(job_id) for job_id in job_ids] == [{}] * len(job_ids)  # they do expire in their time
    store.close()


def test_a_wrong_clock_keeps_the_order_of_the_queue_and_of_retention(tmp_path):
    clocks = Clocks()
    store = clocks.store(tmp_path)
    order = []
    for jump in (0, 10**9, -(10**9), -(10**9), 10**9):
        clocks.wall += jump
        clocks.sleep(60)
        order.append(add(store).job_id)
    claimed = []
    for _ in order:
        job = store.claim()
        claimed.append(job.job_id)
        clocks.wall += 10**8 if len(claimed) % 2 else -(10**8)
        clocks.sleep(60)
        store.complete(job, PARTS, Progress())
    assert claimed == order
    assert sorted(store.expire(max_age=10**9, keep=2, keep_bytes=10**9)) == sorted(order[:3])  # the oldest
    store.close()


def test_after_a_downtime_results_age_on_slowly(tmp_path):
    clocks, days = Clocks(), 90
    store = clocks.store(tmp_path)
    job_id = complete(store)
    store.expire(max_age=days * DAY, keep=9, keep_bytes=10**9)
    store.close()
    clocks.wall += 300 * DAY  # switched off
    store = clocks.store(tmp_path)
    passed = 0
    while store.files(job_id):
        clocks.sleep(DAY)
        passed += 1
        store.expire(max_age=days * DAY, keep=9, keep_bytes=10**9)
    assert passed == 46  # it ages two days in each
    store.close()


# Migrations


def old_store(path, revision):
    """A store of an older release with three jobs, each with a tag; returns the ids of the jobs."""
    from alembic import command

    engine = schema.open_database(path / "jobs.sqlite3")
    config = schema._migrations()
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
        for number in range(3):
            connection.exec_driver_sql(
                "INSERT INTO jobs (job_id, status, model, method, request, attempt, created_at) "
                "VALUES (?, 'pending', 'm', 'saliency', ?, 0, 1.0)",
                (f"job-{number}", request(str(number)).model_dump_json()),
            )
    engine.dispose()
    return [f"job-{number}" for number in range(3)]


def killed_at(path, step):
    """Migrate in a process of its own that is killed before its statement number `step`; returns whether it was."""
    if (child := os.fork()) == 0:
        try:
            import sqlalchemy as sa

            engine = schema.open_database(path / "jobs.sqlite3")
            left = [step]

            def count(*_):
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), 9)

            sa.event.listen(engine, "before_cursor_execute", count)
            sa.event.listen(engine, "commit", count)
            schema.migrate(engine)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9


REVISIONS = [each.revision for each in ScriptDirectory.from_config(schema._migrations()).walk_revisions()][::-1]


@pytest.mark.parametrize(
    "revision", [*(pytest.param(each, marks=pytest.mark.slow) for each in REVISIONS[1:-2]), REVISIONS[-2]]
)
def test_a_migration_that_is_killed_at_any_statement_loses_nothing(tmp_path, revision):
    ids, step = old_store(tmp_path, revision), 0
    while killed_at(tmp_path, step):
        step += 1
        with closing(sqlite3.connect(tmp_path / "jobs.sqlite3")) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            assert connection.execute("SELECT version_num FROM alembic_version").fetchone() == (revision,)
            assert [row[0] for row in connection.execute("SELECT job_id FROM jobs ORDER BY seq")] == ids
    assert step >= 5
    store = JobStore(tmp_path)
    assert [store.claim().job_id for _ in ids] == ids
    assert store.claim() is None
    assert store.get(ids[0], ALL_OWNERS).status is JobStatus.RUNNING
    store.close()


def test_a_first_start_that_is_killed_at_any_statement_can_be_repeated(tmp_path):
    step = 0
    while killed_at(tmp_path, step):
        step += 3
    store = JobStore(tmp_path)
    complete(store)
    store.close()
