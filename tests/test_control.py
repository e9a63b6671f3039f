"""Jobs are cancelled, limited in time, found by tag, deleted, expired, ordered by priority and reused."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from fastapi.testclient import TestClient

from jobs.store.job_store import JobStore
from jobs.store.records import Submission
from main import create_app
from models import JobStatus
from settings import Settings
from tests.conftest import PHRASEBOOK, SENTENCE
from tests.fake_engine import LOCAL, FakeEngine, body, ended, in_process, request, submit, until_running
from tests.serving import until

# Cancelling


def test_a_waiting_job_is_cancelled_at_once(app):
    running, waiting = submit(app, "hold"), submit(app, "hello")
    answer = app.post(f"/attribution/jobs/{waiting}/cancel")
    assert answer.status_code == 202
    assert (answer.json()["status"], answer.json()["cancel_requested"]) == ("cancelled", True)
    app.app.state.services.engine.go_on.set()
    assert ended(app, running)["status"] == "completed"
    assert app.app.state.services.engine.runs == ["hold"]
    answer = app.get(f"/attribution/jobs/{waiting}/results")
    assert (answer.status_code, answer.json()["type"]) == (409, "/problems/no-result")
    assert "cancelled" in answer.json()["detail"]


def test_a_running_job_is_cancelled_when_the_device_is_free(app):
    job_id, following = submit(app, "forever"), submit(app, "hello")
    until_running(app, job_id)
    answer = app.post(f"/attribution/jobs/{job_id}/cancel").json()
    assert (answer["status"], answer["cancel_requested"]) == ("running", True)
    assert ended(app, job_id)["status"] == "cancelled"
    assert ended(app, following)["status"] == "completed"
    again = app.post(f"/attribution/jobs/{job_id}/cancel")
    assert (again.status_code, again.json()["type"]) == (409, "/problems/job-ended")
    assert app.post("/attribution/jobs/nope/cancel").status_code == 404


def test_a_job_that_was_to_be_cancelled_stays_so_after_a_crash(tmp_path):
    engine = FakeEngine()
    store = JobStore(tmp_path)
    job, _ = store.add(Submission(request("hello")))
    store.claim()
    assert store.request_cancel(job.job_id).status is JobStatus.RUNNING
    store.close()  # the server stops before the job is cancelled
    with TestClient(create_app(Settings(data_dir=tmp_path), engine), LOCAL) as client:
        assert client.get(f"/attribution/jobs/{job.job_id}").json()["status"] == "cancelled"
    assert engine.runs == []


@pytest.mark.parametrize("limit", [{"timeout_seconds": 0.3}, {}])
def test_a_job_that_takes_too_long_fails(tmp_path, limit):
    settings = Settings(data_dir=tmp_path, max_job_seconds=0.5 if not limit else 3600)
    with TestClient(create_app(settings, FakeEngine()), LOCAL) as app:
        job = ended(app, submit(app, "forever", **limit))
        assert (job["status"], job["error"]["type"]) == ("failed", "/problems/timed-out")
        assert f"longer than {limit.get('timeout_seconds', 0.5)} seconds" in job["error"]["detail"]
        assert ended(app, submit(app, "hello"))["status"] == "completed"


@pytest.mark.parametrize("method", ["integrated_gradients", "lime", "occlusion"])
def test_cancelling_a_real_attribution_leaves_the_model_clean(server, method):
    """A job is cancelled between two forward passes of a step; equal jobs before and after it have equal scores."""
    arguments = {"integrated_gradients": {"n_steps": 2000, "internal_batch_size": 2}, "lime": {"n_samples": 2000}}
    probe = {"model": PHRASEBOOK, "method": "saliency", "input_text": SENTENCE, "step_scores": ["probability"]}
    before = server.result(server.run(**probe))["sequence_attributions"]
    text = SENTENCE if method != "occlusion" else " ".join([SENTENCE] * 12)
    job_id = server.submit(model=PHRASEBOOK, method=method, input_text=text, attribution_args=arguments.get(method, {}))
    server.wait_until_attributing(job_id)
    assert server.client.post(f"/attribution/jobs/{job_id}/cancel").json()["cancel_requested"] is True
    asked = time.monotonic()
    assert server.wait(job_id)["status"] == "cancelled"
    assert time.monotonic() - asked < 60
    assert server.result(server.run(**probe))["sequence_attributions"] == before


# Idempotency


def test_two_hundred_at_once_are_one_job(app):
    def post(_):
        return app.post("/attribution/jobs", json=body("sleep:0.5"), headers={"Idempotency-Key": "k1"})

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(post, range(200)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["job_id"] for answer in answers}) == 1
    assert len(app.get("/attribution/jobs").json()["jobs"]) == 1
    other = app.post("/attribution/jobs", json=body("hello"), headers={"Idempotency-Key": "k1"})
    assert (other.status_code, other.json()["type"]) == (422, "/problems/idempotency-key-reused")
    assert app.post("/attribution/jobs", json=body("x"), headers={"Idempotency-Key": "x" * 201}).status_code == 422


def test_a_key_outlives_the_server(tmp_path):
    ids = []
    for _ in range(2):
        with TestClient(create_app(Settings(data_dir=tmp_path), FakeEngine()), LOCAL) as app:
            answer = app.post("/attribution/jobs", json=body("hello"), headers={"Idempotency-Key": "k"})
            ids.append(answer.json()["job_id"])
            assert ended(app, ids[-1])["status"] == "completed"
    assert len(set(ids)) == 1


# Back-pressure


def test_a_full_queue_says_when_to_come_back(tmp_path):
    with in_process(Settings(data_dir=tmp_path, max_pending_jobs=2)) as app:
        first = submit(app, "hold")
        until_running(app, first)
        kept = [submit(app, "hello") for _ in range(2)]
        full = app.post("/attribution/jobs", json=body("hello"))
        assert (full.status_code, full.json()["type"]) == (429, "/problems/queue-full")
        assert int(full.headers["retry-after"]) >= 1
        app.app.state.services.engine.go_on.set()
        assert all(ended(app, job_id)["status"] == "completed" for job_id in (first, *kept))
        assert ended(app, submit(app, "hello"))["status"] == "completed"


# Finding, deleting, expiring


def test_jobs_are_found_by_their_tags(app):
    first = submit(app, "a", tags={"project": "bias", "run": "1"})
    second = submit(app, "b", tags={"project": "bias", "run": "2"})
    submit(app, "c")

    def found(*tags):
        return [job["job_id"] for job in app.get("/attribution/jobs", params={"tag": tags}).json()["jobs"]]

    assert found("project:bias") == [second, first]
    assert found("project:bias", "run:1") == [first]
    assert found("run") == [second, first]
    assert found("project:none") == []
    assert app.get(f"/attribution/jobs/{first}").json()["request"]["tags"] == {"project": "bias", "run": "1"}
    for wrong in ({"a b": "x"}, {"a": "x" * 257}, {str(index): "" for index in range(17)}):
        assert app.post("/attribution/jobs", json=body("x", tags=wrong)).status_code == 422


def test_an_ended_job_is_deleted_with_its_result(app, tmp_path):
    job_id, running = submit(app, "hello"), submit(app, "hold")
    assert ended(app, job_id)["status"] == "completed"
    active = app.delete(f"/attribution/jobs/{running}")
    assert (active.status_code, active.json()["type"]) == (409, "/problems/job-active")
    assert len(list((tmp_path / "results").iterdir())) == 2
    assert app.delete(f"/attribution/jobs/{job_id}").status_code == 204
    assert list((tmp_path / "results").iterdir()) == []
    for method, path in (("GET", ""), ("GET", "/results"), ("DELETE", ""), ("POST", "/cancel")):
        assert app.request(method, f"/attribution/jobs/{job_id}{path}").status_code == 404


@pytest.mark.parametrize(
    ("limits", "kept"),
    [({"results_max_count": 2}, 2), ({"results_max_bytes": 120}, 1), ({"results_max_days": 1e-9}, 0), ({}, 4)],
)
def test_results_expire_by_age_number_and_bytes(tmp_path, limits, kept):
    settings = Settings(data_dir=tmp_path, retention_interval_seconds=0.2, **limits)
    with in_process(settings) as app:
        ids = [submit(app, f"job {index}") for index in range(4)]  # each result has about 70 bytes
        for job_id in ids:
            ended(app, job_id)
        until(lambda: len(list((tmp_path / "results").iterdir())) <= 2 * kept)
        time.sleep(0.5)  # time in which too many results could be removed
        answers = [app.get(f"/attribution/jobs/{job_id}/results") for job_id in ids]
        assert [answer.status_code for answer in answers] == [410] * (4 - kept) + [200] * kept
        assert len(list((tmp_path / "results").iterdir())) == 2 * kept
        if kept < 4:
            assert answers[0].json()["type"] == "/problems/result-expired"
            job = app.get(f"/attribution/jobs/{ids[0]}").json()
            assert job["status"] == "completed"
            assert job["expired_at"] is not None


# Priority


def test_the_higher_priority_comes_first(app):
    until_running(app, submit(app, "hold"))
    low, normal, high = (submit(app, f"p{p}", priority=p) for p in (-1, 0, 5))
    assert [app.get(f"/attribution/jobs/{job_id}").json()["queue_position"] for job_id in (low, normal, high)] == [
        2,
        1,
        0,
    ]
    app.app.state.services.engine.go_on.set()
    ended(app, low)
    assert app.app.state.services.engine.runs == ["hold", "p5", "p0", "p-1"]


# Reuse


def test_the_same_request_is_answered_from_the_stored_result(app, tmp_path):
    first = submit(app, "hello", tags={"a": "1"})
    original = ended(app, first)
    again = app.post("/attribution/jobs", json=body("hello", reuse=True, priority=3)).json()
    assert (again["status"], again["reused_from"]) == ("completed", first)
    assert original["reused_from"] is None
    assert app.app.state.services.engine.runs == ["hello"]
    results = [app.get(f"/attribution/jobs/{each}/results").json() for each in (first, again["job_id"])]
    assert results[0] == results[1]
    # With another seed or without `reuse`, the job runs.
    assert ended(app, submit(app, "hello", reuse=True, seed=1))["reused_from"] is None
    assert ended(app, submit(app, "hello"))["reused_from"] is None
    assert len(app.app.state.services.engine.runs) == 3
    # A reused result is a copy: it remains after the first job is deleted.
    assert app.delete(f"/attribution/jobs/{first}").status_code == 204
    assert app.get(f"/attribution/jobs/{again['job_id']}/results").json() == results[1]


def test_a_result_whose_file_is_gone_is_computed_again(app, tmp_path):
    first = submit(app, "hello")
    ended(app, first)
    for file in (tmp_path / "results").iterdir():
        file.unlink()
    again = ended(app, submit(app, "hello", reuse=True))
    assert again["reused_from"] is None
    assert app.get(f"/attribution/jobs/{again['job_id']}/results").status_code == 200


def test_what_makes_two_results_the_same(server):
    """Results are reused if arguments, dtype and seed are equal; tags may differ."""
    # No other test has this text, so there are no other results to reuse.
    request = {"model": PHRASEBOOK, "method": "gradient_shap", "input_text": "the dog sees the old king", "seed": 3,
               "attribution_args": {"n_samples": 5}}  # fmt: skip
    first = server.run(**request)
    same = server.client.post("/attribution/jobs", json={**request, "reuse": True, "tags": {"x": "y"}}).json()
    assert same["reused_from"] == first
    assert server.result(same["job_id"]) == server.result(first)
    for change in (
        {"seed": 4},
        {"attribution_args": {"n_samples": 6}},
        {"dtype": "bfloat16"},
        {"step_scores": ["logit"]},
    ):
        other = server.client.post("/attribution/jobs", json={**request, **change, "reuse": True}).json()
        assert other["reused_from"] is None, change
        server.wait(other["job_id"])
