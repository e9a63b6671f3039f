"""What each call sends and how its answer is read, and the operations made of several: no transport here.

An operation is a generator that yields what is to be sent, is given the answer, and returns its outcome. So each is
written once, and a blocking and an asynchronous client both drive it.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel

from attribution_client.errors import Conflict, WaitTimedOut, completed
from attribution_schema.estimate import Estimate
from attribution_schema.job import Job, JobList, JobStatus
from attribution_schema.open_enum import TOLERANT
from attribution_schema.request import AttributionRequest
from attribution_schema.result import AttributionResult, ComparisonResult

JOBS = "/attribution/jobs"
LONG_POLL = 5.0  # seconds that an answer is held back where the stream of events was cut
Report = Callable[[Job], None]


@dataclass(frozen=True)
class Call:
    """One request, and how to read its answer."""

    method: str
    path: str
    read: Callable[[httpx.Response], Any]
    params: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    body: Any = None
    # The status that, at a second try, says that the first one was carried out although its answer was lost.
    done_if_repeated: int | None = None


@dataclass(frozen=True)
class Follow:
    """Server-sent events of a job, given to `report` one by one until the stream ends; the answer is the last job.

    A stream that is cut ends as well, and so does one at `deadline` (of `time.monotonic`), give or take `LONG_POLL`.
    """

    job: Job
    report: Report
    deadline: float | None

    @property
    def path(self) -> str:
        """The stream's address."""
        return f"{JOBS}/{self.job.job_id}/events"


Outcome = TypeVar("Outcome")
Document = TypeVar("Document", bound=BaseModel)
Operation = Generator[Call | Follow, Any, Outcome]


def submit(request: AttributionRequest | None, fields: dict[str, Any], idempotency_key: str | None) -> Call:
    """Accepts a job. The key is always there, so that a second try never makes a second job."""
    given = request.model_dump(mode="json", exclude_unset=True) if request is not None else {}
    key = idempotency_key or str(uuid.uuid4())
    return Call("POST", JOBS, _job, body=given | fields, headers={"Idempotency-Key": key})


def fields_of(
    model: str, method: str | list[str], input_text: str | list[str] | None, more: dict[str, Any]
) -> dict[str, Any]:
    """A request's fields, for a method or several; without a text where there are messages instead."""
    asked = {"method": method} if isinstance(method, str) else {"methods": method}
    return {"model": model} | asked | ({} if input_text is None else {"input_text": input_text}) | more


def job(job_id: str, wait: float = 0) -> Call:
    return Call("GET", f"{JOBS}/{job_id}", _job, {"wait": wait} if wait else {})


def page(cursor: str | None, filters: dict[str, Any]) -> Call:
    asked = {name: value for name, value in (filters | {"cursor": cursor}).items() if value is not None}
    return Call("GET", JOBS, _read(JobList), asked)


def delete(job_id: str) -> Call:
    return Call("DELETE", f"{JOBS}/{job_id}", lambda _: None, done_if_repeated=httpx.codes.NOT_FOUND)


def view(job_id: str, view_format: str, options: dict[str, Any]) -> Call:
    """The bytes of a result's view."""
    params = {name: _text(value) for name, value in options.items() if value is not None} | {"format": view_format}
    return Call("GET", f"{JOBS}/{job_id}/results", lambda answer: answer.content, params)


def results(job_id: str, options: dict[str, Any]) -> Call:
    return Call("GET", f"{JOBS}/{job_id}/results", _read(AttributionResult), view(job_id, "json", options).params)


def comparison(job_id: str, options: dict[str, Any]) -> Call:
    return Call("GET", f"{JOBS}/{job_id}/results", _read(ComparisonResult), view(job_id, "json", options).params)


def estimate(request: AttributionRequest | None, fields: dict[str, Any]) -> Call:
    given = request.model_dump(mode="json", exclude_unset=True) if request is not None else {}
    return Call("POST", "/attribution/estimate", _read(Estimate), body=given | fields)


def listing(name: str) -> Call:
    """`methods`, `step_functions`, `models`, ...: a catalogue, without the envelope that some have."""

    def read(answer: httpx.Response) -> Any:
        content = answer.json()
        return content[name] if isinstance(content, dict) and content.keys() == {name} else content

    return Call("GET", f"/attribution/{name}", read)


# Operations


def cancel(job_id: str) -> Operation[Job]:
    """Give a job up; one that is already cancelled stays so. Raises `Conflict` where it ended in another way."""
    try:
        cancelled: Job = yield Call("POST", f"{JOBS}/{job_id}/cancel", _job)
    except Conflict:
        cancelled = yield job(job_id)
        if cancelled.status is not JobStatus.CANCELLED:
            raise
    return cancelled


def wait(job_id: str, timeout: float | None, show: Callable[[Job], AbstractContextManager[Report]]) -> Operation[Job]:
    """The job once it has completed; `show` opens a progress bar and gives what updates it.

    Raises `AttributionFailed`, `AttributionCancelled`, `WaitTimedOut`, and `JobEndedWithoutResult` for an end that this
    client does not know.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    latest: Job = yield job(job_id)
    with show(latest) as report:
        while not latest.has_ended:
            if deadline is None or deadline - time.monotonic() > LONG_POLL:
                latest = yield Follow(latest, report, None if deadline is None else deadline - LONG_POLL)
            left = LONG_POLL if deadline is None else deadline - time.monotonic()
            if not latest.has_ended and left <= 0:
                raise WaitTimedOut(latest)
            if not latest.has_ended:
                # The stream was cut by a restart of the server (which the job survives) or a proxy; or time runs out.
                latest = yield job(job_id, wait=round(min(left, LONG_POLL), 3))
                report(latest)
    return completed(latest)


def read_as(document: type[Document], content: bytes | str) -> Document:
    """An answer as this document; a newer server may say more than this client knows of, and other values."""
    return document.model_validate_json(content, extra="ignore", context=TOLERANT)


def _read(document: type[Document]) -> Callable[[httpx.Response], Document]:
    return lambda answer: read_as(document, answer.content)


_job = _read(Job)


def _text(value: Any) -> str:
    """A view's option as a query parameter: several names with commas, arguments as JSON."""
    if isinstance(value, bool | dict):
        return json.dumps(value)
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
