"""The client with refused requests, failed jobs, and failing servers and networks."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from types import SimpleNamespace

import pytest
import tenacity

from attribution_client import (
    AsyncAttributionClient,
    AttributionCancelled,
    AttributionClient,
    AttributionFailed,
    Busy,
    Conflict,
    InvalidRequest,
    JobStatus,
    NotFound,
    ServerFailed,
    ServerUnreachable,
    Unauthorized,
    WaitTimedOut,
)
from tests.conftest import LOOKUP, PROMPT
from tests.misbehaving import CUT, RESET, misbehaving
from tests.serving import ROOT, Server, until


@pytest.fixture(scope="module")
def client(server):
    with AttributionClient(server.url) as made:
        yield made


def told(action):
    return {"model": "m", "method": "saliency", "input_text": action}


# Errors


def test_a_refused_request_says_where(client):
    with pytest.raises(InvalidRequest) as refused:
        client.submit(model=LOOKUP, method="nonsense", input_text=PROMPT)
    assert refused.value.status == 422
    assert refused.value.errors[0].pointer == "/method"
    assert "nonsense" in str(refused.value)
    with pytest.raises(NotFound):
        client.job("nope")


def test_a_failed_job_says_why(slow):
    with AttributionClient(slow.url) as client:
        with pytest.raises(AttributionFailed, match="The text says fail") as failed:
            client.attribute(**told("fail"))
        assert failed.value.problem.type == "/problems/input-rejected"
        assert failed.value.job.status is JobStatus.FAILED
        with pytest.raises(Conflict):
            client.results(failed.value.job)


def test_waiting_has_an_end(slow):
    with AttributionClient(slow.url) as client:
        job = client.submit(**told("forever"))
        slow.wait_until_attributing(job.job_id)
        started = time.monotonic()
        with pytest.raises(WaitTimedOut) as late:
            client.wait(job, timeout=1)
        assert 0.9 < time.monotonic() - started < 60
        assert isinstance(late.value, TimeoutError)
        assert late.value.job.status is JobStatus.RUNNING
        assert client.cancel(job).job_id == job.job_id
        with pytest.raises(AttributionCancelled):
            client.wait(job)
        assert client.cancel(job).status is JobStatus.CANCELLED  # a second cancel returns the cancelled job
        ended = client.wait(client.submit(**told("hello")))
        with pytest.raises(Conflict):
            client.cancel(ended)


def test_keys(tmp_path):
    with Server(tmp_path, module="tests.fake_engine") as running:
        made = subprocess.run(
            [sys.executable, "main.py", "--data-dir", str(tmp_path), "keys", "create", "ann"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        key = next(word for word in made.stdout.split() if len(word) > 30)
        with AttributionClient(running.url) as client, pytest.raises(Unauthorized, match="API key"):
            client.models()
        with AttributionClient(running.url, key) as client:
            assert client.models() == {"loaded": [], "available": []}


def test_server_and_key_come_from_the_environment(slow, monkeypatch):
    monkeypatch.setenv("INSEQ_API_URL", slow.url)
    monkeypatch.setenv("INSEQ_API_KEY", "secret")
    with misbehaving(slow.url) as proxy, AttributionClient(proxy.url) as client:
        client.methods()
        assert proxy.seen[0][3]["Authorization"] == "Bearer secret"
    with AttributionClient() as client:
        assert client.methods() == []


# Retries


def test_a_retry_never_doubles_a_job(slow):
    with misbehaving(slow.url) as proxy, AttributionClient(proxy.url) as client:
        tag = f"once:{time.time_ns()}"
        name, value = tag.split(":")
        proxy.plan = [RESET, (503, {}), CUT, CUT]  # the third and fourth reach the server
        job = client.submit(**told("hello"), tags={name: value})
        assert [each[1] for each in proxy.seen] == ["POST"] * 5
        assert len({each[3]["Idempotency-Key"] for each in proxy.seen}) == 1
        assert [each.job_id for each in client.jobs(tag=tag)] == [job.job_id]


def test_retry_after_is_honoured(slow):
    with misbehaving(slow.url) as proxy, AttributionClient(proxy.url) as client:
        in_two_seconds = lambda: (503, {"Retry-After": formatdate(time.time() + 2, usegmt=True)})  # noqa: E731
        proxy.plan = [(429, {"Retry-After": "1"}), in_two_seconds]
        client.methods()
        assert len(proxy.seen) == 3
        assert proxy.gaps[0] >= 1.0
        assert proxy.gaps[1] >= 0.9  # an HTTP date has whole seconds


def test_pauses_grow_and_differ(slow, monkeypatch):
    """Checks the pauses that the client requests, as a busy machine sleeps longer."""
    pauses: list[float] = []
    monkeypatch.setattr(tenacity.nap, "time", SimpleNamespace(sleep=pauses.append))
    with misbehaving(slow.url) as proxy, AttributionClient(proxy.url) as client:
        proxy.plan = [RESET] * 8
        client.methods()
        assert len(proxy.seen) == 9
    assert all(0 <= pause <= min(10, 0.25 * 2**attempt) for attempt, pause in enumerate(pauses))
    assert len(set(pauses)) == 8
    assert max(pauses) > 0.25  # the upper bound of the first pause


def test_giving_up_keeps_the_servers_reason(slow):
    with misbehaving(slow.url) as proxy, AttributionClient(proxy.url, retry_seconds=0.5) as client:
        proxy.plan = [(429, {"Retry-After": "60"})]
        started = time.monotonic()
        with pytest.raises(Busy) as busy:
            client.methods()
        assert busy.value.retry_after == 60
        assert time.monotonic() - started < 50  # it does not begin a pause longer than `retry_seconds`
        proxy.plan = [(503, {})] * 50
        with pytest.raises(ServerFailed, match="503"):
            client.methods()
        proxy.plan = [RESET] * 50
        with pytest.raises(ServerUnreachable, match="does not answer"):
            client.methods()


def test_what_is_wrong_is_not_tried_again(slow):
    with misbehaving(slow.url) as proxy, AttributionClient(proxy.url) as client:
        with pytest.raises(NotFound):
            client.job("nope")
        proxy.plan = [(500, {})]
        with pytest.raises(ServerFailed):
            client.methods()
        assert len(proxy.seen) == 2


def test_a_lost_answer_to_a_delete_is_no_failure(slow):
    with misbehaving(slow.url) as proxy, AttributionClient(proxy.url) as client:
        job = client.wait(client.submit(**told("hello")))
        proxy.plan = [CUT]
        client.delete(job)
        with pytest.raises(NotFound):
            client.delete(job)


def test_waiting_outlives_the_server(tmp_path):
    """The server is killed and restarted while a client waits for a job: the client reconnects and gets the result."""
    with Server(tmp_path, module="tests.fake_engine") as running, misbehaving(running.url) as proxy:
        client = AttributionClient(proxy.url)
        job = client.submit(**told("sleep:3"))
        proxy.plan = [None, RESET, (503, {}), RESET]  # the submission, the event stream, and two reads of the job
        found: list = []
        waiting = threading.Thread(target=lambda: found.append(client.wait(job)))
        waiting.start()
        until(lambda: not proxy.plan)
        running.kill()
        running.start()
        proxy.upstream = running.url
        waiting.join(120)
        assert [each.status for each in found] == [JobStatus.COMPLETED]
        client.close()


def test_waiting_follows_and_does_not_poll(slow):
    with misbehaving(slow.url) as proxy, AttributionClient(proxy.url) as client, ThreadPoolExecutor(1) as pool:
        job = client.submit(**told("forever"))
        waiting = pool.submit(client.wait, job)
        until(lambda: len(proxy.seen) == 3)
        time.sleep(1)
        slow.settle()
        with pytest.raises(AttributionCancelled):
            waiting.result()
        assert len(proxy.seen) == 3  # a submission, one read and one event stream


def test_the_asynchronous_client_tries_again_and_stops_waiting(slow):
    async def work(proxy):
        async with AsyncAttributionClient(proxy.url) as client:
            proxy.plan = [RESET, (429, {"Retry-After": "0"}), CUT]
            job = await client.submit(**told("forever"))
            with pytest.raises(WaitTimedOut):
                await client.wait(job, timeout=0.5)
            await client.cancel(job)
            with pytest.raises(AttributionCancelled):
                await client.wait(job)
            with pytest.raises(AttributionFailed):
                await client.attribute(**told("fail"))

    with misbehaving(slow.url) as proxy:
        asyncio.run(work(proxy))
        posts = [each for each in proxy.seen if each[1:3] == ("POST", "/attribution/jobs")]
        assert len(posts) == 5
