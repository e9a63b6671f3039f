"""Links for others: they open one job and its result to readers without a key, until they expire or are revoked."""

from __future__ import annotations

import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

import httpx
import pytest

from attribution_client import AttributionClient, InvalidRequest, NotFound
from jobs.store.api_keys import ApiKeys
from settings import Settings
from tests.conftest import LOOKUP, PROMPT
from tests.fake_engine import body, ended, in_process, submit
from tests.serving import until

DAY = 86400


@pytest.fixture
def keyed(tmp_path):
    """A client of an app with two keys, the headers of each, and the keys."""
    keys = ApiKeys.of(tmp_path)
    headers = [{"Authorization": f"Bearer {keys.create(name)[1]}"} for name in ("ann", "ben")]
    with in_process(Settings(data_dir=tmp_path, share_max_days=30)) as client:
        yield client, *headers, keys


def share(client, job_id, headers=None, **asked):
    answer = client.post(f"/attribution/jobs/{job_id}/shares", json=asked, headers=headers)
    assert answer.status_code == 201, answer.text
    return answer.json()


def refusal(answer):
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    return answer.status_code, answer.json()["type"].removeprefix("/problems/")


def test_a_link_opens_one_job_without_a_key_and_nothing_else(keyed, capfd):
    client, ann, ben, _ = keyed
    job = client.post("/attribution/jobs", json=body("hello", tags={"for": "me"}), headers=ann).json()
    other = client.post("/attribution/jobs", json=body("other"), headers=ann).json()
    path = f"/attribution/jobs/{job['job_id']}"
    job = client.get(path, headers=ann, params={"wait": 60}).json()
    made = client.post(f"{path}/shares", headers=ann)
    assert made.headers["cache-control"] == "no-store"
    link = made.json()["url"]
    token = link.removeprefix("/shared/")
    assert re.fullmatch(r"[\w-]{43}", token)  # 256 bits
    shown = client.get(f"{link}/job")
    assert shown.headers.get_list("x-robots-tag") == ["noindex, nofollow"]
    assert "x-robots-tag" not in client.get("/").headers
    assert shown.headers["referrer-policy"] == "no-referrer"
    document = shown.json()
    assert document["request"] == job["request"] | {"tags": {}}
    assert (document["job_id"], document["status"]) == (job["job_id"], "completed")
    assert "webhook" not in document
    result = client.get(f"{link}/results")
    assert result.content == client.get(f"{path}/results", headers=ann).content
    assert document["links"]["results"] == f"{link}/results"
    again = client.get(f"{link}/results", headers={"If-None-Match": result.headers["etag"]})
    assert again.status_code == 304
    assert client.get(document["links"]["aggregators"]).status_code == 200
    page = client.get(link)
    assert (page.status_code, page.headers["x-robots-tag"]) == (200, "noindex, nofollow")
    assert page.text == client.get("/").text  # which sees by its address that it shows one job
    assert "unsafe" not in page.headers["content-security-policy"]
    # Nothing else
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        for end in ("", "/job", "/results"):
            assert client.request(method, link + end).status_code == 405
    for end in ("/events", "/cancel", "/shares", f"/jobs/{other['job_id']}", "/jobs"):
        assert refusal(client.get(link + end)) == (404, "not-found")
    bearer = {"Authorization": f"Bearer {token}"}
    assert refusal(client.get(path, headers=bearer)) == (401, "unauthorized")
    assert refusal(client.get(path)) == (401, "unauthorized")
    # Another key's links are neither seen, made nor revoked.
    share_id = made.json()["share_id"]
    for method, end in (("POST", "/shares"), ("GET", "/shares"), ("DELETE", f"/shares/{share_id}")):
        assert refusal(client.request(method, path + end, headers=ben)) == (404, "job-not-found")
    assert token not in capfd.readouterr().out


def test_a_token_is_stored_as_its_hash(keyed, tmp_path):
    client, ann, _, _ = keyed
    job_id = client.post("/attribution/jobs", json=body("x"), headers=ann).json()["job_id"]
    token = share(client, job_id, ann)["url"].removeprefix("/shared/").encode()
    assert token not in (tmp_path / "jobs.sqlite3").read_bytes() + (tmp_path / "jobs.sqlite3-wal").read_bytes()
    (listed,) = client.get(f"/attribution/jobs/{job_id}/shares", headers=ann).json()["shares"]
    assert set(listed) == {"share_id", "created_at", "expires_at"}


