"""The service's errors, and how each is told to a client as `application/problem+json` (RFC 9457).

One class an error: its docstring's first line is the title, its attributes the type and the HTTP status. `detail` says
what to do about it. Knows nothing of FastAPI; `main` turns what is raised into responses with `to_problem`.

    ServiceError
    ├── InvalidRequest          422  the request can never run as it is written
    │   ├── MalformedBody       400  the body is not JSON
    │   └── ModelNotAllowed     422  this server does not serve that model
    ├── Unauthorized            401  a key is needed, and there is none or a wrong one
    ├── JobNotFound             404  also where it is another key's
    ├── ResultNotReady          409  the job has not ended yet
    ├── NoResult                409  the job failed: there is no result, and why
    ├── ResultExpired           410  the result was removed to make room
    ├── ResultDamaged           410  its file was lost or changed on the disk
    ├── JobEnded                409  it cannot be cancelled any more
    ├── JobActive               409  it cannot be deleted yet
    ├── KeyReused               422  the Idempotency-Key stands for another request
    ├── QueueFull               429  too many jobs wait
    ├── NotAcceptable           406  no view of a result is of a media type that the client takes
    ├── BodyTooLarge            413
    ├── UnsupportedMediaType    415
    ├── WrongHost               400  the Host header names another host (DNS rebinding)
    ├── ShuttingDown            503
    ├── StorageFailed           507  the data directory cannot be read or written: full, read-only, damaged
    └── JobError                     what a failed job carries as its `error`
        ├── ModelUnavailable    404  neither cached nor reachable
        ├── UnsupportedByModel  422  the model cannot do what was asked
        ├── InputRejected       422  known only once the text is tokenized: too long, pad token inside, ...
        ├── NothingGenerated    422
        ├── OutOfMemory         507
        ├── TimedOut            422  the job ran longer than it was allowed to
        ├── Interrupted         500  the server died under the job too often
        └── AttributionFailed   500  Inseq or the model raised
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from http import HTTPStatus
from typing import ClassVar

from models import Problem, ProblemItem

PROBLEM_MEDIA_TYPE = "application/problem+json"


class ServiceError(Exception):
    """Something went wrong."""

    slug: ClassVar[str] = "internal-error"
    status: ClassVar[int] = HTTPStatus.INTERNAL_SERVER_ERROR

    def __init__(
        self,
        detail: str | None = None,
        *,
        errors: Sequence[ProblemItem] = (),
        headers: dict[str, str] | None = None,
        cause: Problem | None = None,
    ) -> None:
        super().__init__(detail or self.title())
        self.detail = detail or self.title()
        self.errors = tuple(errors)
        self.headers = headers or {}
        self.cause = cause

    @classmethod
    def title(cls) -> str:
        """The first line of the class's docstring: the same for every occurrence, as RFC 9457 asks."""
        return (cls.__doc__ or "").strip().splitlines()[0].rstrip(".")

    def to_problem(self, instance: str | None = None) -> Problem:
        """The problem document; `instance` is the path of the request or the job that it is about."""
        return Problem(
            type=problem_type(self.slug),
            title=self.title(),
            status=int(self.status),
            detail=self.detail,
            instance=instance,
            errors=list(self.errors) or None,
            cause=self.cause,
        )


class InvalidRequest(ServiceError):
    """The request is not valid."""

    slug, status = "invalid-request", HTTPStatus.UNPROCESSABLE_ENTITY

    @classmethod
    def at(cls, pointer: str, detail: str) -> InvalidRequest:
        """One error at one place of the body, as a JSON pointer (`/attribution_args/n_steps`)."""
        return cls(detail, errors=[ProblemItem(pointer=pointer, detail=detail)])


class MalformedBody(InvalidRequest):
    """The body is not valid JSON."""

    slug, status = "malformed-body", HTTPStatus.BAD_REQUEST


class ModelNotAllowed(InvalidRequest):
    """The model is not served here."""

    slug = "model-not-allowed"


class Unauthorized(ServiceError):
    """An API key is needed."""

    slug, status = "unauthorized", HTTPStatus.UNAUTHORIZED


class JobNotFound(ServiceError):
    """There is no such job."""

    slug, status = "job-not-found", HTTPStatus.NOT_FOUND


class ResultNotReady(ServiceError):
    """The job has not ended yet."""

    slug, status = "result-not-ready", HTTPStatus.CONFLICT


