"""The service's errors, each with the document that a client receives: `application/problem+json` (RFC 9457).

One class for each error: the first line of its docstring is the problem's title, its attributes are the slug of its
type and the HTTP status. `detail` says what the client can do. Knows nothing of FastAPI; `api.problem_responses` turns
raised errors into responses.

    ServiceError
    ├── InvalidRequest          422  the request can never run
    │   ├── MalformedBody       400  the body is not JSON
    │   └── ModelNotAllowed     422  this server does not serve that model
    ├── Unauthorized            401  the API key is missing or unknown
    ├── JobNotFound             404  also if it belongs to another key
    ├── ShareNotFound           404  a link for others that was revoked, or never was
    ├── ShareExpired            410  a link for others after its time
    ├── ResultNotReady          409  the job has not ended
    ├── NoResult                409  the job failed or was cancelled; `cause` is its error
    ├── ResultExpired           410  retention removed the result
    ├── ResultDamaged           410  its file is missing or changed on the disk
    ├── JobEnded                409  an ended job cannot be cancelled
    ├── JobActive               409  a job cannot be deleted before it has ended
    ├── KeyReused               422  the Idempotency-Key was used for another request
    ├── QueueFull               429  too many jobs are waiting
    ├── Busy                    503  other requests take all the time for requests of this kind
    ├── NotAcceptable           406  no view of the result has a media type of the Accept header
    ├── BodyTooLarge            413
    ├── UnsupportedMediaType    415
    ├── MalformedRequest        400  it breaks the rules of HTTP itself
    ├── WrongHost               400  the Host header names another host (DNS rebinding)
    ├── NotFound                404  no route has this path
    ├── MethodNotAllowed        405
    ├── HeadersTooLarge         431
    ├── RequestTimedOut         408  headers or body did not arrive in time
    ├── ServerBusy              503  too many connections or bodies at once
    ├── ShuttingDown            503
    ├── StorageFailed           507  the data directory is full, read-only or damaged
    └── JobError                     the `error` of a failed job
        ├── ModelUnavailable    404  neither cached nor reachable
        ├── UnsupportedByModel  422  the model cannot run this method or argument
        ├── InputRejected       422  found when the text is tokenized: too long, pad token inside, ...
        ├── NothingGenerated    422
        ├── OutOfMemory         507
        ├── TimedOut            422  the job exceeded its time limit
        ├── Interrupted         500  the server died too often while it ran the job
        ├── JobUnreadable       500  its row in the store is damaged, or was written by another version
        └── AttributionFailed   500  Inseq or the model raised
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from typing import ClassVar

from models import Problem, ProblemItem

PROBLEM_MEDIA_TYPE = "application/problem+json"


def _path_pattern() -> re.Pattern[str]:
    """Return what matches an absolute path of this machine: one below a directory that its root has.

    A JSON pointer (`/attribution_args/n_steps`), a URL and a model's name (`org/name`) do not match. A path in quotes
    may contain spaces.
    """
    names = [re.escape(each.name) for each in Path("/").iterdir() if each.is_dir()]
    start = rf"(?<![\w.~-])/(?:{'|'.join(names)})/"
    return re.compile(
        rf"""(?P<quote>['"`])(?P<quoted>{start}[^'"`]*)(?P=quote)|(?P<bare>{start}[^\s'"`<>:,;()\[\]]*)"""
    )


_PATH = _path_pattern()


def without_server_paths(text: str) -> str:
    """Return the text with each absolute path of this machine replaced by its last part."""

    def last_part(found: re.Match[str]) -> str:
        path = found["quoted"] or found["bare"]
        quote = found["quote"] or ""
        ending = path[len(path.rstrip(".")) :]  # a full stop that ends the sentence
        return f"{quote}{PurePosixPath(path.rstrip('.')).name}{ending}{quote}"

    return _PATH.sub(last_part, text)


class ServiceError(Exception):
    """The server failed unexpectedly."""

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
        """Return the first line of the class's docstring: the same for every occurrence, as RFC 9457 requires."""
        return (cls.__doc__ or "").strip().splitlines()[0].rstrip(".")

    def to_problem(self, instance: str | None = None) -> Problem:
        """Return the problem document; `instance` is the path of the request or of the job that failed.

        Paths of this machine become file names here, whatever raised: clients must not learn its directories. The log
        gets `detail` as it is.
        """
        return Problem(
            type=problem_type(self.slug),
            title=self.title(),
            status=int(self.status),
            detail=without_server_paths(self.detail),
            instance=instance,
            errors=[each.model_copy(update={"detail": without_server_paths(each.detail)}) for each in self.errors]
            or None,
            cause=self.cause,
        )


class InvalidRequest(ServiceError):
    """The request is not valid."""

    slug, status = "invalid-request", HTTPStatus.UNPROCESSABLE_ENTITY

    @classmethod
    def at(cls, pointer: str, detail: str) -> InvalidRequest:
        """Return the error for one place of the body, given as a JSON pointer (`/attribution_args/n_steps`)."""
        return cls(detail, errors=[ProblemItem(pointer=pointer, detail=detail)])


class MalformedBody(InvalidRequest):
    """The body is not valid JSON."""

    slug, status = "malformed-body", HTTPStatus.BAD_REQUEST


class ModelNotAllowed(InvalidRequest):
    """The model is not served by this server."""

    slug = "model-not-allowed"


class Unauthorized(ServiceError):
    """The API key is missing or unknown."""

    slug, status = "unauthorized", HTTPStatus.UNAUTHORIZED


class JobNotFound(ServiceError):
    """There is no such job."""

    slug, status = "job-not-found", HTTPStatus.NOT_FOUND


class ShareNotFound(ServiceError):
    """There is no such link."""

    slug, status = "share-not-found", HTTPStatus.NOT_FOUND


class ShareExpired(ServiceError):
    """The link has expired."""

    slug, status = "share-expired", HTTPStatus.GONE


class ResultNotReady(ServiceError):
    """The job has not ended yet."""

    slug, status = "result-not-ready", HTTPStatus.CONFLICT


class NoResult(ServiceError):
    """The job ended without a result."""

    slug, status = "no-result", HTTPStatus.CONFLICT


class ResultExpired(ServiceError):
    """The result was removed by the retention limits."""

    slug, status = "result-expired", HTTPStatus.GONE


class ResultDamaged(ServiceError):
    """The stored result is damaged."""

    slug, status = "result-damaged", HTTPStatus.GONE


class JobEnded(ServiceError):
    """The job has ended."""

    slug, status = "job-ended", HTTPStatus.CONFLICT


class JobActive(ServiceError):
    """The job cannot be deleted before it has ended."""

    slug, status = "job-active", HTTPStatus.CONFLICT


class KeyReused(ServiceError):
    """The idempotency key was used for another request."""

    slug, status = "idempotency-key-reused", HTTPStatus.UNPROCESSABLE_ENTITY


class QueueFull(ServiceError):
    """Too many jobs are waiting."""

    slug, status = "queue-full", HTTPStatus.TOO_MANY_REQUESTS


class NotAcceptable(ServiceError):
    """No view of the result has a media type that the client accepts."""

    slug, status = "not-acceptable", HTTPStatus.NOT_ACCEPTABLE


class BodyTooLarge(ServiceError):
    """The request body is too large."""

    slug, status = "body-too-large", HTTPStatus.REQUEST_ENTITY_TOO_LARGE


class MalformedRequest(ServiceError):
    """The request is not valid HTTP."""

    slug, status = "malformed-request", HTTPStatus.BAD_REQUEST


class WrongHost(ServiceError):
    """The Host header names another host."""

    slug, status = "wrong-host", HTTPStatus.BAD_REQUEST


class NotFound(ServiceError):
    """There is nothing at this path."""

    slug, status = "not-found", HTTPStatus.NOT_FOUND


class MethodNotAllowed(ServiceError):
    """The path does not have this method."""

    slug, status = "method-not-allowed", HTTPStatus.METHOD_NOT_ALLOWED


class HeadersTooLarge(ServiceError):
    """The request headers are too large."""

    slug, status = "headers-too-large", HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE


class RequestTimedOut(ServiceError):
    """The request did not arrive in time."""

    slug, status = "request-timed-out", HTTPStatus.REQUEST_TIMEOUT


class ServerBusy(ServiceError):
    """The server has too many connections or requests at once."""

    slug, status = "server-busy", HTTPStatus.SERVICE_UNAVAILABLE


class UnsupportedMediaType(ServiceError):
    """The request body must be application/json, without a content coding."""

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
    """Raised to stop a job. Not an `Exception`, so that no handler between a forward pass and the worker catches it."""


class UnsupportedByModel(JobError):
    """The model does not support the request."""

    slug, status = "unsupported-by-model", HTTPStatus.UNPROCESSABLE_ENTITY


class InputRejected(JobError):
    """The text cannot be attributed."""

    slug, status = "input-rejected", HTTPStatus.UNPROCESSABLE_ENTITY


class NothingGenerated(JobError):
    """The model generated nothing."""

    slug, status = "nothing-generated", HTTPStatus.UNPROCESSABLE_ENTITY


class OutOfMemory(JobError):
    """The device ran out of memory."""

    slug, status = "out-of-memory", HTTPStatus.INSUFFICIENT_STORAGE


class TimedOut(JobError):
    """The job exceeded its time limit."""

    slug, status = "timed-out", HTTPStatus.UNPROCESSABLE_ENTITY


class Interrupted(JobError):
    """The server died too often while it ran the job."""

    slug, status = "interrupted", HTTPStatus.INTERNAL_SERVER_ERROR


class JobUnreadable(JobError):
    """The stored job cannot be read."""

    slug, status = "job-unreadable", HTTPStatus.INTERNAL_SERVER_ERROR


class AttributionFailed(JobError):
    """The attribution failed."""

    slug, status = "attribution-failed", HTTPStatus.INTERNAL_SERVER_ERROR


def problem_type(slug: str) -> str:
    """Return the `type` of a problem: a reference relative to the server, which describes the type at that path."""
    return f"/problems/{slug}"


def all_errors(root: type[ServiceError] = ServiceError) -> Iterator[type[ServiceError]]:
    """Yield every error class, the root first: the table behind the OpenAPI document and `/problems`."""
    yield root
    for child in root.__subclasses__():
        yield from all_errors(child)
