"""The exceptions of the client, and their construction from the server's problem documents (RFC 9457).

ClientError
├── ServerUnreachable        no answer after all retries
├── WaitTimedOut             the job has not ended within the timeout and continues (also a `TimeoutError`)
├── JobEndedWithoutResult    the job is in `job`
│   ├── AttributionFailed    the reason is in `problem`
│   └── AttributionCancelled
└── RequestFailed            the server answered with a problem: `problem`, `status`, `retry_after`
    ├── InvalidRequest       other 4xx: the request is wrong; `errors` lists each place
    ├── Unauthorized         401: the API key is missing or unknown
    ├── NotFound             404
    ├── Conflict             409: the job's status does not allow this
    ├── ResultExpired        410: the result was removed to free disk space
    ├── Busy                 429: too many jobs are waiting
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
    """Base class of all exceptions of this client."""


class ServerUnreachable(ClientError):
    """The server could not be reached, or the connection broke, in every attempt."""


class WaitTimedOut(ClientError, TimeoutError):
    """The job did not end within the timeout. It continues; `job` is its last known state."""

    def __init__(self, job: Job) -> None:
        super().__init__(f"The job {job.job_id} is still {job.status}. It continues: wait for it again, or cancel it.")
        self.job = job


class JobEndedWithoutResult(ClientError):
    """The job ended without a result."""

    def __init__(self, message: str, job: Job) -> None:
        super().__init__(message)
        self.job = job


class AttributionFailed(JobEndedWithoutResult):
    """The job failed. `problem` contains the reason and what to do about it."""

    @property
    def problem(self) -> Problem | None:
        """The `error` of the job."""
        return self.job.error


class AttributionCancelled(JobEndedWithoutResult):
    """The job was cancelled."""


class RequestFailed(ClientError):
    """The server refused the request with a problem document."""

    def __init__(self, problem: Problem, retry_after: float | None = None) -> None:
        super().__init__(_message(problem))
        self.problem = problem
        self.retry_after = retry_after  # seconds, from the Retry-After header; None without one

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self.problem.status

    @property
    def errors(self) -> Sequence[ProblemItem]:
        """Each wrong value of the request, located by a JSON pointer into the body or a parameter name."""
        return self.problem.errors or ()

    @property
    def is_worth_another_try(self) -> bool:
        """Whether the same request may succeed later."""
        return self.status in _WORTH_ANOTHER_TRY


class InvalidRequest(RequestFailed):
    """The request is wrong. `errors` lists each wrong value."""


class Unauthorized(RequestFailed):
    """The API key is missing or unknown."""


class NotFound(RequestFailed):
    """The job does not exist, or belongs to another API key."""


class Conflict(RequestFailed):
    """The job's status does not allow this."""


class ResultExpired(RequestFailed):
    """The result was removed to free disk space."""


class Busy(RequestFailed):
    """Too many jobs are waiting."""


class ServerFailed(RequestFailed):
    """The server failed or is shutting down."""


_BY_STATUS = {401: Unauthorized, 404: NotFound, 409: Conflict, 410: ResultExpired, 429: Busy}


def raise_for_problem(response: httpx.Response) -> None:
    """Raise the matching `RequestFailed` unless the response is a success. The body must have been read."""
    status = response.status_code
    if response.is_success:
        return
    try:
        problem = Problem.model_validate_json(response.content)
    except ValidationError:  # an error page of a proxy, for example
        problem = Problem(title=response.reason_phrase, status=status, detail=f"{status} {response.reason_phrase}")
    other = InvalidRequest if status < 500 else ServerFailed  # noqa: PLR2004
    raise _BY_STATUS.get(status, other)(problem, _retry_after(response.headers.get("Retry-After")))


def completed(job: Job) -> Job:
    """The ended job itself if it has completed. Raises `JobEndedWithoutResult` or a subclass otherwise."""
    if job.status is JobStatus.CANCELLED:
        raise AttributionCancelled(f"The job {job.job_id} was cancelled.", job)
    if job.status is JobStatus.FAILED:
        reason = _message(job.error) if job.error else "The server gave no reason."
        raise AttributionFailed(f"The job {job.job_id} failed. {reason}", job)
    if job.status is not JobStatus.COMPLETED:
        raise JobEndedWithoutResult(
            f"The job {job.job_id} has ended as {job.status}, which this client does not know: the server is newer.",
            job,
        )
    return job


@contextmanager
def naming(job: Job) -> Iterator[None]:
    """Add a note with the job's id to an exception that ends the wait but not the job."""
    try:
        yield
    except (KeyboardInterrupt, asyncio.CancelledError, ServerUnreachable) as end:
        end.add_note(
            f"The job {job.job_id} was not cancelled: wait({job.job_id!r}) waits for it, results({job.job_id!r}) reads "
            f"its result once it has completed, cancel({job.job_id!r}) cancels it."
        )
        raise


def _message(problem: Problem) -> str:
    places = [
        f"\n  {error.pointer or error.parameter}: {error.detail}"
        for error in problem.errors or ()
        if error.detail != problem.detail
    ]
    return f"{problem.title}: {problem.detail}" + ("".join(places) if len(places) > 1 else "")


def _retry_after(header: str | None) -> float | None:
    """Seconds in a `Retry-After` header, which is a number of seconds or a date (RFC 9110)."""
    if header is None:
        return None
    if header.strip().isdigit():
        return float(header)
    try:
        return max(0.0, (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None