class NoResult(ServiceError):
    """The job ended without a result."""

    slug, status = "no-result", HTTPStatus.CONFLICT


class ResultExpired(ServiceError):
    """The result has been removed."""

    slug, status = "result-expired", HTTPStatus.GONE


class ResultDamaged(ServiceError):
    """The stored result is damaged."""

    slug, status = "result-damaged", HTTPStatus.GONE


class JobEnded(ServiceError):
    """The job has ended."""

    slug, status = "job-ended", HTTPStatus.CONFLICT


class JobActive(ServiceError):
    """The job has not ended yet, so it cannot be deleted."""

    slug, status = "job-active", HTTPStatus.CONFLICT


class KeyReused(ServiceError):
    """The idempotency key was used for another request."""

    slug, status = "idempotency-key-reused", HTTPStatus.UNPROCESSABLE_ENTITY


class QueueFull(ServiceError):
    """Too many jobs are waiting."""

    slug, status = "queue-full", HTTPStatus.TOO_MANY_REQUESTS


class NotAcceptable(ServiceError):
    """No view of the result has a media type that is accepted."""

    slug, status = "not-acceptable", HTTPStatus.NOT_ACCEPTABLE


class BodyTooLarge(ServiceError):
    """The request body is too large."""

    slug, status = "body-too-large", HTTPStatus.REQUEST_ENTITY_TOO_LARGE


class WrongHost(ServiceError):
    """The request is for another host."""

    slug, status = "wrong-host", HTTPStatus.BAD_REQUEST


class UnsupportedMediaType(ServiceError):
    """The request body must be application/json."""

    slug, status = "unsupported-media-type", HTTPStatus.UNSUPPORTED_MEDIA_TYPE


class ShuttingDown(ServiceError):
    """The server is shutting down."""

    slug, status = "shutting-down", HTTPStatus.SERVICE_UNAVAILABLE


class StorageFailed(ServiceError):
    """The data directory could not be read or written."""

    slug, status = "storage-failed", HTTPStatus.INSUFFICIENT_STORAGE


class JobError(ServiceError):
    """The job failed."""

    slug = "job-failed"


class ModelUnavailable(JobError):
    """The model could not be loaded."""

    slug, status = "model-unavailable", HTTPStatus.NOT_FOUND


class Cancelled(BaseException):
    """The job is to stop. Not an `Exception`: nothing between a forward pass and the worker may swallow it."""


class UnsupportedByModel(JobError):
    """The model does not support what was asked."""

    slug, status = "unsupported-by-model", HTTPStatus.UNPROCESSABLE_ENTITY


class InputRejected(JobError):
    """The text cannot be attributed as it is."""

    slug, status = "input-rejected", HTTPStatus.UNPROCESSABLE_ENTITY


class NothingGenerated(JobError):
    """The model generated nothing."""

    slug, status = "nothing-generated", HTTPStatus.UNPROCESSABLE_ENTITY


class OutOfMemory(JobError):
    """The device ran out of memory."""

    slug, status = "out-of-memory", HTTPStatus.INSUFFICIENT_STORAGE


class TimedOut(JobError):
    """The job took too long."""

    slug, status = "timed-out", HTTPStatus.UNPROCESSABLE_ENTITY


class Interrupted(JobError):
    """The server stopped under the job too often."""

    slug, status = "interrupted", HTTPStatus.INTERNAL_SERVER_ERROR


class AttributionFailed(JobError):
    """The attribution failed."""

    slug, status = "attribution-failed", HTTPStatus.INTERNAL_SERVER_ERROR


def problem_type(slug: str) -> str:
    """The `type` of a problem: a relative reference, resolved against the server, where it is described."""
    return f"/problems/{slug}"


def all_errors(root: type[ServiceError] = ServiceError) -> Iterator[type[ServiceError]]:
    """Every error of the service, the root first: the one table that the OpenAPI document and `/problems` read."""
    yield root
    for child in root.__subclasses__():
        yield from all_errors(child)


def http_problem(status: int, detail: str | None, instance: str | None) -> Problem:
    """A problem for a plain HTTP error (404 of an unknown path, 405, ...), which has no type of its own."""
    return Problem(
        type="about:blank",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail or HTTPStatus(status).phrase,
        instance=instance,
    )
