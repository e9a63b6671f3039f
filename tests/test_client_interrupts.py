"""An interrupted wait adds a note to its exception with the id of the job, which is still running."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import threading
import time

import httpx
import pytest

from attribution_client import AsyncAttributionClient, AttributionClient, JobStatus, ServerUnreachable
from tests.misbehaving import RESET, misbehaving
from tests.serving import Server, until

BODY = {"model": "m", "input_text": "forever"}
CALLS = [("attribute", "saliency"), ("compare", ["saliency", "lime"])]


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    """A server with the fake engine, whose jobs take as long as their `input_text` says."""
    with Server(tmp_path_factory.mktemp("slow"), module="tests.fake_engine") as running:
        yield running


@pytest.fixture
def other(slow):
    """A second client, which inspects jobs and cancels those left at the end of the test."""
    with AttributionClient(slow.url) as looking:
        yield looking
        for status in ("running", "pending"):
            for job in looking.jobs(status=status):
                looking.cancel(job)


def the_running(client):
    while not (jobs := list(client.jobs(status="running"))):
        time.sleep(0.02)
    return jobs[0]


def named(client, error):
    """Check that the job named in the exception's note is running, and cancel it as the note says; returns its id."""
    (note,) = error.__notes__
    (job_id,) = set(re.findall(r"[0-9a-f]{32}", note))
    assert client.job(job_id).status is JobStatus.RUNNING
    assert f"cancel('{job_id}')" in note
    assert client.cancel(job_id).job_id == job_id
    return job_id


@pytest.mark.parametrize(("call", "methods"), CALLS)
def test_ctrl_c_leaves_a_note(slow, other, call, methods):
    def interrupt():
        the_running(other)
        until(lambda: "inseq_api_watchers 1.0" in httpx.get(f"{slow.url}/metrics").text)  # the client watches its job
        os.kill(os.getpid(), signal.SIGINT)

    with AttributionClient(slow.url) as client:
        threading.Thread(target=interrupt).start()
        with pytest.raises(KeyboardInterrupt) as interrupted:
            getattr(client, call)(BODY["model"], methods, BODY["input_text"])
    named(other, interrupted.value)


@pytest.mark.parametrize(("call", "methods"), CALLS)
def test_a_cancelled_task_leaves_a_note(slow, other, call, methods):
    async def work():
        async with AsyncAttributionClient(slow.url) as client:
            waiting = asyncio.create_task(getattr(client, call)(BODY["model"], methods, BODY["input_text"]))
            await asyncio.to_thread(the_running, other)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError) as cancelled:
                await waiting
            return cancelled.value

    named(other, asyncio.run(work()))


def test_a_time_limit_of_asyncio_has_the_note_in_its_cause(slow, other):
    async def work():
        async with AsyncAttributionClient(slow.url) as client:
            with pytest.raises(TimeoutError) as late:
                async with asyncio.timeout(1):
                    await client.attribute("m", "saliency", "forever")
            return late.value.__cause__

    named(other, asyncio.run(work()))


@pytest.mark.parametrize(("call", "methods"), CALLS)
def test_a_server_that_is_gone_leaves_a_note(slow, other, call, methods):
    with misbehaving(slow.url) as proxy, AttributionClient(proxy.url, retry_seconds=0.5) as client:
        proxy.plan = [None, *[RESET] * 50]  # the server accepts the job; every later request fails
        with pytest.raises(ServerUnreachable) as gone:
            getattr(client, call)(BODY["model"], methods, BODY["input_text"])
    the_running(other)
    named(other, gone.value)
