"""Server-sent events of jobs: they resume after an interruption and occupy no threads."""

from __future__ import annotations

import json
import threading

import anyio

from tests.fake_engine import submit, until_running
from tests.serving import until


def events(app, job_id, **headers):
    """Read a job's event stream to its end and return the events."""
    answer = app.get(f"/attribution/jobs/{job_id}/events", headers=headers)
    assert answer.headers["content-type"].startswith("text/event-stream")
    return parsed(answer.text)


def parsed(text):
    """The kind, id and document of each event."""
    found = []
    for block in text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if "data" in lines:
            found.append((lines["event"], lines["id"], json.loads(lines["data"])))
    return found


def watching(app, job_id):
    """Read a job's event stream in the background; returns the task and a function that returns the events so far.

    The test client would return all events at the end.
    """
    came: list[bytes] = []

    async def read():
        async for event in app.app.state.services.watch.stream(job_id, None, lambda: True):
            came.append(event)  # noqa: PERF401 - one by one, for the test to see

    done = app.portal.start_task_soon(read)
    return done, lambda: parsed(b"".join(came).decode())


def test_every_change_is_an_event_until_the_end(app):
    running, job_id = submit(app, "forever"), submit(app, "hold")
    done, seen = watching(app, job_id)
    until(seen)
    app.post(f"/attribution/jobs/{running}/cancel")
    until(lambda: any(document["status"] == "running" for _, _, document in seen()))
    app.app.state.services.engine.go_on.set()
    done.result(60)
    statuses = [document["status"] for event, _, document in seen() if event == "status"]
    assert statuses == ["pending", "running", "completed"]
    assert any(document["progress"]["steps_done"] == 1 for _, _, document in seen())
    assert len({identity for _, identity, _ in seen()}) == len(seen())
    assert app.app.state.services.watch.watchers == 0


def test_a_stream_resumes_after_the_last_event_that_was_seen(app):
    job_id = submit(app, "hold")
    until_running(app, job_id)
    done, seen = watching(app, job_id)
    until(seen)
    app.app.state.services.engine.go_on.set()
    done.result(60)
    (_, first, _), *rest = seen()
    resumed = events(app, job_id, **{"Last-Event-ID": first})
    assert [identity for _, identity, _ in resumed] == [rest[-1][1]]
    last = rest[-1][1]
    assert app.get(f"/attribution/jobs/{job_id}/events", headers={"Last-Event-ID": last}).status_code == 204
    assert app.get("/attribution/jobs/nope/events").status_code == 404


def test_a_thousand_streams_cost_no_thread(app):
    """Streams are read on the event loop, as the test client would use a thread for each."""
    job_id = submit(app, "hold")
    watch, before = app.app.state.services.watch, threading.active_count()
    finished = []

    async def read_one():
        finished.extend([event async for event in watch.stream(job_id, None, lambda: True) if b"completed" in event])

    async def read_all():
        async with anyio.create_task_group() as group:
            for _ in range(1000):
                group.start_soon(read_one)

    done = app.portal.start_task_soon(read_all)
    until(lambda: watch.watchers == 1000)
    assert threading.active_count() < before + 50  # at most Starlette's own threads
    app.app.state.services.engine.go_on.set()
    done.result(120)
    assert len(finished) == 1000
    assert watch.watchers == 0
