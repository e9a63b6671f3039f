"""Methods, headers, bodies and texts that a careful HTTP server handles as the standards say, and work that waits apart."""

from __future__ import annotations

import gzip
import json
import threading
import time

import pytest

from api import metrics
from jobs.store.api_keys import ApiKeys
from problems import InputRejected, ServiceError, all_errors
from settings import Settings
from tests.fake_engine import body, ended, in_process, submit, until_running
from tests.serving import until


def post(client, content, path="/attribution/jobs", **headers):
    return client.post(path, content=content, headers={"Content-Type": "application/json"} | headers)


def refused(answer, status, slug):
    """Check that the answer is this problem, of a type that the server describes; returns its detail."""
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text
    found = answer.json()
    assert (found["type"], found["status"]) == (f"/problems/{slug}", status)
    assert slug in {error.slug for error in all_errors()}
    return found["detail"]


# Methods


def test_head_is_get_without_a_body(app):
    job_id = submit(app, "hello")
    ended(app, job_id)
    job = f"/attribution/jobs/{job_id}"
    for path in ("/", "/docs", "/openapi.json", "/static/index.html", "/health/live", "/health/ready", "/metrics",
                 "/attribution/jobs", job, f"{job}/results", "/attribution/models", "/problems/not-found", "/nowhere"):  # fmt: skip
        head, get = app.head(path), app.get(path)
        assert (head.status_code, head.content) == (get.status_code, b""), path
        assert head.headers["content-type"] == get.headers["content-type"]
        if path != "/metrics":  # it counts itself
            assert head.headers["content-length"] == get.headers["content-length"], path
    running = submit(app, "hold")
    assert app.head(f"/attribution/jobs/{running}/events").headers["content-type"].startswith("text/event-stream")


def test_options_and_refusals_say_which_methods_a_path_has(app):
    expected = {
        "/attribution/jobs": "GET, POST, HEAD, OPTIONS",
        "/attribution/jobs/x": "GET, PATCH, DELETE, HEAD, OPTIONS",
        "/attribution/jobs/x/cancel": "POST, OPTIONS",
        "/attribution/estimate": "POST, OPTIONS",
        "/": "GET, HEAD, OPTIONS",
        "/static/index.html": "GET, HEAD, OPTIONS",
    }
    for path, methods in expected.items():
        answer = app.options(path, headers={"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"})
        assert (answer.status_code, answer.headers["allow"], answer.content) == (204, methods, b""), path
        assert not any(name.startswith("access-control") for name in answer.headers)
        answer = app.put(path)
        assert methods in refused(answer, 405, "method-not-allowed")
        assert answer.headers["allow"] == methods
    refused(app.options("/nowhere"), 404, "not-found")
    refused(app.get("/static/nowhere.js"), 404, "not-found")
    refused(app.get("/problems/nothing"), 404, "not-found")


# Headers


def test_a_header_of_which_one_can_count_is_given_once(app):
    for name, values in {
        "Host": ("127.0.0.1", "127.0.0.1"),
        "Authorization": ("Bearer a", "Bearer b"),
        "Content-Type": ("application/json", "text/plain"),
    }.items():
        answer = app.get("/health/live", headers=[(name, value) for value in values])
        assert name in refused(answer, 400, "malformed-request")
    refused(app.options("/", headers={"Host": "evil.example"}), 400, "wrong-host")


def test_a_compressed_body_is_refused(app):
    for content in (gzip.compress(json.dumps(body("hello")).encode()), json.dumps(body("hello")).encode()):
        answer = post(app, content, **{"Content-Encoding": "gzip"})
        refused(answer, 415, "unsupported-media-type")
        assert answer.headers["accept-encoding"] == "identity"
    assert post(app, json.dumps(body("hello")), **{"Content-Encoding": "identity"}).status_code == 202


