"""A job as its owner sees it: status, progress, links."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

from attribution_schema.open_enum import OpenEnum
from attribution_schema.problem import Problem
from attribution_schema.request import AttributionRequest


class JobStatus(OpenEnum):
    """The status of a job. It moves pending -> running -> an end, and running -> pending after a crash."""

    PENDING = "pending"  # accepted and durable, waiting for a worker
    RUNNING = "running"  # a worker runs it
    COMPLETED = "completed"  # its result is stored
    FAILED = "failed"  # it ended with `error`
    CANCELLED = "cancelled"  # its owner cancelled it

    @property
    def is_terminal(self) -> bool:
        """Whether the status is final."""
        return self in {JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED}


class Stage(OpenEnum):
    """The stage of a running job."""

    QUEUED = "queued"  # waiting for a worker
    LOADING_MODEL = "loading_model"  # reading weights, or waiting for another job on the same model
    MEASURING = "measuring"  # the model's speed, once after it is loaded: what ETAs are computed from
    PREPARING = "preparing"  # computing what the method needs once for a model, e.g. nearest neighbours
    GENERATING = "generating"  # the model generates the targets; a step is a token
    CHECKING = "checking"  # comparing the single pass with Inseq's loop on a short text, once for a model and method
    ATTRIBUTING = (
        "attributing"  # the attribution loop; a step is a generated token (or a forward, for final-step methods)
    )
    SAVING = "saving"  # the result is being written

    @property
    def words(self) -> str:
        """The stage in words."""
        return _WORDS.get(self.value, self.value.replace("_", " "))


_WORDS = {
    "loading_model": "loading the model",
    "measuring": "measuring the model's speed",
    "preparing": "preparing the method",
    "generating": "generating the text",
    "checking": "checking the single pass",
    "saving": "saving the result",
}


class Progress(BaseModel):
    """The progress of a job. `eta_seconds`: seconds until it ends, those in the queue included."""

    model_config = ConfigDict(frozen=True)

    stage: Stage = Stage.QUEUED
    method: str | None = Field(None, description="In a comparison: the method that is running.")
    steps_done: int = Field(0, description="Of the stage.")
    steps_total: int | None = None
    fraction: float = Field(
        0.0,
        ge=0,
        le=1,
        description="The share of the job's expected time that is done, over all stages, texts and methods. Within an "
        "`attempt` of the job it never decreases.",
    )
    generated_text: list[str] | None = Field(
        None,
        description="While the job runs: for each input the text behind the prompt, given or generated so far; empty "
        "for one that has not begun. Null before there is any, and once the job has ended: the result has it then.",
    )
    eta_seconds: float | None = None


class Links(BaseModel):
    """Paths of a job's other endpoints."""

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
    attempt: int = Field(0, description="Number of starts; above 1 after a crash of the server.")
    cancel_requested: bool = Field(
        False, description="Whether it was cancelled; its status changes once it has left the device."
    )
    reused_from: str | None = Field(None, description="The job whose stored result this job returns.")
    expired_at: datetime | None = Field(None, description="When retention removed its result.")
    request: AttributionRequest | None = Field(
        description="The request as accepted; null if the stored one cannot be read, which `error` explains."
    )
    error: Problem | None = None
    links: Links

    @property
    def has_ended(self) -> bool:
        """Whether the job has ended, also with a status that only a newer server knows."""
        return self.status.is_terminal or self.finished_at is not None


class JobList(BaseModel):
    """A page of jobs, newest first; `next_cursor` continues it."""

    jobs: list[Job]
    next_cursor: str | None = None
