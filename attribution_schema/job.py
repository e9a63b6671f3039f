"""A job as its owner sees it: status, progress, links."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

from attribution_schema.open_enum import OpenEnum
from attribution_schema.problem import Problem
from attribution_schema.request import AttributionRequest


class JobStatus(OpenEnum):
    """Where a job is in its life. Moves: pending -> running -> an end, and running -> pending after a crash."""

    PENDING = "pending"  # accepted and durable, waiting for a worker
    RUNNING = "running"  # a worker has it
    COMPLETED = "completed"  # its result is stored
    FAILED = "failed"  # it cannot be done; `error` says why
    CANCELLED = "cancelled"  # its owner gave it up

    @property
    def is_terminal(self) -> bool:
        """Whether the job will not move again."""
        return self in {JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED}


class Stage(OpenEnum):
    """What a job is doing right now."""

    QUEUED = "queued"  # waiting for a worker
    LOADING_MODEL = "loading_model"  # reading weights, or waiting for another job on the same model
    PREPARING = "preparing"  # what the method needs of the model once, e.g. the vocabulary's nearest neighbours
    GENERATING = "generating"  # the model writes what will be attributed; a step is a token
    ATTRIBUTING = (
        "attributing"  # the attribution loop; a step is a generated token (or a forward, for final-step methods)
    )
    SAVING = "saving"  # the result is being written


class Progress(BaseModel):
    """How far a job is. `eta_seconds`: until it ends; while it waits, by what such jobs took and what is before it."""

    model_config = ConfigDict(frozen=True)

    stage: Stage = Stage.QUEUED
    method: str | None = Field(None, description="In a comparison: the method that runs.")
    steps_done: int = 0
    steps_total: int | None = None
    fraction: float = Field(0.0, ge=0, le=1)
    eta_seconds: float | None = None


class Links(BaseModel):
    """Where to go from a job."""

    self: str
    results: str
    events: str
    cancel: str


class Job(BaseModel):
    """A job as its owner sees it; times are UTC, ISO 8601."""

    model_config = ConfigDict(frozen=True)

    job_id: str
    status: JobStatus
    progress: Progress
    queue_position: int | None = Field(None, description="Jobs ahead of this one while it is pending.")
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    attempt: int = Field(0, description="How often it was started; above 1 after a crash of the server.")
    cancel_requested: bool = Field(False, description="It is to stop; `cancelled` once the device is free of it.")
    reused_from: str | None = Field(None, description="The job whose stored result this one was answered from.")
    expired_at: datetime | None = Field(None, description="When its result was removed to make room.")
    request: AttributionRequest
    error: Problem | None = None
    links: Links

    @property
    def has_ended(self) -> bool:
        """Whether it will not move again, also where its status is one that only a newer server knows."""
        return self.status.is_terminal or self.finished_at is not None


class JobList(BaseModel):
    """A page of jobs, newest first; `next_cursor` continues it."""

    jobs: list[Job]
    next_cursor: str | None = None
