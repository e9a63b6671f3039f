"""A job as a row of the store, a submission before it is one, and whose jobs a caller may see."""

from __future__ import annotations

import enum
import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from pydantic import ValidationError

from models import AttributionRequest, JobStatus, Problem, Progress
from problems import InvalidRequest


class AllOwners(enum.Enum):
    """The explicit choice to see the jobs of every owner. A type of its own, so that no owner's name equals it."""

    ALL_OWNERS = "all owners"


ALL_OWNERS: Literal[AllOwners.ALL_OWNERS] = AllOwners.ALL_OWNERS
OwnerFilter = str | AllOwners  # whose jobs are visible: never optional, so that it cannot be forgotten


@dataclass(frozen=True)
class WebhookState:
    """How far the delivery of a job's webhook has come; times are seconds since the epoch."""

    state: str  # see `jobs.store.webhook_deliveries`
    attempts: int = 0
    error: str | None = None
    due_at: float | None = None
    ended_at: float | None = None


@dataclass(frozen=True)
class JobRecord:
    """One row of `jobs`; times are seconds since the epoch.

    If the row cannot be read (`jobs.store.rows`), `unreadable` says why and `request` may be None; it is never run.
    """

    seq: int
    job_id: str
    status: JobStatus
    model: str
    method: str  # names, joined by commas
    priority: int
    request: AttributionRequest | None
    progress: Progress
    error: Problem | None
    attempt: int
    created_at: float
    started_at: float | None
    finished_at: float | None
    cancel_requested: bool = False
    expired_at: float | None = None  # when retention removed its result
    owner: str = ""
    reused_from: str | None = None
    unreadable: str | None = None
    queue_position: int | None = None  # of a pending job, if it was looked up
    webhook: WebhookState | None = None  # if it was looked up

    @property
    def kind(self) -> tuple[str, str]:
        """Model and method names: jobs of one kind take about equally long."""
        return self.model, self.method

    @property
    def method_names(self) -> list[str]:
        """The names of the methods, one or several."""
        return self.method.split(",")

    @property
    def accepted_request(self) -> AttributionRequest:
        """The request of a job that a worker claimed, which can always be read."""
        assert self.request is not None, self.unreadable
        return self.request


@dataclass(frozen=True)
class Submission:
    """A job to accept, and the limits that may refuse it (None: no limit)."""

    request: AttributionRequest
    idempotency_key: str | None = None
    owner: str = ""
    reuse_key: str | None = None  # equal for requests whose results are equal
    max_pending: int | None = None  # waiting jobs of all owners
    max_pending_of_owner: int | None = None  # waiting jobs of this owner

    @cached_property
    def stored_request(self) -> str:
        """The request as the store keeps it. Raises `InvalidRequest` if it could not be read back from there."""
        try:
            text = self.request.model_dump_json()
            is_same = AttributionRequest.model_validate_json(text).model_dump_json() == text
        except (ValueError, RecursionError) as error:  # pydantic's errors are ValueErrors
            reason = reason_of(error)
        else:
            if is_same:
                return text
            reason = "a value changes when it is written as JSON"
        raise InvalidRequest(f"The request cannot be stored as JSON: {reason}. Change that value and send it again.")

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the request: equal for equal requests."""
        return hashlib.sha256(self.stored_request.encode()).hexdigest()


_MAX_REASON = 300  # characters


def reason_of(error: Exception) -> str:
    """Return why a stored value cannot be read, in a few words and without the value itself."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = "/".join(map(str, first["loc"]))
        reason = f"{place}: {first['msg']}" if place else first["msg"]
    else:
        reason = str(error) or type(error).__name__
    return reason[:_MAX_REASON]
