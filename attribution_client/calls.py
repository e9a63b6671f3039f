"""The HTTP requests of each client method and how their answers are read. Sends nothing itself.

An operation is a generator: it yields a `Call` or a `Follow`, receives the answer, and returns its outcome. The
blocking and the asynchronous client both run the same generators.
"""

from __future__ import annotations

import enum
import json
import time
import uuid
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, TypeVar, cast

import httpx
from pydantic import BaseModel

from attribution_client.errors import Conflict, WaitTimedOut, completed
from attribution_client.keywords import (
    FileFields,
    MoreFields,
    RequestFields,
    SpanOf,
    ViewFields,
    check_file,
    check_request,
    check_view,
)
from attribution_client.results import AttributionResult, ComparisonResult
from attribution_client.traces import TraceResult
from attribution_schema.estimate import Estimate
from attribution_schema.job import MOST_JOBS, Job, JobList, JobOutcome, JobOutcomes, JobStatus
from attribution_schema.open_enum import TOLERANT
from attribution_schema.request import AttributionRequest
from attribution_schema.result import JobAgreement, JobAgreements
from attribution_schema.share import NewShare, Share, ShareList
from attribution_schema.spans import TextSelection

JOBS = "/attribution/jobs"
LONG_POLL = 5.0  # seconds that the server may delay its answer to a poll, which replaces a broken event stream
Report = Callable[[Job], None]


class Unchanged(enum.Enum):
    """What is not given to `update`, and so stays as it is: None removes it."""

    UNCHANGED = "unchanged"


UNCHANGED = Unchanged.UNCHANGED


@dataclass(frozen=True)
class Call:
    """One request, and how to read its answer."""

    method: str
    path: str
    read: Callable[[httpx.Response], Any]
    params: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    body: Any = None
    # On a retry this status means success: an earlier attempt was carried out, and only its answer was lost.
    done_if_repeated: int | None = None


@dataclass(frozen=True)
class Follow:
    """The event stream of a job. Calls `report` for each event; the answer is the last state of the job.

    Ends with the job, when the connection breaks, or at `deadline` (`time.monotonic` seconds) within `LONG_POLL`.
    """

    job: Job
    report: Report
    deadline: float | None

    @property
    def path(self) -> str:
        """The path of the event stream."""
        return f"{JOBS}/{self.job.job_id}/events"


Outcome = TypeVar("Outcome")
Document = TypeVar("Document", bound=BaseModel)
Operation = Generator[Call | Follow, Any, Outcome]


def submit(request: AttributionRequest | None, fields: RequestFields, idempotency_key: str | None) -> Call:
    """Submits a job. The idempotency key is always sent, so that a retry never creates a second job."""
    key = idempotency_key or str(uuid.uuid4())
    return Call("POST", JOBS, _job, body=_body(request, fields), headers={"Idempotency-Key": key})


def fields_of(
    model: str, method: str | list[str], input_text: str | list[str] | None, more: MoreFields
) -> RequestFields:
    """The request fields for one method or a list of methods; `input_text` is omitted if None (for `messages`)."""
    asked = {"method": method} if isinstance(method, str) else {"methods": method}
    text = {} if input_text is None else {"input_text": input_text}
    return cast("RequestFields", {"model": model} | asked | text | more)


def read_job(job: Job | str, wait: float = 0) -> Call:
    """Reads a job; the server delays its answer for up to `wait` seconds, or until the job has ended."""
    return Call("GET", _path(job), _job, {"wait": wait} if wait else {})


def page(cursor: str | None, filters: dict[str, Any]) -> Call:
    """Reads one page of jobs, the first if `cursor` is None."""
    asked = {name: value for name, value in (filters | {"cursor": cursor}).items() if value is not None}
    return Call("GET", JOBS, _read(JobList), asked)


def update(job: Job | str, changes: dict[str, Any]) -> Call:
    """Changes the name, notes or tags of a job, those that are not `UNCHANGED`."""
    body = {name: value for name, value in changes.items() if value is not UNCHANGED}
    return Call("PATCH", _path(job), _job, body=body)


def agreement(jobs: Iterable[Job | str]) -> Call:
    """Compares the results of several jobs."""

    def read(answer: httpx.Response) -> list[JobAgreement]:
        return read_as(JobAgreements, answer.content).agreement

    return Call("GET", "/attribution/agreement", read, {"jobs": ",".join(map(_id, jobs))})


def delete(job: Job | str) -> Call:
    """Deletes an ended job; a retry that finds no job has succeeded."""
    return Call("DELETE", _path(job), lambda _: None, done_if_repeated=httpx.codes.NOT_FOUND)


def with_texts(options: ViewFields) -> ViewFields:
    """The options, and each token's decoded text unless they say otherwise: a reader wants no tokenizer's marks."""
    return {"decode_tokens": True, **options}


def view(job: Job | str, view_format: str, options: ViewFields) -> Call:
    """Reads the result as the bytes of a file in this format. Raises `TypeError` for an option that does not exist."""
    check_file(options)
    written: dict[str, Any] = dict(options)
    written |= {name: _span(written[name]) for name in ("trace", "through") if name in written}
    params = {name: _text(value) for name, value in written.items() if value is not None} | {"format": view_format}
    return Call("GET", f"{_path(job)}/results", lambda answer: answer.content, params)


def results(job: Job | str, options: ViewFields) -> Call:
    """Reads the result of one method."""
    check_view(options)
    return replace(view(job, "json", with_texts(options)), read=_read(AttributionResult))


def comparison(job: Job | str, options: ViewFields) -> Call:
    """Reads the results of all methods of a comparison."""
    check_view(options)
    return replace(view(job, "json", with_texts(options)), read=_read(ComparisonResult))


