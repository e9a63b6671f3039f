"""What can go wrong for a client, and how the server's problem documents (RFC 9457) become exceptions.

ClientError
├── ServerUnreachable        no answer, however often it was tried
├── WaitTimedOut             the job had not ended in time; it goes on running (also a `TimeoutError`)
├── JobEndedWithoutResult    `job` has the whole job
│   ├── AttributionFailed    `problem` says why
│   └── AttributionCancelled
└── RequestFailed            the server answered with a problem: `problem`, `status`, `retry_after`
├── InvalidRequest       4xx: the request can never work as it is; `errors` has each place
├── Unauthorized         401: a key is needed, or this one is wrong
├── NotFound             404
├── Conflict             409: not now, for the state that the job is in
├── ResultExpired        410: removed to make room
├── Busy                 429: too many jobs wait
└── ServerFailed         5xx
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx
from pydantic import ValidationError

from attribution_schema.job import Job, JobStatus
from attribution_schema.problem import Problem, ProblemItem

_WORTH_ANOTHER_TRY = frozenset({429, 502, 503, 504})


class ClientError(Exception):
    """Anything that this client raises."""


class ServerUnreachable(ClientError):
    """The server could not be reached, or its answer was cut off, however often it was tried."""


class WaitTimedOut(ClientError, TimeoutError):
    """The job had not ended in time. It goes on; `job` is its last known state."""

    def __init__(self, job: Job) -> None:
        super().__init__(f"The job {job.job_id} is still {job.status}. It goes on: wait for it again, or cancel it.")
        self.job = job


class JobEndedWithoutResult(ClientError):
    """The job ended, and there is no result."""

    def __init__(self, message: str, job: Job) -> None:
        super().__init__(message)
        self.job = job


class AttributionFailed(JobEndedWithoutResult):
    """The job failed; `problem` says why and what to do."""

    @property
    def problem(self) -> Problem | None:
        """The job's `error`."""
        return self.job.error


class AttributionCancelled(JobEndedWithoutResult):
    """The job was given up."""


class RequestFailed(ClientError):
    """The server refused the request, with a problem document."""

    def __init__(self, problem: Problem, retry_after: float | None = None) -> None:
        super().__init__(_told(problem))
        self.problem = problem
        self.retry_after = retry_after  # seconds, where the server said when to come back

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self.problem.status

    @property
    def errors(self) -> Sequence[ProblemItem]:
        """Each place of the request that is wrong: a JSON pointer into the body, or a parameter."""
        return self.problem.errors or ()

    @property
    def is_worth_another_try(self) -> bool:
        """Whether the same request may well succeed later."""
        return self.status in _WORTH_ANOTHER_TRY


class InvalidRequest(RequestFailed):
    """The request is wrong; `errors` says where."""


class Unauthorized(RequestFailed):
    """An API key is needed, or this one is not known."""


class NotFound(RequestFailed):
    """There is no such thing, or it belongs to another key."""


class Conflict(RequestFailed):
    """The job is not in a state for this."""


class ResultExpired(RequestFailed):
    """The result was removed to make room."""


class Busy(RequestFailed):
    """Too many jobs are waiting."""


class ServerFailed(RequestFailed):
    """The server failed, or is shutting down."""


_BY_STATUS = {401: Unauthorized, 404: NotFound, 409: Conflict, 410: ResultExpired, 429: Busy}


def raise_for_problem(response: httpx.Response) -> None:
    """Raise the `RequestFailed` of an answer that is none. The body must have been read."""
    status = response.status_code
    if response.is_success:
        return
    try:
        problem = Problem.model_validate_json(response.content)
    except ValidationError:  # a proxy's page, say
        problem = Problem(title=response.reason_phrase, status=status, detail=f"{status} {response.reason_phrase}")
    other = InvalidRequest if status < 500 else ServerFailed  # noqa: PLR2004
    raise _BY_STATUS.get(status, other)(problem, _retry_after(response.headers.get("Retry-After")))


def completed(job: Job) -> Job:
    """The job that has ended, if it has a result. Raises the `JobEndedWithoutResult` that says why it has none."""
    if job.status is JobStatus.CANCELLED:
        raise AttributionCancelled(f"The job {job.job_id} was cancelled.", job)
    if job.status is JobStatus.FAILED:
        reason = _told(job.error) if job.error else "no reason is known"
        raise AttributionFailed(f"The job {job.job_id} failed. {reason}", job)
    if job.status is not JobStatus.COMPLETED:
        raise JobEndedWithoutResult(
            f"The job {job.job_id} has ended as {job.status}, which this client does not know: the server is newer.",
            job,
        )
    return job


@contextmanager
def naming(job: Job) -> Iterator[None]:
    """What ends the wait for a job from outside says which job goes on without it, and how to come back to it."""
    try:
        yield
    except (KeyboardInterrupt, asyncio.CancelledError, ServerUnreachable) as end:
        end.add_note(
            f"The job {job.job_id} was not given up: wait({job.job_id!r}) waits for it, results({job.job_id!r}) reads "
            f"it once it has completed, cancel({job.job_id!r}) gives it up."
        )
        raise


def _told(problem: Problem) -> str:
    places = [
        f"\n  {error.pointer or error.parameter}: {error.detail}"
        for error in problem.errors or ()
        if error.detail != problem.detail
    ]
    return f"{problem.title}: {problem.detail}" + ("".join(places) if len(places) > 1 else "")


def _retry_after(header: str | None) -> float | None:
    """Seconds of a `Retry-After` header: a number or a date (RFC 9110)."""
    if header is None:
        return None
    if header.strip().isdigit():
        return float(header)
    try:
        return max(0.0, (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None
