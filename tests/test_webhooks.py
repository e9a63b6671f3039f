"""Webhooks: signed as Standard Webhooks asks, repeated, durable, and sent to allowed hosts alone."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
from contextlib import suppress

import httpx
import pytest

from api.webhook_hosts import WebhookHosts
from attribution_client import WebhookRejected, verify_webhook
from attribution_schema.webhook import signatures
from jobs.store.webhook_address import address_of
from settings import Settings
from tests.fake_engine import body, ended, in_process, submit, until_running
from tests.receiver import SECRET, receiving
from tests.serving import ROOT, Server, until

OTHER_SECRET = "whsec_" + "B" * 32


@pytest.fixture
def receiver():
    with receiving() as running:
        yield running


@pytest.fixture
def hooked(tmp_path):
    """A client of an app that sends webhooks to this machine, and repeats them twice."""
    with in_process(settings(tmp_path)) as client:
        yield client


def settings(path, **more):
    given = {"webhook_hosts": "127.0.0.1:*", "webhook_secret": SECRET, "webhook_retry_seconds": "0.2,0.4"}
    return Settings(data_dir=path, **(given | more))


def delivery(client, job_id):
    return client.get(f"/attribution/jobs/{job_id}").json()["webhook"]


def delivered(client, job_id, status="delivered"):
    """Wait until the delivery has this status, and return it."""
    until(lambda: delivery(client, job_id)["status"] == status, 30)
    return delivery(client, job_id)


# The signature


def test_the_signature_is_that_of_the_specification():
    """The example of the libraries of Standard Webhooks."""
    signed = signatures([SECRET], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def message(hooked, receiver):
    job_id = submit(hooked, "hello", webhook=receiver.url)
    until(lambda: receiver.received)
    return job_id, *receiver.received[0][:2]


def test_the_job_is_posted_signed_when_it_has_completed(hooked, receiver):
    job_id, headers, posted = message(hooked, receiver)
    event = verify_webhook(headers, posted, SECRET)
    assert event.type == "job.completed"
    assert headers["Content-Type"] == "application/json"
    assert headers["webhook-id"] == f"msg_{job_id}"
    assert delivered(hooked, job_id)["attempts"] == 1
    job = hooked.get(f"/attribution/jobs/{job_id}").json()
    assert json.loads(posted)["data"] == job | {"webhook": None}
    assert (event.data.job_id, event.timestamp) == (job_id, event.data.finished_at)
    assert 'webhook_attempts_total{outcome="delivered"} 1.0' in hooked.get("/metrics").text


@pytest.mark.parametrize(
    ("change", "secret", "reason"),
    [
        ({}, OTHER_SECRET, "not of this secret"),
        ({"body": b"{}"}, SECRET, "not of this secret"),
        ({"webhook-id": "msg_other"}, SECRET, "not of this secret"),
        ({"webhook-timestamp": "1"}, SECRET, "not of this secret"),
        ({"webhook-signature": "v1,"}, SECRET, "not of this secret"),
        ({"webhook-signature": None}, SECRET, "missing"),
        ({"webhook-timestamp": "now"}, SECRET, "missing"),
    ],
)
def test_a_message_that_was_changed_is_rejected(change, secret, reason):
    content = b'{"type": "x"}'
    now = int(time.time())
    headers = {"webhook-id": "msg_1", "webhook-timestamp": str(now)}
    headers["webhook-signature"] = signatures([SECRET], "msg_1", now, content)
    headers |= {name: value for name, value in change.items() if name != "body"}
    with pytest.raises(WebhookRejected, match=reason):
        verify_webhook(
            {name: value for name, value in headers.items() if value is not None}, change.get("body", content), secret
        )


def test_an_old_message_is_rejected_and_several_secrets_sign(hooked, receiver):
    _, headers, posted = message(hooked, receiver)
    assert verify_webhook(headers, posted.decode(), [OTHER_SECRET, SECRET]).data.status == "completed"
    old = int(time.time()) - 301
    both = {"webhook-id": "m", "webhook-timestamp": str(old)}
    both["Webhook-Signature"] = signatures([OTHER_SECRET, SECRET], "m", old, posted)
    for secret in (SECRET, OTHER_SECRET):
        with pytest.raises(WebhookRejected, match="300 seconds old"):
            verify_webhook(both, posted, secret)
        assert verify_webhook(both, posted, secret, tolerance=400).type == "job.completed"


# Deliveries


def test_a_failed_delivery_is_repeated_with_the_same_id_and_then_given_up(hooked, receiver):
    receiver.answers = [500, 302]
    first = submit(hooked, "a", webhook=receiver.url)
    assert delivered(hooked, first) == {
        "status": "delivered", "attempts": 3, "last_error": None, "next_attempt_at": None,
        "ended_at": delivery(hooked, first)["ended_at"],
    }  # fmt: skip
    assert [path for _, _, path in receiver.received] == ["/hook"] * 3  # the redirect was not followed
    assert {headers["webhook-id"] for headers, _, _ in receiver.received} == {f"msg_{first}"}
    assert len({content for _, content, _ in receiver.received}) == 1
    receiver.answers = [503] * 9
    second = submit(hooked, "b", webhook=receiver.url)
    gone = delivered(hooked, second, "failed")
    assert (gone["attempts"], gone["last_error"]) == (3, "The receiver answered 503.")
    assert gone["ended_at"]
    assert len(receiver.received) == 6
    receiver.answers = [410]
    third = submit(hooked, "c", webhook=receiver.url)
    assert delivered(hooked, third, "failed")["attempts"] == 1  # 410: the receiver wants no more
    counted = hooked.get("/metrics").text
    for outcome, count in (("delivered", 1), ("postponed", 4), ("given_up", 2)):
        assert f'webhook_attempts_total{{outcome="{outcome}"}} {count}.0' in counted


def test_each_end_of_a_job_is_posted_unless_it_was_not_asked_for(hooked, receiver):
    failed = submit(hooked, "fail", webhook=receiver.url)
    running = submit(hooked, "hold", webhook=receiver.url)
    waiting = submit(hooked, "x", webhook=receiver.url)
    unasked = submit(hooked, "y", webhook=receiver.url, webhook_events=["completed", "failed"])
    until_running(hooked, running)
    assert delivery(hooked, waiting)["status"] == "waiting"
    for job_id in (waiting, unasked, running):
        hooked.post(f"/attribution/jobs/{job_id}/cancel")
    for job_id in (failed, running, waiting):
        delivered(hooked, job_id)
    assert delivered(hooked, unasked, "skipped")["attempts"] == 0
    stored = submit(hooked, "same")
    ended(hooked, stored)
    reused = submit(hooked, "same", reuse=True, webhook=receiver.url)
    delivered(hooked, reused)
    events = {event.data.job_id: event for event in (verify_webhook(*each[:2], SECRET) for each in receiver.received)}
    types = {job_id: event.type for job_id, event in events.items()}
    assert types == {
        failed: "job.failed", running: "job.cancelled", waiting: "job.cancelled", reused: "job.completed",
    }  # fmt: skip
    assert events[failed].data.error.detail == "The text says fail."
    assert events[reused].data.reused_from == stored
    listed = hooked.get("/attribution/jobs").json()["jobs"]
    assert {job["job_id"]: job["webhook"] and job["webhook"]["status"] for job in listed} == {
        reused: "delivered", stored: None, unasked: "skipped", waiting: "delivered", running: "delivered",
        failed: "delivered",
    }  # fmt: skip


def written_otherwise(url):
    """The same address, with dots that a URL may have instead."""
    return url.replace("127.0.0.1", "127。0。0。1")


@pytest.mark.parametrize("spellings", [[str], [str, written_otherwise]], ids=["one spelling", "two spellings"])
def test_a_slow_receiver_holds_neither_jobs_nor_other_receivers(tmp_path, receiver, spellings):
    with receiving() as other, in_process(settings(tmp_path, webhook_timeout_seconds=1)) as client:
        receiver.free.clear()
        urls = [spellings[number % len(spellings)](receiver.url) for number in range(6)]
        held = [submit(client, f"slow {number}", webhook=url) for number, url in enumerate(urls)]
        quick = submit(client, "quick", webhook=other.url)
        delivered(client, quick)
        assert {delivery(client, job_id)["status"] for job_id in held} == {"pending"}
        until(lambda: delivery(client, held[0])["last_error"] == "No answer within 1 seconds.")
        assert len({headers["webhook-id"] for headers, _, _ in receiver.received[:4]}) == 4  # at once to one host
        assert receiver.most_at_once == 4
        receiver.free.set()
        for job_id in held:
            delivered(client, job_id)


def test_a_delivery_that_is_due_survives_kill_9(tmp_path):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # nobody else gets the port, and nobody answers on it
        port = held.getsockname()[1]
        server = Server(
            tmp_path, module="tests.fake_engine", INSEQ_API_WEBHOOK_HOSTS="127.0.0.1:*",
            INSEQ_API_WEBHOOK_SECRET=SECRET, INSEQ_API_WEBHOOK_RETRY_SECONDS="0.2," * 50,
        )  # fmt: skip
        server.start()
        job_id = server.submit(**body("hello", webhook=f"http://127.0.0.1:{port}/hook"))
        until(lambda: (server.job(job_id)["webhook"]["attempts"]) >= 1)
        assert "ConnectError" in server.job(job_id)["webhook"]["last_error"]
        log = server.log
        server.kill()
    with receiving(port) as receiver:
        server.start()
        try:
            until(lambda: server.job(job_id)["webhook"]["status"] == "delivered", 30)
            ((headers, posted, _),) = receiver.received
            assert verify_webhook(headers, posted, SECRET).data.job_id == job_id
            assert "webhook_postponed" in log
            assert SECRET not in log + server.log
            assert SECRET.encode() not in (tmp_path / "jobs.sqlite3").read_bytes()
        finally:
            server.stop()


def test_a_deleted_job_takes_its_delivery_along(hooked, receiver):
    receiver.answers = [500]
    job_id = submit(hooked, "a", webhook=receiver.url)
    until(lambda: delivery(hooked, job_id)["attempts"] == 1)
    assert hooked.delete(f"/attribution/jobs/{job_id}").status_code == 204
    time.sleep(0.6)  # longer than the pause
    assert len(receiver.received) == 1


def test_damaged_deliveries_harm_no_other(hooked, receiver):
    columns = ("url", "host", "events", "state", "attempts", "due_at", "ended_at", "error")
    damages = [(column, value) for column in columns for value in (b"\xff/..", "x", 1e300, -(2**63))]
    ids = [submit(hooked, "hold", webhook=receiver.url) for _ in damages]
    with hooked.app.state.services.store._database.write() as connection:
        for seq, (column, value) in enumerate(damages, start=1):
            connection.exec_driver_sql(f"UPDATE webhook_deliveries SET {column} = ? WHERE seq = ?", (value, seq))
    hooked.app.state.services.engine.go_on.set()
    for job_id in ids:
        ended(hooked, job_id)
    delivered(hooked, submit(hooked, "b", webhook=receiver.url))
    states = {job["webhook"]["status"] for job in hooked.get("/attribution/jobs").json()["jobs"]}
    assert states <= {"pending", "delivered", "failed", "skipped"}


# What is refused


HOSTS = ["hooks.example.com", "*.intern:8443", "[::1]:*", "10.0.0.?:9000"]


@pytest.mark.parametrize(
    ("url", "is_allowed"),
    [
        ("https://hooks.example.com/x?a=b", True),
        ("http://HOOKS.example.com/x", True),
        ("https://hooks.example.com:443/", True),
        ("https://hooks.example.com:444/", False),
        ("https://hooks.example.com.evil.org/", False),
        ("https://evil.org/hooks.example.com", False),
        ("https://a.intern:8443/", True),
        ("https://a.intern/", False),
        ("http://[::1]:1/", True),
        ("http://[::2]:1/", False),
        ("http://10.0.0.7:9000/", True),
        ("http://167772167:9000/", False),  # 10.0.0.7, as some libraries read it
        ("http://10.0.0.7:9000@evil.org/", False),
        ("http://10。0。0。7:9000/", True),
        ("http://hooks。example。com/", True),
        ("http://höoks.example.com/", False),
        ("http://evil.org\\@10.0.0.7:9000/", False),
    ],
)
def test_only_allowed_hosts_are_called(url, is_allowed):
    assert (WebhookHosts(HOSTS).refusal(url) is None) is is_allowed
    assert WebhookHosts([]).refusal(url) is not None


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://127\u30020\u30020\u30021:1/x", ("127.0.0.1", 1)),  # other full stops
        ("https://B\u00dcCHER.example/x", ("xn--bcher-kva.example", 443)),
        ("https://xn--bcher-kva.example/x", ("xn--bcher-kva.example", 443)),
        ("HTTP://Hooks.Example.com/x", ("hooks.example.com", 80)),
        ("http://[::1]:9/x", ("::1", 9)),
    ],
)
def test_the_host_of_a_delivery_is_the_host_that_is_called(url, address):
    assert address_of(url) == address
    host, port = address
    shown = f"[{host}]" if ":" in host else host
    assert WebhookHosts([f"{shown}:{port}"]).refusal(url) is None


REFUSED = {
    "http://127.0.0.2/x": "INSEQ_API_WEBHOOK_HOSTS",
    "ftp://127.0.0.1/x": "https://",
    "file:///etc/passwd": "https://",
    "http://ann:secret@127.0.0.1/x": "no user name and password",
    "http://127.0.0.1/x#y": "after #",
    "http://127.0.0.1/ x": "no spaces",
    "http://127.0.0.1\\@evil.org/x": "backslashes",
    "http://127.0.0.1:99999/x": "Port",
    "/x": "https://",
    "http://" + "a" * 2048: "2048",
}


def test_a_webhook_that_cannot_be_sent_is_refused_with_its_request(hooked):
    for path in ("jobs", "estimate"):
        for url, why in REFUSED.items():
            answer = hooked.post(f"/attribution/{path}", json=body("x", webhook=url))
            problem = answer.json()
            assert (answer.status_code, problem["type"]) == (422, "/problems/invalid-request"), url
            assert problem["errors"][0]["pointer"] == "/webhook", url
            assert why in problem["detail"], url
    assert hooked.get("/attribution/jobs").json()["jobs"] == []


def test_events_need_a_webhook_and_are_ends(hooked):
    for given in ({"webhook_events": ["failed"]}, {"webhook": "http://127.0.0.1/", "webhook_events": ["running"]}):
        assert hooked.post("/attribution/jobs", json=body("x", **given)).status_code == 422


def test_a_server_without_allowed_hosts_says_which_setting_is_missing(app):
    answer = app.post("/attribution/jobs", json=body("x", webhook="https://example.com"))
    assert answer.status_code == 422
    assert "INSEQ_API_WEBHOOK_HOSTS" in answer.json()["detail"]


def test_a_host_that_is_allowed_no_more_gets_nothing(tmp_path, receiver):
    receiver.answers = [500]
    with in_process(settings(tmp_path)) as client:
        job_id = submit(client, "a", webhook=receiver.url)
        until(lambda: delivery(client, job_id)["attempts"] == 1)
    with in_process(settings(tmp_path, webhook_hosts="127.0.0.1:1")) as client:
        gone = delivered(client, job_id, "failed")
    assert "no webhooks to 127.0.0.1" in gone["last_error"]
    assert len(receiver.received) == 1


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"WEBHOOK_HOSTS": "a.org"}, "INSEQ_API_WEBHOOK_SECRET"),
        ({"WEBHOOK_HOSTS": "a.org", "WEBHOOK_SECRET": "whsec_c2hvcnQ="}, "INSEQ_API_WEBHOOK_SECRET: a secret is"),
        ({"WEBHOOK_HOSTS": "https://a.org"}, "INSEQ_API_WEBHOOK_HOSTS: 'https://a.org' is no host"),
        ({"WEBHOOK_RETRY_SECONDS": "5,soon"}, "INSEQ_API_WEBHOOK_RETRY_SECONDS"),
    ],
)
def test_a_wrong_setting_is_told_in_a_line_without_its_value(tmp_path, monkeypatch, capsys, variables, told):
    from api import command_line
    from main import create_app

    for name, value in variables.items():
        monkeypatch.setenv(f"INSEQ_API_{name}", value)
    with pytest.raises(SystemExit) as end:
        command_line.main(create_app, ["--data-dir", str(tmp_path)])
    said = capsys.readouterr().err
    assert end.value.code == 2
    assert told in said
    assert "c2hvcnQ" not in said


def test_a_webhook_makes_no_other_result():
    """Requests that differ in their webhook alone share a stored result."""
    from attribution.engine import AttributionEngine
    from tests.fake_engine import request

    engine = AttributionEngine(Settings())
    plain = request("Anna", model="lookup-gpt2")
    hooks = plain.model_copy(update={"webhook": "https://a.org", "webhook_events": ["failed"]})
    assert engine.result_identity(plain) == engine.result_identity(hooks) is not None


# The documents


def test_the_receiver_in_the_documentation_works_as_written(hooked):
    (example,) = re.findall(r"```python\n(# receiver\.py.*?)```", (ROOT / "docs" / "client.md").read_text(), re.DOTALL)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = example.replace("9000", str(port))
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT,
        env={"INSEQ_API_WEBHOOK_SECRET": SECRET, "PATH": ""},
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}/"

    def refuses_others():
        with suppress(httpx.ConnectError):
            return httpx.post(url, content=b"{}").status_code == 400

    try:
        until(refuses_others)
        job_id = submit(hooked, "hello", webhook=url)
        delivered(hooked, job_id)
        assert process.stdout.readline() == f"{job_id} completed\n"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
