"""Full, read-only and damaged disks: HTTP responses to clients, and messages to the operator at the start."""

from __future__ import annotations

import sqlite3

import pytest

from tests.fake_engine import body
from tests.full_disk import small_disk
from tests.serving import Server, until


def fake_server(data_dir):
    return Server(data_dir, module="tests.fake_engine")


def test_a_full_disk_refuses_jobs_keeps_results_until_there_is_room_and_recovers(tmp_path):
    with small_disk(tmp_path / "disk") as disk, fake_server(disk.path / "data") as server:
        done = server.run(**body("before"))
        running = server.submit(**body("sleep:4"))
        server.wait_until_attributing(running)
        disk.fill()
        accepted, refusals = {done, running}, 0
        for number in range(20):
            answer = server.client.post(
                "/attribution/jobs", json=body("hello", seed=number), headers={"Idempotency-Key": str(number)}
            )
            if answer.status_code == 202:  # there is still room in allocated pages
                accepted.add(answer.json()["job_id"])
                continue
            refusals += 1
            problem = answer.json()
            assert (answer.status_code, problem["type"]) == (507, "/problems/storage-failed")
            assert "database or disk is full" in problem["detail"]
            assert "operator" in problem["detail"]
        assert refusals
        assert server.client.get("/health/live").status_code == 200
        assert server.client.get("/health/ready").status_code == 503
        assert server.result(done) == {"text": "before", "seed": 0}  # stored results can be read
        until(lambda: "job_end_not_stored" in server.log)
        assert server.job(running)["status"] == "running"  # the worker keeps its result and tries again
        disk.make_room()
        assert server.wait(running)["status"] == "completed"
        assert server.result(running)["text"] == "sleep:4"
        assert server.client.get("/health/ready").status_code == 200
        listed = {job["job_id"] for job in server.client.get("/attribution/jobs?limit=100").json()["jobs"]}
        assert listed == accepted  # refused jobs left no rows
        again = server.client.post("/attribution/jobs", json=body("hello", seed=19), headers={"Idempotency-Key": "19"})
        assert again.status_code == 202
        assert server.wait(again.json()["job_id"])["status"] == "completed"
        assert server.stop() == 0
        assert "Traceback" not in server.log
        assert not any((disk.path / "data" / "results").glob(".*"))


def refused_start(data_dir):
    """Start a server that must not start; returns the one line that it prints."""
    server = Server(data_dir)
    with pytest.raises(AssertionError, match="did not start"):
        server.start()
    assert server.stop() == 1
    assert "Traceback" not in server.log
    assert server.log.count("\n") == 1
    return server.log


def test_a_read_only_disk_is_told_at_the_start(tmp_path):
    with small_disk(tmp_path / "disk", "ro") as disk:
        assert "cannot be written: Read-only file system" in refused_start(disk.path / "data")


@pytest.fixture(scope="module")
def used(tmp_path_factory):
    """A data directory with a finished job."""
    path = tmp_path_factory.mktemp("used")
    with fake_server(path) as server:
        server.run(**body("hello"))
        assert server.stop() == 0
    return path


@pytest.mark.parametrize("damage", ["overwritten", "truncated", "emptied", "newer"])
def test_a_damaged_database_is_told_at_the_start_and_nothing_is_touched(used, tmp_path, damage):
    for name in ("jobs.sqlite3", *(f"results/{file.name}" for file in (used / "results").iterdir())):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((used / name).read_bytes())
    database = tmp_path / "jobs.sqlite3"
    content = database.read_bytes()
    if damage == "overwritten":
        database.write_bytes(b"no database" * 1000)
    elif damage == "truncated":
        database.write_bytes(content[: len(content) // 2])
    elif damage == "emptied":
        database.write_bytes(b"")
    else:
        with sqlite3.connect(database) as connection:
            connection.execute("UPDATE alembic_version SET version_num = '9999'")
    said = refused_start(tmp_path)
    assert {
        "overwritten": "is damaged (file is not a database)",
        "truncated": "is damaged (",
        "emptied": "is empty, but there are results",
        "newer": "newer version",
    }[damage] in said
    assert "--data-dir" in said
    assert len(list((tmp_path / "results").iterdir())) == 2


def flip(file):
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def truncate(file):
    file.write_bytes(file.read_bytes()[:-3])


def test_a_damaged_result_is_gone_and_is_not_reused(tmp_path):
    with fake_server(tmp_path) as server:
        for number, damage in enumerate((flip, truncate, lambda file: file.unlink())):
            job_id = server.run(**body("hello", seed=number))
            for file in (tmp_path / "results").glob(f"{job_id}*"):
                damage(file)
            for view in ("", "?granular=true", "?format=inseq"):
                answer = server.client.get(f"/attribution/jobs/{job_id}/results{view}")
                assert (answer.status_code, answer.json()["type"]) == (410, "/problems/result-damaged")
                assert "Submit the job again" in answer.json()["detail"]
            assert server.job(job_id)["status"] == "completed"
            again = server.run(**body("hello", seed=number, reuse=True))
            assert server.job(again)["reused_from"] is None
            assert server.result(again) == {"text": "hello", "seed": number}
        assert '"event": "result_damaged"' in server.log
