"""API keys: authentication, access to one's own jobs only, and fairness between keys."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest

from api import command_line
from jobs.store.api_keys import ApiKeys
from main import create_app
from settings import Settings
from tests.fake_engine import body, in_process
from tests.serving import ROOT, Server, until


@pytest.fixture
def keyed(tmp_path):
    """A client of an app with two keys, and the headers of each key."""
    keys = ApiKeys.of(tmp_path)
    headers = [{"Authorization": f"Bearer {keys.create(name)[1]}"} for name in ("ann", "ben")]
    with in_process(Settings(data_dir=tmp_path)) as client:
        yield client, *headers


def test_a_key_is_needed_once_there_is_one(keyed, tmp_path):
    client, ann, _ = keyed
    for headers in ({}, {"Authorization": "Bearer nonsense"}, {"Authorization": ann["Authorization"].split()[1]}):
        for method, path in (("POST", ""), ("GET", ""), ("GET", "/x"), ("GET", "/x/results"), ("GET", "/x/events"),
                             ("POST", "/x/cancel"), ("DELETE", "/x")):  # fmt: skip
            answer = client.request(
                method,
                f"/attribution/jobs{path}",
                headers=headers,
                json=body("x") if (method, path) == ("POST", "") else None,
            )
            assert (answer.status_code, answer.json()["type"]) == (401, "/problems/unauthorized"), path
            assert answer.headers["www-authenticate"] == "Bearer"
    assert client.get("/health/ready").status_code == 200
    for path in ("/metrics", "/attribution/models", "/attribution/methods"):
        assert client.get(path).status_code == 401
        assert client.get(path, headers=ann).status_code == 200
    stored = (tmp_path / "jobs.sqlite3").read_bytes() + (tmp_path / "jobs.sqlite3-wal").read_bytes()
    assert ann["Authorization"].split()[1].encode() not in stored


def test_a_key_sees_its_own_jobs_only(keyed):
    client, ann, ben = keyed
    same = {"Idempotency-Key": "k"}
    mine = client.post("/attribution/jobs", json=body("a"), headers=ann | same).json()["job_id"]
    theirs = client.post("/attribution/jobs", json=body("b"), headers=ben | same).json()["job_id"]
    assert mine != theirs
    assert [job["job_id"] for job in client.get("/attribution/jobs", headers=ann).json()["jobs"]] == [mine]
    for method, path in (("GET", ""), ("GET", "/results"), ("GET", "/events"), ("POST", "/cancel"), ("DELETE", "")):
        answer = client.request(method, f"/attribution/jobs/{theirs}{path}", headers=ann)
        assert (answer.status_code, answer.json()["type"]) == (404, "/problems/job-not-found")
    assert client.get(f"/attribution/jobs/{theirs}", headers=ben, params={"wait": 60}).json()["status"] == "completed"


def test_a_revoked_key_opens_nothing(keyed, tmp_path):
    client, ann, ben = keyed
    keys = ApiKeys.of(tmp_path)
    assert keys.revoke(keys.list()[0].key_id)
    assert client.get("/attribution/jobs", headers=ann).status_code == 401
    assert client.get("/attribution/jobs", headers=ben).status_code == 200
    assert keys.revoke(keys.list()[1].key_id)
    assert not keys.revoke(keys.list()[1].key_id)
    assert client.get("/attribution/jobs").status_code == 401  # a key is still required if all keys are revoked


def test_keys_are_managed_by_a_command(tmp_path):
    def command(*arguments):
        return subprocess.run(
            [sys.executable, "main.py", "--data-dir", str(tmp_path), *arguments],
            capture_output=True, text=True, check=False, cwd=ROOT,
        )  # fmt: skip

    public = command("--host", "0.0.0.0")
    assert public.returncode == 2
    assert "keys create" in public.stderr
    made = command("keys", "create", "ann")
    secret = made.stdout.splitlines()[0]
    listed = command("keys", "list").stdout
    assert "in use   ann" in listed
    assert secret not in listed
    with Server(tmp_path, module="tests.fake_engine") as server:
        assert server.client.get("/attribution/jobs").status_code == 401
        headers = {"Authorization": f"Bearer {secret}"}
        assert server.client.get("/attribution/jobs", headers=headers).status_code == 200
        key_id = listed.split()[0]
        assert command("keys", "revoke", key_id).returncode == 0  # while the server runs
        assert server.client.get("/attribution/jobs", headers=headers).status_code == 401
    again = command("keys", "revoke", key_id)
    assert (again.returncode, again.stderr) == (1, f"There is no key {key_id!r} in use.\n")


def test_one_key_s_many_jobs_do_not_starve_another_s(keyed):
    client, ann, ben = keyed
    first = client.post("/attribution/jobs", json=body("hold"), headers=ann).json()["job_id"]
    for index in range(20):
        client.post("/attribution/jobs", json=body(f"ann {index}"), headers=ann)
    job = client.post("/attribution/jobs", json=body("ben"), headers=ben).json()
    assert job["queue_position"] <= 1
    client.app.state.services.engine.go_on.set()
    assert (
        client.get(f"/attribution/jobs/{job['job_id']}", headers=ben, params={"wait": 60}).json()["status"]
        == "completed"
    )
    assert client.app.state.services.engine.runs.index("ben") <= 2
    assert client.get(f"/attribution/jobs/{first}", headers=ann).json()["status"] == "completed"


def test_a_key_s_own_queue_is_bounded(tmp_path):
    keys = ApiKeys.of(tmp_path)
    ann, ben = ({"Authorization": f"Bearer {keys.create(name)[1]}"} for name in ("ann", "ben"))
    settings = Settings(data_dir=tmp_path, max_pending_jobs_per_key=2)
    with in_process(settings) as client:
        running = client.post("/attribution/jobs", json=body("hold"), headers=ann).json()["job_id"]
        until(lambda: client.get(f"/attribution/jobs/{running}", headers=ann).json()["status"] == "running")
        codes = [client.post("/attribution/jobs", json=body("x"), headers=ann).status_code for _ in range(3)]
        assert codes == [202, 202, 429]
        assert client.post("/attribution/jobs", json=body("x"), headers=ben).status_code == 202


def test_results_are_reused_by_their_owner_only(keyed):
    client, ann, ben = keyed
    job_id = client.post("/attribution/jobs", json=body("hello"), headers=ann).json()["job_id"]
    assert client.get(f"/attribution/jobs/{job_id}", headers=ann, params={"wait": 60}).json()["status"] == "completed"
    for headers, expected in ((ann, job_id), (ben, None)):
        answer = client.post("/attribution/jobs", json=body("hello", reuse=True), headers=headers).json()
        assert answer["reused_from"] == expected


@pytest.mark.parametrize("column", ["key_id", "name", "hash", "created_at", "revoked_at"])
@pytest.mark.parametrize("value", [b"\xff/..", "'';--", 1e300, -(2**63), "X" * 1000], ids=repr)
def test_a_damaged_key_harms_no_other(tmp_path, capsys, column, value):
    """Whatever its row contains, the other key works, and a request with this one is answered."""
    keys = ApiKeys.of(tmp_path)
    damaged, ben = ({"Authorization": f"Bearer {keys.create(name)[1]}"} for name in ("ann", "ben"))
    with closing(sqlite3.connect(tmp_path / "jobs.sqlite3")) as connection, connection:
        connection.execute(f"UPDATE api_keys SET {column} = ? WHERE name = 'ann'", (value,))
    with in_process(Settings(data_dir=tmp_path)) as client:
        answer = client.post("/attribution/jobs", json=body("x"), headers=damaged)
        assert answer.status_code in {202, 401}
        assert client.get("/attribution/jobs", headers=damaged).status_code in {200, 401}
        job = client.post("/attribution/jobs", json=body("a"), headers=ben).json()
        path = f"/attribution/jobs/{job['job_id']}"
        assert client.get(path, headers=ben, params={"wait": 60}).json()["status"] == "completed"
        assert len(client.get("/attribution/jobs", headers=ben).json()["jobs"]) == 1
        assert client.get("/metrics", headers=ben).status_code == 200
    with pytest.raises(SystemExit) as ended:
        command_line.main(create_app, ["--data-dir", str(tmp_path), "keys", "list"])
    listed = capsys.readouterr().out.splitlines()
    assert ended.value.code == 0
    assert sum(line.endswith(" ben") for line in listed) == 1
