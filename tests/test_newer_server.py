"""The client reads unknown fields, statuses, stages, engines and events of a newer server."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from pydantic import ValidationError

from attribution_client import (
    AsyncAttributionClient,
    AttributionClient,
    AttributionFailed,
    Job,
    JobEndedWithoutResult,
    JobStatus,
    WaitTimedOut,
)
from models import Engine, Stage
from tests.command_line import run

RESULT: dict[str, object] = {
    "sequence_attributions": [],
    "step_attributions": None,
    "info": {"engine": "tensor_network"},
    "more": 1,
}


def job(status, job_id="a" * 32, **more):
    """A job document of a newer server, with unknown fields and values."""
    progress = {"stage": "distilling", "steps_done": 1, "steps_total": 4, "fraction": 0.25, "phase": "new"}
    request = {"model": "m", "method": "saliency", "input_text": "hello", "engine": "tensor_network",
               "dtype": "float8", "temperature": 1}  # fmt: skip
    links = dict.fromkeys(("self", "results", "events", "cancel", "logs"), f"/attribution/jobs/{job_id}")
    return {"job_id": job_id, "status": status, "progress": progress, "created_at": "2030-01-01T00:00:00Z",
            "request": request, "links": links, "owner": "ann"} | more  # fmt: skip


ENDED = {"finished_at": "2030-01-01T00:01:00Z"}


class Newer:
    """A server that returns the documents in `looks` one by one (then always the last), and streams `events`."""

    def __init__(self):
        self.looks = [job("suspended")]
        self.events = []
        self.asked = []

    def answer(self, command, path):
        self.asked.append(f"{command} {path}")
        if path.endswith("/events"):
            told = "".join(f"event: {kind}\ndata: {data}\n\n" for kind, data in self.events)
            return "text/event-stream", f"retry: 10\n\n{told}"
        if path.endswith("/results"):
            return "application/json", json.dumps(RESULT)
        if path == "/attribution/jobs" and command == "GET":
            return "application/json", json.dumps({"jobs": self.looks, "next_cursor": None, "total": 3})
        if path == "/attribution/estimate":
            return "application/json", json.dumps(estimate())
        look = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        return "application/json", json.dumps(look)


def estimate():
    numbers = dict.fromkeys(
        ("forward_passes", "backward_passes", "generation_passes", "peak_memory_bytes", "available_memory_bytes",
         "result_bytes"), 1,
    )  # fmt: skip
    flags = dict.fromkeys(("is_upper_bound", "is_calibrated", "fits"), True)
    return {"model": "m", "methods": ["saliency"], "device": "cpu", "dtype": "float8", "engine": "tensor_network",
            "inputs": [], "seconds": {"generating": 0, "attributing": 1, "total": 1},
            "request": job("pending")["request"]} | numbers | flags  # fmt: skip


@pytest.fixture
def newer():
    with serving() as (state, url):
        state.url = url
        yield state


@contextmanager
def serving():
    state = Newer()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def _serve(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            kind, text = state.answer(self.command, self.path.partition("?")[0])
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(text.encode())

        do_GET = do_POST = _serve  # noqa: N815 - the library's names

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield state, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def client(newer):
    with AttributionClient(newer.url) as made:
        yield made


def test_an_unknown_status_is_shown_as_it_is_and_has_not_ended(client):
    found = client.job("x")
    assert (found.status, str(found.status), f"{found.status}") == ("suspended",) * 3
    assert isinstance(found.status, JobStatus)
    assert "suspended" not in list(JobStatus)
    assert not found.status.is_terminal
    assert not found.has_ended
    assert found.progress.stage == "distilling"
    assert found.request.engine == "tensor_network"
    assert found.request.dtype == "float8"
    assert json.loads(found.model_dump_json(warnings=False))["status"] == "suspended"


def test_what_is_known_is_itself(client, newer):
    newer.looks = [
        job("completed", progress={"stage": "saving"}, request={"model": "m", "method": "a", "input_text": "t"})
    ]
    found = client.job("x")
    assert found.status is JobStatus.COMPLETED
    assert found.progress.stage is Stage.SAVING
    assert found.request.engine is Engine.AUTO
    assert found.has_ended


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_what_was_read_can_be_pickled(client, newer, protocol):
    newer.looks = [job("suspended"), job("running", progress={"stage": "saving"})]
    for _ in range(2):
        found = client.job("x")
        back = pickle.loads(pickle.dumps(found, protocol))
        assert back == found
        assert_same_members(back, found)


def test_what_was_read_can_be_copied(client):
    found = client.job("x")
    for other in (copy.copy(found), copy.deepcopy(found), found.model_copy(deep=True)):
        assert other == found
        assert_same_members(other, found)


def assert_same_members(one, other):
    for mine, its in (
        (one.status, other.status), (one.progress.stage, other.progress.stage), (one.request.engine, other.request.engine),
    ):  # fmt: skip
        assert (type(mine), mine, mine.name, mine.value) == (type(its), its, its.name, its.value)
        assert mine is its or its not in list(type(its))
    assert one.status.is_terminal == other.status.is_terminal


def test_lists_results_and_estimates_are_read(client, newer):
    newer.looks = [job("suspended"), job("running"), job("archived", **ENDED)]
    assert [(each.status, each.has_ended) for each in client.jobs()] == [
        ("suspended", False), ("running", False), ("archived", True),
    ]  # fmt: skip
    assert client.results("x").info["engine"] == "tensor_network"
    told = client.estimate(model="m", method="saliency", input_text="hello")
    assert (told.engine, told.dtype) == ("tensor_network", "float8")


def test_waiting_goes_on_through_an_unknown_status_and_unknown_events(client, newer):
    newer.looks = [job("running"), job("suspended"), job("completed", **ENDED)]
    newer.events = [
        ("log", "no JSON at all"),
        ("metrics", json.dumps({"watts": 300})),
        ("status", json.dumps(job("suspended"))),
    ]
    assert client.wait("x").status is JobStatus.COMPLETED
    # The stream ended twice before the job, so the client opened it twice.
    assert [each.rsplit("/", 1)[-1] for each in newer.asked].count("events") == 2


def test_waiting_for_a_status_that_never_ends_has_its_end(client):
    with pytest.raises(WaitTimedOut, match="is still suspended"):
        client.wait("x", timeout=1)


def test_an_unknown_end_ends_the_wait(client, newer):
    newer.looks = [job("running")]
    newer.events = [("status", json.dumps(job("archived", **ENDED)))]
    with pytest.raises(JobEndedWithoutResult, match="has ended as archived, which this client does not know") as ended:
        client.attribute("m", "saliency", "hello")
    assert not isinstance(ended.value, AttributionFailed)
    assert ended.value.job.status == "archived"


def test_the_asynchronous_client_too(newer):
    newer.events = [("log", "-"), ("status", json.dumps(job("completed", **ENDED)))]

    async def work():
        async with AsyncAttributionClient(newer.url) as client:
            assert (await client.job("x")).status == "suspended"
            return await client.attribute("m", "saliency", "hello")

    assert asyncio.run(work()).info == {"engine": "tensor_network"}


def test_the_terminal_shows_it(newer):
    newer.looks = [job("suspended"), job("archived", **ENDED)]
    shown = run(newer, "jobs").stdout.splitlines()
    assert [line.split()[1] for line in shown[1:]] == ["suspended", "archived"]
    assert "suspended" in run(newer, "show", "x").stdout


def test_a_server_itself_is_strict():
    with pytest.raises(ValidationError, match="Input should be"):
        Job.model_validate(job("suspended", progress={}, request={"model": "m", "method": "a", "input_text": "t"}))
