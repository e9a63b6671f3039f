"""`python main.py backup` and `restore`: while jobs run, after a crash, and with damaged backups."""

from __future__ import annotations

import io
import json
import os
import sqlite3
import subprocess
import sys
import tarfile
import threading
from contextlib import closing
from pathlib import Path

import pytest

from jobs.store import backup
from jobs.store.job_store import JobStore
from jobs.store.listing import Filters
from jobs.store.records import ALL_OWNERS, Submission
from models import JobStatus, Progress, ResultPart
from problems import StorageFailed
from tests.fake_engine import body, request
from tests.serving import ROOT, Server

PARTS = [ResultPart("raw", "text", b"raw"), ResultPart("summary", "text", b"summary")]


def command(data_dir, *arguments):
    """Run a command of main.py; returns its exit status and what it printed."""
    done = subprocess.run(
        [sys.executable, "main.py", "--data-dir", str(data_dir), *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout + done.stderr


def content(folder):
    """All files under a folder, with their bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_backup_made_while_jobs_run_restores_after_kill_9(tmp_path):
    data_dir, archive = tmp_path / "data", tmp_path / "backup.tar"
    with Server(data_dir, module="tests.fake_engine") as server:
        done = [server.run(**body(f"text {number}", seed=number)) for number in range(4)]
        running = server.submit(**body("sleep:1"))
        server.wait_until_attributing(running)
        stop = threading.Event()
        later = []

        def submit():
            while not stop.wait(0.1):
                later.append(server.submit(**body(f"later {len(later)}")))

        writer = threading.Thread(target=submit)
        writer.start()
        try:
            assert command(data_dir, "backup", archive)[0] == 0
        finally:
            stop.set()
            writer.join()
        assert archive.stat().st_mode & 0o777 == 0o600
        assert not list(tmp_path.glob("*.part"))
        code, said = command(data_dir, "restore", archive)
        assert (code, "Another server is running" in said) == (1, True)
        after = server.run(**body("after the backup"))
        server.kill()
        assert (data_dir / "jobs.sqlite3-wal").stat().st_size
        code, said = command(data_dir, "restore", archive)
        assert code == 0, said
        (before,) = data_dir.glob("before-restore-*")
        assert str(before) in said
        assert {"jobs.sqlite3", "jobs.sqlite3-wal", "results"} <= {each.name for each in before.iterdir()}
        server.start()
        for number, job_id in enumerate(done):
            assert server.result(job_id) == {"text": f"text {number}", "seed": number}
        assert server.wait(running)["status"] == "completed"
        assert server.client.get(f"/attribution/jobs/{after}").status_code == 404  # the log was not replayed
        kept = [job_id for job_id in later if server.client.get(f"/attribution/jobs/{job_id}").status_code == 200]
        assert kept == later[: len(kept)]  # a state at one moment
        for job_id in kept:
            assert server.wait(job_id)["status"] == "completed"
        assert "set_aside" not in server.log


@pytest.fixture
def stored(tmp_path):
    """A data directory with three completed jobs and a key, and the ids of the jobs."""
    data_dir = tmp_path / "data"
    store = JobStore(data_dir)
    ids = []
    for number in range(3):
        ids.append(store.add(Submission(request(str(number))))[0].job_id)
        store.complete(store.claim(), PARTS, Progress())
    store.keys.create("ann")
    store.close()
    return data_dir, ids


def test_an_empty_directory_becomes_what_was_backed_up(stored, tmp_path):
    data_dir, ids = stored
    assert backup.back_up(data_dir, tmp_path / "a.tar") == backup.Summary(3, 6, 0)
    assert backup.restore(tmp_path / "new", tmp_path / "a.tar") == (backup.Summary(3, 6, 0), None)
    store = JobStore(tmp_path / "new")
    assert [job.job_id for job in store.page(Filters(owner=ALL_OWNERS), limit=9)] == ids[::-1]
    for job_id in ids:
        assert {kind: store.read(file) for kind, file in store.files(job_id).items()} == {
            "raw": b"raw",
            "summary": b"summary",
        }
    assert [key.name for key in store.keys.list()] == ["ann"]
    store.close()
    assert {path.stat().st_mode & 0o077 for path in (tmp_path / "new").rglob("*")} == {0}


def test_a_result_removed_during_the_backup_is_expired_in_it(stored, tmp_path, monkeypatch):
    data_dir, ids = stored
    copy_database = backup._copy_database

    def copy_then_expire(*arguments):
        copy_database(*arguments)
        store = JobStore(data_dir)
        store.expire(max_age=10**9, keep=2, keep_bytes=10**9)
        store.close()

    monkeypatch.setattr(backup, "_copy_database", copy_then_expire)
    assert backup.back_up(data_dir, tmp_path / "a.tar") == backup.Summary(3, 4, 0)
    backup.restore(tmp_path / "new", tmp_path / "a.tar")
    store = JobStore(tmp_path / "new")
    assert [store.get(job_id, ALL_OWNERS).expired_at is None for job_id in ids] == [False, True, True]
    assert store.files(ids[0]) == {}
    store.close()


def repacked(archive, change):
    """Write the archive again, with its files changed."""
    with tarfile.open(archive) as tar:
        files = {entry.name: tar.extractfile(entry).read() for entry in tar}
    change(files)
    with tarfile.open(archive, "w") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


def newer(files):
    """Write the version of a later release into the database, and its checksum into the manifest."""
    import hashlib
    import tempfile

    with tempfile.NamedTemporaryFile() as file:
        file.write(files["jobs.sqlite3"])
        file.flush()
        with closing(sqlite3.connect(file.name)) as connection, connection:
            connection.execute("UPDATE alembic_version SET version_num = '9999'")
        files["jobs.sqlite3"] = Path(file.name).read_bytes()
    manifest = json.loads(files["manifest.json"])
    manifest["sha256"]["jobs.sqlite3"] = hashlib.sha256(files["jobs.sqlite3"]).hexdigest()
    files["manifest.json"] = json.dumps(manifest).encode()


def a_result(files):
    return next(name for name in files if name.startswith("results/"))


DAMAGE = {
    "a result changed": lambda files: files.update({a_result(files): b"x"}),
    "a result missing": lambda files: files.pop(a_result(files)),
    "the database changed": lambda files: files.update({"jobs.sqlite3": files["jobs.sqlite3"][:-100]}),
    "the database missing": lambda files: files.pop("jobs.sqlite3"),
    "the manifest missing": lambda files: files.pop("manifest.json"),
    "the manifest is no manifest": lambda files: files.update({"manifest.json": b"[]"}),
    "a path out of the folder": lambda files: files.update({"../evil": b"x"}),
    "an absolute path": lambda files: files.update({"/tmp/evil": b"x"}),
    "a newer version": newer,
}


@pytest.mark.parametrize("damage", [*DAMAGE, "truncated", "no tar file", "not there"])
def test_a_damaged_backup_is_refused_and_nothing_changes(stored, tmp_path, damage):
    data_dir, _ = stored
    archive = tmp_path / "a.tar"
    backup.back_up(data_dir, archive)
    if damage == "truncated":
        archive.write_bytes(archive.read_bytes()[:20_000])
    elif damage == "no tar file":
        archive.write_bytes(b"no tar file" * 1000)
    elif damage == "not there":
        archive.unlink()
    else:
        repacked(archive, DAMAGE[damage])
    before = content(tmp_path)
    with pytest.raises(StorageFailed) as refused:
        backup.restore(data_dir, archive)
    assert str(archive) in refused.value.detail or "newer version" in refused.value.detail
    assert content(tmp_path) == before
    assert not list(data_dir.glob("*restor*"))
    JobStore(data_dir).close()


def test_a_backup_needs_a_store_and_a_new_name(stored, tmp_path):
    data_dir, _ = stored
    code, said = command(tmp_path / "none", "backup", tmp_path / "a.tar")
    assert (code, said) == (1, f"There is no job store in {tmp_path / 'none'}.\n")
    (tmp_path / "a.tar").write_bytes(b"mine")
    code, said = command(data_dir, "backup", tmp_path / "a.tar")
    assert (code, "exists already" in said) == (1, True)
    assert (tmp_path / "a.tar").read_bytes() == b"mine"


def dying_after(calls, function):
    """The function, which lets the process die at the call after so many."""
    left = iter(range(calls))

    def counted(*arguments):
        if next(left, None) is None:
            os._exit(9)
        return function(*arguments)

    return counted


def test_a_restore_that_is_killed_between_two_moves_keeps_the_server_from_starting_and_can_be_repeated(
    stored, tmp_path
):
    data_dir, ids = stored
    archive = tmp_path / "a.tar"
    backup.back_up(data_dir, archive)
    number = 0
    while True:
        if (child := os.fork()) == 0:
            Path.rename = dying_after(number, Path.rename)
            backup.restore(data_dir, archive)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == 0:
            break
        assert status == 9
        with pytest.raises(StorageFailed, match="Run it again"):
            JobStore(data_dir)
        number += 1
    assert number >= 3
    store = JobStore(data_dir)
    assert {store.get(job_id, ALL_OWNERS).status for job_id in ids} == {JobStatus.COMPLETED}
    assert store.read(store.files(ids[0])["raw"]) == b"raw"
    store.close()
    kept = [path for path in data_dir.glob("before-restore-*/**/*") if path.is_file()]
    assert sum(path.name == "jobs.sqlite3" for path in kept) >= 1
    assert not list(data_dir.glob("restoring-*"))