def test_a_link_ends_with_its_time_its_revocation_its_job_and_its_key(keyed):
    client, ann, _, keys = keyed
    store = client.app.state.services.store
    jobs = [client.post("/attribution/jobs", json=body(text), headers=ann).json()["job_id"] for text in "ab"]
    for job_id in jobs:
        client.get(f"/attribution/jobs/{job_id}", headers=ann, params={"wait": 60})
    default, long, revoked = (
        share(client, jobs[0], ann, **more) for more in ({}, {"expires_in_seconds": 30 * DAY}, {})
    )
    of_other = share(client, jobs[1], ann, expires_in_seconds=30 * DAY)

    def lasts(made):
        return (datetime.fromisoformat(made["expires_at"]) - datetime.fromisoformat(made["created_at"])).total_seconds()

    assert [lasts(default), lasts(long)] == [7 * DAY, 30 * DAY]
    path = f"/attribution/jobs/{jobs[0]}/shares"
    assert client.delete(f"{path}/{revoked['share_id']}", headers=ann).status_code == 204
    assert refusal(client.delete(f"{path}/{revoked['share_id']}", headers=ann)) == (404, "share-not-found")
    assert refusal(client.get(f"{revoked['url']}/job")) == (404, "share-not-found")
    assert client.get(revoked["url"]).status_code == 404
    store._wall_clock = lambda: time.time() + 8 * DAY
    for end in ("/job", "/results", "/aggregators"):
        assert refusal(client.get(default["url"] + end)) == (410, "share-expired")
    assert client.get(default["url"]).status_code == 410
    assert client.get(f"{long['url']}/job").status_code == 200
    assert [each["share_id"] for each in client.get(path, headers=ann).json()["shares"]] == [long["share_id"]]
    store._wall_clock = time.time
    assert client.delete(f"/attribution/jobs/{jobs[1]}", headers=ann).status_code == 204
    assert refusal(client.get(f"{of_other['url']}/results")) == (404, "share-not-found")
    assert keys.revoke(keys.list()[0].key_id)
    assert refusal(client.get(f"{long['url']}/job")) == (404, "share-not-found")


def test_what_cannot_be_shared_is_refused(keyed):
    client, ann, _, _ = keyed
    job_id = client.post("/attribution/jobs", json=body("x"), headers=ann).json()["job_id"]
    path = f"/attribution/jobs/{job_id}/shares"
    wrong = [{"expires_in_seconds": each} for each in (30 * DAY + 1, 0, True, "60", 60.0)]
    for asked in (*wrong, {"expires_in": 5}):
        answer = client.post(path, json=asked, headers=ann)
        assert refusal(answer) == (422, "invalid-request")
        assert answer.json()["errors"][0]["pointer"] == f"/{next(iter(asked))}"
    assert "did you mean 'expires_in_seconds'?" in answer.json()["errors"][0]["detail"]
    for _ in range(100):
        share(client, job_id, ann)
    answer = client.post(path, json={}, headers=ann)
    assert refusal(answer) == (422, "invalid-request")
    assert "Revoke one" in answer.json()["detail"]
    for token in ("x", "A" * 43, "%00", "%F0%9F%A6%86", "..%2f..", "a" * 3000):
        answer = client.get(f"/shared/{token}/job")
        assert refusal(answer)[0] == 404, token
        assert answer.headers.get_list("x-robots-tag") == ["noindex, nofollow"], token


def test_links_work_without_keys_and_can_be_switched_off(tmp_path):
    with in_process(Settings(data_dir=tmp_path)) as client:
        job_id = submit(client, "hold")
        link = share(client, job_id)["url"]
        assert client.get(f"{link}/job").json()["status"] in {"pending", "running"}
        assert refusal(client.get(f"{link}/results")) == (409, "result-not-ready")
        client.app.state.services.engine.go_on.set()
        ended(client, job_id)
        assert client.get(f"{link}/results").json() == {"text": "hold", "seed": 0}
    with in_process(Settings(data_dir=tmp_path, share_max_days=0)) as client:
        answer = client.post(f"/attribution/jobs/{job_id}/shares")
        assert refusal(answer) == (422, "invalid-request")
        assert "INSEQ_API_SHARE_MAX_DAYS" in answer.json()["detail"]
        assert client.get(f"{link}/job").status_code == 200  # it was made before


def test_slow_views_behind_a_link_delay_nobody_else(keyed, monkeypatch):
    """A view is computed to its end, also when its reader has gone."""
    client, ann, _, _ = keyed
    job_id = client.post("/attribution/jobs", json=body("x"), headers=ann).json()["job_id"]
    link, free, asked = share(client, job_id, ann)["url"], threading.Event(), []

    def view(raw, _view_format, options):
        asked.append(options.granular)
        if options.granular:
            free.wait(60)
        return raw

    until(lambda: client.get(f"/attribution/jobs/{job_id}", headers=ann).json()["status"] == "completed")
    monkeypatch.setattr(client.app.state.services.engine, "view", view)
    with ThreadPoolExecutor(4) as threads:
        slow = [threads.submit(client.get, f"{link}/results", params={"granular": True}) for _ in range(3)]
        until(lambda: asked)
        try:
            mine = threads.submit(
                client.get, f"/attribution/jobs/{job_id}/results", params={"decode_tokens": True}, headers=ann
            )
            assert mine.result(30).json() == {"text": "x", "seed": 0}
            assert asked == [True, False]
        finally:
            free.set()
        assert {each.result(30).status_code for each in slow} == {200}


