"""Server-sent events of jobs: they resume after an interruption and occupy no threads."""

from __future__ import annotations

import asyncio
import json
import threading

import anyio

from api.shared_reads import SharedReads
from problems import JobNotFound
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


def test_a_change_of_name_notes_or_tags_is_an_event(app):
    submit(app, "hold")
    waiting = submit(app, "hello", name="one")
    done, seen = watching(app, waiting)
    until(seen)
    changes = [{"name": "two"}, {"notes": "seen"}, {"tags": {"a": "1"}}, {"tags": {"a": "2"}}]
    for number, change in enumerate(changes, 2):
        assert app.patch(f"/attribution/jobs/{waiting}", json=change).status_code == 200
        until(lambda number=number: len(seen()) == number)
    names = [(job["name"], job["notes"], job["tags"]) for _, _, job in seen()]
    assert names == [
        ("one", None, {}), ("two", None, {}), ("two", "seen", {}), ("two", "seen", {"a": "1"}), ("two", "seen", {"a": "2"}),
    ]  # fmt: skip
    app.app.state.services.engine.go_on.set()
    done.result(60)


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


def test_who_watches_at_the_same_time_shares_the_reads():
    """Each gets the value of a read that began after it asked."""
    began = []

    async def read(job_id):
        began.append(job_id)
        number = len(began)
        await anyio.sleep(0.01)
        return number

    async def ask():
        shared = SharedReads(read)
        first = asyncio.create_task(shared("a"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)  # the first read runs
        later = [asyncio.create_task(shared("a")) for _ in range(20)]
        other = asyncio.create_task(shared("b"))
        await asyncio.sleep(0)
        later[0].cancel()
        assert await first == 1
        assert {await each for each in later[1:]} == {3}
        assert await other == 2
        assert await shared("a") == 4
        assert not shared._running
        assert not shared._next

    asyncio.run(ask())


def test_a_read_that_fails_fails_for_all_who_wait_for_it():
    async def read(job_id):
        raise JobNotFound(job_id)

    async def ask():
        shared = SharedReads(read)
        answers = await asyncio.gather(shared("a"), shared("a"), shared("b"), return_exceptions=True)
        assert [str(each.detail) for each in answers] == ["a", "a", "b"]

    asyncio.run(ask())


def test_many_who_watch_a_large_job_read_it_a_few_times(app, monkeypatch):
    job_id = submit(app, "x" * 100_000)
    app.get(f"/attribution/jobs/{job_id}?wait=60")
    store, reads = app.app.state.services.store, []
    get = type(store).get
    monkeypatch.setattr(type(store), "get", lambda self, *key: reads.append(key) or get(self, *key))

    async def watch_all():
        watch = app.app.state.services.watch

        async def last():
            return [event async for event in watch.stream(job_id, None, lambda: True)][-1]

        return await asyncio.gather(*(last() for _ in range(50)))

    events = app.portal.call(watch_all)
    assert len({id(each) for each in events}) == 1  # written once
    assert parsed(events[0].decode())[0][2]["request"]["input_text"] == "x" * 100_000
    assert len(reads) == 1