def trace(job: Job | str, asked: FileFields, options: ViewFields) -> Call:
    """Reads a trace through the result. Raises `TypeError` for an option that does not exist."""
    check_view(options)
    fields: FileFields = {**with_texts(options), **asked}
    return replace(view(job, "json", fields), read=_read(TraceResult))


def share(job: Job | str, expires_in: float | timedelta | None, server: httpx.URL) -> Call:
    """Makes a link for readers without a key, as an absolute URL."""
    seconds = expires_in.total_seconds() if isinstance(expires_in, timedelta) else expires_in

    def read(answer: httpx.Response) -> NewShare:
        made = read_as(NewShare, answer.content)
        return made.model_copy(update={"url": str(server).rstrip("/") + made.url})

    return Call(
        "POST", f"{_path(job)}/shares", read, body={} if seconds is None else {"expires_in_seconds": int(seconds)}
    )


def shares(job: Job | str) -> Call:
    """Lists the links of a job."""
    return Call("GET", f"{_path(job)}/shares", lambda answer: read_as(ShareList, answer.content).shares)


def revoke_share(job: Job | str, share: Share | str) -> Call:
    """Revokes a link; a retry that finds none has succeeded."""
    share_id = share if isinstance(share, str) else share.share_id
    return Call("DELETE", f"{_path(job)}/shares/{share_id}", lambda _: None, done_if_repeated=httpx.codes.NOT_FOUND)


def estimate(request: AttributionRequest | None, fields: RequestFields) -> Call:
    """Estimates the cost of a request without submitting it."""
    return Call("POST", "/attribution/estimate", _read(Estimate), body=_body(request, fields))


def listing(name: str) -> Call:
    """Reads a catalogue: `methods`, `step_functions` or `models`. Unwraps `{"methods": [...]}` to the list."""

    def read(answer: httpx.Response) -> Any:
        content = answer.json()
        return content[name] if isinstance(content, dict) and content.keys() == {name} else content

    return Call("GET", f"/attribution/{name}", read)


# Operations


def on_many(action: str, jobs: Iterable[Job | str]) -> Operation[list[JobOutcome]]:
    """Cancels or deletes several jobs, as many in a call as the server takes."""
    ids, outcomes = list(dict.fromkeys(map(_id, jobs))), []
    for some in (ids[at : at + MOST_JOBS] for at in range(0, len(ids), MOST_JOBS)):
        answer: JobOutcomes = yield Call("POST", f"{JOBS}/{action}", _read(JobOutcomes), body={"job_ids": some})
        outcomes += answer.outcomes
    return outcomes


def cancel(job: Job | str) -> Operation[Job]:
    """Cancels a job; succeeds if it is already cancelled. Raises `Conflict` if it ended in another way."""
    try:
        cancelled: Job = yield Call("POST", f"{_path(job)}/cancel", _job)
    except Conflict:
        cancelled = yield read_job(job)
        if cancelled.status is not JobStatus.CANCELLED:
            raise
    return cancelled


def wait(
    job: Job | str, timeout: float | None, show: Callable[[Job], AbstractContextManager[Report]]
) -> Operation[Job]:
    """Waits until the job has completed, for at most `timeout` seconds. `show` opens a progress bar and returns the
    function that updates it.

    Raises `AttributionFailed`, `AttributionCancelled`, `WaitTimedOut`, and `JobEndedWithoutResult` if the job ended
    with a status that this client does not know.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    latest: Job = yield read_job(job)
    with show(latest) as report:
        while not latest.has_ended:
            if deadline is None or deadline - time.monotonic() > LONG_POLL:
                latest = yield Follow(latest, report, None if deadline is None else deadline - LONG_POLL)
            left = LONG_POLL if deadline is None else deadline - time.monotonic()
            if not latest.has_ended and left <= 0:
                raise WaitTimedOut(latest)
            if not latest.has_ended:
                # Poll: the server restarted (the job survives that), a proxy closed the stream, or time runs out.
                latest = yield read_job(job, wait=round(min(left, LONG_POLL), 3))
                report(latest)
    return completed(latest)


def read_as(document: type[Document], content: bytes | str) -> Document:
    """Parse an answer. Ignores unknown fields and keeps unknown enum values: the server may be newer."""
    return document.model_validate_json(content, extra="ignore", context=TOLERANT)


def _body(request: AttributionRequest | None, fields: RequestFields) -> dict[str, Any]:
    """The request's own fields, replaced by `fields`. Raises `TypeError` for a field that does not exist."""
    check_request(fields)
    given = request.model_dump(mode="json", exclude_unset=True) if request is not None else {}
    return given | fields


def _path(job: Job | str) -> str:
    return f"{JOBS}/{_id(job)}"


def _id(job: Job | str) -> str:
    return job if isinstance(job, str) else job.job_id


def _read(document: type[Document]) -> Callable[[httpx.Response], Document]:
    return lambda answer: read_as(document, answer.content)


_job = _read(Job)


def _span(span: SpanOf | None) -> str | None:
    """A span as it is written in a query: positions by a colon, a selection as JSON."""
    if isinstance(span, TextSelection):
        return span.model_dump_json(exclude_none=True)
    if isinstance(span, Mapping):
        return json.dumps(dict(span))
    return ":".join(map(str, span)) if isinstance(span, tuple) else span


def _text(value: Any) -> str:
    """A view option as a query parameter: lists joined by commas (None is empty), objects and booleans as JSON."""
    if isinstance(value, bool | dict):
        return json.dumps(value)
    if isinstance(value, list | tuple):
        return ",".join("" if each is None else str(each) for each in value)
    return str(value)
