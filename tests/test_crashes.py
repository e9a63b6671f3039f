"""A killed process loses no accepted job and leaves no partly written result."""

from __future__ import annotations

import contextlib
import random
import sqlite3
import threading
import time

import httpx
import numpy as np
import pytest

from tests import reference
from tests.conftest import BUNDLED, LOOKUP, PHRASEBOOK, PROMPT, SENTENCE
from tests.fake_engine import body, ended, submit
from tests.serving import Server, until


def fake_server(data_dir):
    return Server(data_dir, module="tests.fake_engine")


def test_a_job_that_kills_the_process_is_given_up(tmp_path):
    with fake_server(tmp_path) as server:
        killer = server.submit(**body("die"))
        while not _has_ended(server, killer):
            server.start_again()
        job = server.job(killer)
        assert job["attempt"] == 3
        assert job["error"]["type"] == "/problems/interrupted"
        assert server.result(server.run(**body("hello"))) == {"text": "hello", "seed": 0}
        assert server.stop() == 0


def _has_ended(server, job_id):
    """Wait for the end of the job; returns False if the server died first."""
    try:
        server.wait(job_id)
    except httpx.HTTPError:
        return False
    return True


def test_no_innocent_job_is_given_up_with_one_that_kills_the_process(tmp_path):
    """Two workers run two jobs, one of which kills the process each time it runs. The other completes."""
    with Server(tmp_path, module="tests.fake_engine", INSEQ_API_MAX_ATTEMPTS="2") as server:
        innocent, killer = server.submit(**body("sleep:0.6")), server.submit(**body("die"))
        for job_id in (innocent, killer):
            while not _has_ended(server, job_id):
                server.start_again()
        assert server.job(innocent)["status"] == "completed"
        assert server.job(killer)["error"]["type"] == "/problems/interrupted"
        assert "with no other job beside it" in server.job(killer)["error"]["detail"]


def test_a_panic_fails_its_job_and_not_the_worker(app):
    job = ended(app, submit(app, "panic"))
    assert job["error"]["type"] == "/problems/attribution-failed"
    assert app.get("/health/ready").status_code == 200
    assert ended(app, submit(app, "hello"))["status"] == "completed"


def test_sigterm_ends_cleanly_and_loses_nothing(tmp_path):
    with fake_server(tmp_path) as server:
        ids = [server.submit(**body(f"sleep:{0.2 + index % 3}")) for index in range(6)]
        server.wait_until_attributing(ids[1])
        assert server.stop() == 0
        server.start()
        assert {server.wait(job_id)["status"] for job_id in ids} == {"completed"}
        assert {server.job(job_id)["attempt"] for job_id in ids} == {1}


def test_a_second_server_on_a_data_directory_is_told_so(tmp_path):
    with fake_server(tmp_path) as first:
        second = Server(tmp_path)
        with pytest.raises(AssertionError, match="did not start"):
            second.start()
        assert second.stop() == 1
        assert second.log.startswith("Another server is running on")
        assert "Traceback" not in second.log
        assert first.client.get("/health/ready").status_code == 200


def test_a_waiting_client_does_not_hold_up_a_shutdown(tmp_path):
    with Server(tmp_path, module="tests.fake_engine", INSEQ_API_SHUTDOWN_GRACE_SECONDS="0.5") as server:
        job_id = server.submit(**body("forever"))
        url = f"{server.url}/attribution/jobs/{job_id}?wait=60"

        def wait():
            with contextlib.suppress(httpx.HTTPError):
                httpx.get(url, timeout=60)

        waiting = threading.Thread(target=wait)
        waiting.start()
        until(lambda: "inseq_api_watchers 1.0" in server.client.get("/metrics").text)
        assert server.stop(timeout=50) == 0
        waiting.join(50)
        assert not waiting.is_alive()


def test_jobs_accepted_together_survive_sigkill_together(tmp_path):
    """Concurrent submissions share transactions: after SIGKILL, each job for which a client saw a 202 exists once."""
    server = Server(tmp_path, module="tests.fake_engine")
    server.start()
    accepted: dict[str, str] = {}
    seen = threading.Event()

    def client(index):
        with contextlib.suppress(httpx.HTTPError), httpx.Client(base_url=server.url, timeout=10) as http:
            for number in range(1000):
                key = f"{index}-{number}"
                answer = http.post("/attribution/jobs", json=body(f"forever:{key}"), headers={"Idempotency-Key": key})
                assert answer.status_code == 202
                accepted[key] = answer.json()["job_id"]
                if len(accepted) > 200:
                    seen.set()

    clients = [threading.Thread(target=client, args=(index,)) for index in range(16)]
    for each in clients:
        each.start()
    assert seen.wait(120)
    server.kill()
    for each in clients:
        each.join()
    with sqlite3.connect(tmp_path / "jobs.sqlite3") as connection:
        stored = dict(connection.execute("SELECT idempotency_key, job_id FROM jobs").fetchall())
    assert accepted.items() <= stored.items()
    server.start()
    for key, job_id in list(accepted.items())[::20]:
        again = server.client.post("/attribution/jobs", json=body(f"forever:{key}"), headers={"Idempotency-Key": key})
        assert again.json()["job_id"] == job_id
    server.kill()


def chaos(server, rounds, submit, check, *, pause):
    """Submit from several threads while the process is killed repeatedly, then check every accepted job."""
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
                time.sleep(0.05)  # the server was killed before it responded
            time.sleep(numbers.uniform(0, pause))

    clients = [threading.Thread(target=client, args=(index,)) for index in range(3)]
    server.start()
    for each in clients:
        each.start()
    for _ in range(rounds):
        before = len(accepted)
        until(lambda: len(accepted) > before)  # noqa: B023 - called here
        time.sleep(rng.uniform(0.05, 6 * pause))
        server.kill()
        server.start()
    stop.set()
    for each in clients:
        each.join()
    try:
        assert len(accepted) >= rounds
        for job_id, wanted in accepted.items():
            check(job_id, wanted)
    finally:
        server.stop()
    return accepted


def test_nothing_is_lost_when_the_process_is_killed_many_times(tmp_path):
    server = Server(tmp_path, module="tests.fake_engine")

    def check(job_id, wanted):
        job = server.wait(job_id)
        if job["status"] == "failed":  # it was running at three kills, so it counts as their cause
            assert job["error"]["type"] == "/problems/interrupted"
            assert job["attempt"] == 3
        else:
            assert server.result(job_id) == {"text": wanted["input_text"], "seed": wanted["seed"]}

    accepted = chaos(
        server, 5, lambda rng: body(f"sleep:{rng.uniform(0, 0.3):.3f}", seed=rng.randrange(1000)), check, pause=0.2
    )
    names = [file.name for file in (tmp_path / "results").iterdir()]
    assert not any(name.startswith(".") for name in names)
    with sqlite3.connect(tmp_path / "jobs.sqlite3") as connection:
        rows = dict(connection.execute("SELECT job_id, status FROM jobs").fetchall())
        files = {row[0] for row in connection.execute("SELECT name FROM result_files")}
    assert accepted.keys() <= rows.keys()
    assert set(rows.values()) <= {"completed", "failed"}
    assert files == set(names)  # each result file has a row, and each row a file


@pytest.mark.slow
def test_real_jobs_survive_sigkill_with_the_right_numbers(tmp_path):
    """After SIGKILL with pending and running jobs and a restart, every accepted job completes with Inseq's numbers."""
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