@pytest.mark.parametrize(
    ("header", "is_zipped"),
    [
        ("gzip", True), ("GZIP;q=0.5", True), ("*", True), ("gzip;q=0", False), ("gzip; q=0.000", False), ("", False),
        ("identity", False), ("*;q=0", False), ("br, gzip;q=0.1", True), ("gzip;q=0.2, identity;q=0.9", False),
        ("notgzip", False),
    ],
)  # fmt: skip
def test_gzip_is_sent_to_who_accepts_it(finished, header, is_zipped):
    client, path = finished
    answer = client.get(path, headers={"Accept-Encoding": header})
    assert (answer.headers.get("content-encoding") == "gzip") == is_zipped
    assert answer.json()["text"] == "hello"


def test_a_current_copy_is_recognised_by_weak_and_strong_tags(finished):
    client, path = finished
    etag = client.get(path).headers["etag"]
    for header in (etag, etag.removeprefix("W/"), f'"other", {etag}', "*"):
        assert client.get(path, headers={"If-None-Match": header}).status_code == 304, header
    for header in ('"other"', "", etag.strip('W/"')):
        assert client.get(path, headers={"If-None-Match": header}).status_code == 200, header


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A client, and the path of a result."""
    with in_process(Settings(data_dir=tmp_path_factory.mktemp("finished"))) as client:
        job_id = submit(client, "hello")
        ended(client, job_id)
        yield client, f"/attribution/jobs/{job_id}/results"


# Bodies


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"model": "m", "method": "dummy", "input_text": "a", "model": "n"}', "'model' is given twice"),
        (b'{"model": "m", "attribution_args": {"n_steps": 1, "n_steps": 2}}', "'n_steps' is given twice"),
        (b'{"model": ' + b"1" * 5000 + b"}", "too long"),
        (b'{"model": "\xff"}', "UTF-8"),
        (b"[" * 200_000, "nested too deeply"),
        (gzip.compress(b"{}", mtime=0), "UTF-8"),
        (b'{"model": }', "at character 10"),
        (b"{not json", "not valid JSON"),
    ],
)
@pytest.mark.parametrize("path", ["/attribution/jobs", "/attribution/estimate"])
def test_a_body_that_is_not_plain_json_is_refused_with_its_fault(finished, path, content, words):
    client, _ = finished
    answer = post(client, content, path)
    assert words in refused(answer, 400, "malformed-body")
    assert [error["pointer"] for error in answer.json()["errors"]] == [""]


def test_a_key_that_is_repeated_after_many_others_is_found_at_once(finished):
    """Not in time that grows with the square of their number."""
    client, _ = finished
    names = ", ".join(f'"{number}": 0' for number in range(300_000))
    assert "'0' is given twice" in refused(post(client, "{" + names + ', "0": 1}'), 400, "malformed-body")


# Slow work


def test_forty_slow_views_and_estimates_delay_nobody_else(app):
    """While all of them are held, polls, lists, submissions and health checks are answered."""
    engine, go_on, begun = app.app.state.services.engine, threading.Event(), []

    def slow(*_):
        begun.append(time.monotonic())
        go_on.wait(120)
        raise InputRejected("It was slow.")

    engine.view, engine.estimate = slow, slow
    job_id = submit(app, "hello")
    ended(app, job_id)
    answers = []
    ask = [lambda: app.get(f"/attribution/jobs/{job_id}/results?format=csv")] * 40
    ask += [lambda: post(app, json.dumps(body("hello")), "/attribution/estimate")] * 40
    threads = [threading.Thread(target=lambda each=each: answers.append(each().status_code)) for each in ask]
    try:
        for thread in threads:
            thread.start()
        until(lambda: len(begun) >= 4)
        for path in ("/health/live", "/health/ready", f"/attribution/jobs/{job_id}", "/attribution/jobs", "/metrics",
                     f"/attribution/jobs/{job_id}/results"):  # fmt: skip
            assert app.get(path).status_code == 200, path
        ended(app, submit(app, "another"))
        assert len(begun) == 4  # two views and two estimates; the others wait without a thread
    finally:
        go_on.set()
        for thread in threads:
            thread.join()
    assert answers == [422] * 80


# What one key learns of another


def test_a_made_up_model_has_no_metric_of_its_own(app, monkeypatch):
    monkeypatch.setattr(metrics, "_MAX_MODELS", 3)
    for number in range(5):
        ended(app, submit(app, "fail", model=f"made/up-{number}"))
    ended(app, submit(app, "hello", model="real/model@v1"))
    ended(app, submit(app, "fail", model="real/model"))
    text = app.get("/metrics").text
    assert "made/up" not in text
    assert 'model="real/model",status="completed"' in text.replace(", ", ",")
    assert 'inseq_api_job_seconds_count{method="saliency",model="other",status="failed"} 5.0' in text
    for number in range(5):
        ended(app, submit(app, "hello", model=f"another-{number}"))
    named = {number for number in range(5) if f"another-{number}" in app.get("/metrics").text}
    assert named == {0, 1}


def bearer(secret):
    return {"Authorization": f"Bearer {secret}"}


def test_a_key_does_not_see_the_models_of_another(tmp_path):
    keys = ApiKeys.of(tmp_path)
    ann, ben = (bearer(keys.create(name)[1]) for name in ("ann", "ben"))
    with in_process(Settings(data_dir=tmp_path)) as client:
        engine = client.app.state.services.engine
        engine.listed = {"bundled"}
        engine.loaded = [{"name": name, "revision": "v1"} for name in ("bundled", "ann/secret", "ben/secret")]
        engine.loaded.append({"name": "ben/base+ben/tuned", "revision": "v1+v2"})
        used = ((ann, "ann/secret"), (ben, "ben/secret@v1"), (ann, "bundled"), (ben, "ben/base+ben/tuned@v2"))
        for headers, model in used:
            job = client.post("/attribution/jobs", json=body("hello") | {"model": model}, headers=headers).json()
            client.get(f"/attribution/jobs/{job['job_id']}", params={"wait": 60}, headers=headers)
        for part in ("loaded", "available"):
            seen = {
                name: [each["name"] for each in client.get("/attribution/models", headers=headers).json()[part]]
                for name, headers in {"ann": ann, "ben": ben}.items()
            }
            assert seen == {"ann": ["bundled", "ann/secret"], "ben": ["bundled", "ben/secret", "ben/base+ben/tuned"]}
        text = client.get("/metrics", headers=ben).text
        assert "secret" not in text
        assert 'model="bundled"' in text


def test_the_metrics_have_a_key_of_their_own(tmp_path):
    _, ann = ApiKeys.of(tmp_path).create("ann")
    with in_process(Settings(data_dir=tmp_path, metrics_key="metrics-metrics-metrics")) as client:
        job = client.post("/attribution/jobs", json=body("hello") | {"model": "ann/secret"}, headers=bearer(ann)).json()
        client.get(f"/attribution/jobs/{job['job_id']}", params={"wait": 60}, headers=bearer(ann))
        for headers in ({}, bearer(ann), bearer("nonsense")):
            assert "INSEQ_API_METRICS_KEY" in refused(client.get("/metrics", headers=headers), 401, "unauthorized")
        text = client.get("/metrics", headers=bearer("metrics-metrics-metrics")).text
        assert 'model="ann/secret"' in text
        assert client.get("/attribution/jobs", headers=bearer("metrics-metrics-metrics")).status_code == 401


# Texts


@pytest.mark.parametrize(
    ("said", "sent"),
    [
        ("The repository {path}/evil contains custom code, see https://hf.co/{path}/evil.",
         "The repository evil contains custom code, see https://hf.co/evil."),
        ("No such file: '{path}/my models/config.json'", "No such file: 'config.json'"),
        ('File "{path}/engine.py", line 3', 'File "engine.py", line 3'),
        ("/attribution_args/n_steps: see /attribution/jobs and text/plain", None),
        ("There is no org/tmp or https://host/tmp/x", None),
    ],
)  # fmt: skip
def test_no_problem_tells_a_path_of_the_server(tmp_path, said, sent):
    assert ServiceError(said.format(path=tmp_path)).to_problem().detail == (sent or said)


def test_a_failed_job_tells_no_path(app, tmp_path):
    engine = app.app.state.services.engine
    running = submit(app, "hold")
    until_running(app, running)

    def encode(_):
        raise OSError(2, "No such file or directory", f"{tmp_path}/weights.bin")

    engine.answer = encode
    engine.go_on.set()
    error = ended(app, running)["error"]
    assert "weights.bin" in error["detail"]
    assert str(tmp_path) not in error["detail"]