def test_every_view_is_open_to_the_reader_and_the_client_makes_links(server):
    job_id = server.run(model=LOOKUP, method="saliency", input_text=PROMPT, tags={"for": "me"})
    with AttributionClient(server.url) as client:
        made = client.share(job_id, expires_in=timedelta(hours=2))
        assert made.url.startswith(f"{server.url}/shared/")
        assert made.expires_at - made.created_at == timedelta(hours=2)
        assert [each.share_id for each in client.shares(job_id)] == [made.share_id]
        for query in ({"format": "json", "aggregator": "subwords,scores"}, {"format": "html"}, {"format": "csv"},
                      {"format": "parquet"}, {"format": "inseq"}, {"granular": "true"}):  # fmt: skip
            shown = httpx.get(f"{made.url}/results", params=query)
            owned = server.client.get(f"/attribution/jobs/{job_id}/results", params=query)
            assert (shown.status_code, shown.content) == (200, owned.content), query
            assert shown.headers["x-robots-tag"] == "noindex, nofollow"
            assert shown.headers["content-security-policy"] == owned.headers["content-security-policy"]
        client.revoke_share(job_id, made)
        assert httpx.get(f"{made.url}/results").status_code == 404
        with pytest.raises(NotFound):
            client.revoke_share(job_id, "none")
        with pytest.raises(InvalidRequest):
            client.share(job_id, expires_in=10**9)
    assert made.url.rpartition("/")[2] not in server.log


def test_a_failure_behind_a_link_does_not_log_its_token(keyed, monkeypatch, capfd):
    client, ann, _, _ = keyed
    job_id = client.post("/attribution/jobs", json=body("x"), headers=ann).json()["job_id"]
    link = share(client, job_id, ann)["url"]

    def fail():
        raise ZeroDivisionError

    monkeypatch.setattr(client.app.state.services.engine, "aggregators", fail)
    failed = client.get(f"{link}/aggregators")
    assert refusal(failed) == (500, "internal-error")
    refused = client.get(f"{link}/results", params={"format": "none"})
    assert refused.status_code == 422
    for answer in (failed, refused, client.get(f"{link}/nothing")):
        assert answer.headers.get_list("x-robots-tag") == ["noindex, nofollow"]
    logged = capfd.readouterr().out
    assert "path=/shared/…/aggregators" in logged
    assert link.removeprefix("/shared/") not in logged


def test_the_document_says_which_routes_take_a_key(app):
    document = app.get("/openapi.json").json()
    schemes = document["components"]["securitySchemes"]
    assert (schemes["ApiKey"]["type"], schemes["ApiKey"]["scheme"]) == ("http", "bearer")
    for path, operations in document["paths"].items():
        for operation in operations.values():
            named = {name for each in operation.get("security", []) for name in each}
            takes_one = path.startswith("/attribution/") or path == "/metrics"
            assert named == ({"ApiKey"} if takes_one else set()), path
            assert not takes_one or {} in operation["security"]  # a server may have no keys


def test_errors_of_a_link_may_not_be_indexed_either(server):
    for path in ("/shared/nothing", "/shared/nothing/results", "/shared/nothing/results?format=nonsense"):
        answer = server.client.get(path)
        assert answer.status_code in {404, 422}
        assert answer.headers["x-robots-tag"] == "noindex, nofollow"
    assert "x-robots-tag" not in server.client.get("/attribution/methods").headers


@pytest.mark.parametrize("seconds", [True, "60", 1.5])
def test_the_time_of_a_link_is_a_whole_number(server, seconds):
    job = server.run(model=LOOKUP, method="dummy", input_text="Anna likes")
    refused = server.client.post(f"/attribution/jobs/{job}/shares", json={"expires_in_seconds": seconds})
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["pointer"] == "/expires_in_seconds"


@pytest.mark.parametrize(
    ("method", "path", "body", "known"),
    [
        ("PATCH", "/attribution/jobs/{job}", {"nam": "x"}, "did you mean 'name'"),
        ("POST", "/attribution/jobs/{job}/shares", {"seconds": 5}, "There are: expires_in_seconds."),
        ("POST", "/attribution/jobs/cancel", {"job_id": []}, "did you mean 'job_ids'"),
        ("POST", "/attribution/jobs", {"modle": "x"}, "did you mean 'model'"),
        ("POST", "/attribution/jobs", {"spans": [{"txt": "x"}]}, "did you mean 'text'"),
    ],
)
def test_an_unknown_field_is_told_the_fields_of_its_own_body(server, method, path, body, known):
    job = server.run(model=LOOKUP, method="dummy", input_text="Anna likes")
    refused = server.client.request(method, path.format(job=job), json=body)
    assert refused.status_code == 422
    details = [each["detail"] for each in refused.json()["errors"] if "There is no field" in each["detail"]]
    assert known in details[0]
