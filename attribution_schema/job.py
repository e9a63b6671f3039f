"""A job as its owner sees it: status, progress, links."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, computed_field, field_validator, model_validator

from attribution_schema.json_values import check_json
from attribution_schema.open_enum import OpenEnum
from attribution_schema.problem import Problem
from attribution_schema.request import MAX_TAGS, AttributionRequest, Name, Notes, TagName, TagValue
from attribution_schema.webhook import WebhookDelivery

MOST_JOBS = 200  # of a call that cancels or deletes several


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
    """The progress of a job. `eta_seconds`: seconds until it ends, those in the queue included; null
    once it has ended.
    """

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
        description="The request as accepted, with the present name, notes and tags; null if the stored one cannot be "
        "read, which `error` explains."
    )
    error: Problem | None = None
    webhook: WebhookDelivery | None = Field(None, description="The delivery of `request.webhook`, if there is one.")
    links: Links

    @computed_field  # type: ignore[prop-decorator]
    @property
    def name(self) -> str | None:
        """The name that its owner gave it."""
        return self.request.name if self.request else None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def notes(self) -> str | None:
        """The notes that its owner wrote."""
        return self.request.notes if self.request else None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def tags(self) -> dict[str, str]:
        """The tags by which it is found."""
        return self.request.tags if self.request else {}

    @property
    def has_ended(self) -> bool:
        """Whether the job has ended, also with a status that only a newer server knows."""
        return self.status.is_terminal or self.finished_at is not None


class JobEvent(BaseModel):
    """What is posted to a webhook: `type` is `job.` and the status with which the job ended."""

    model_config = ConfigDict(frozen=True)

    type: str = Field(examples=["job.completed"])
    timestamp: datetime = Field(description="When the job ended.")
    data: Job


class JobList(BaseModel):
    """A page of jobs, newest first; `next_cursor` continues it."""

    jobs: list[Job]
    next_cursor: str | None = None


class JobUpdate(BaseModel):
    """Changes of what a job is called, as a JSON Merge Patch (RFC 7396): what is left out stays, null removes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name | None = Field(None, description="The new name; null removes it.")
    notes: Notes | None = Field(None, description="The new notes; null removes them.")
    tags: dict[TagName, TagValue | None] | None = Field(
        None, description="Tags to add or replace; a null removes one tag, null instead of the map removes all."
    )

    @model_validator(mode="before")
    @classmethod
    def _can_be_stored(cls, data: Any) -> Any:
        check_json(data, cls.__name__)
        return data

    def changed_tags(self, tags: Mapping[str, str]) -> dict[str, str]:
        """Return these tags with the changes. Raises `ValueError` if they become too many."""
        if "tags" not in self.model_fields_set:
            return dict(tags)
        merged = {**tags, **self.tags} if self.tags is not None else {}
        changed = {name: value for name, value in merged.items() if value is not None}
        if len(changed) > MAX_TAGS:
            raise ValueError(f"a job has at most {MAX_TAGS} tags; with this change it would have {len(changed)}")
        return changed

    def applied_to(self, request: AttributionRequest) -> AttributionRequest:
        """Return the request with the changes. Raises `ValueError`, as `changed_tags` does."""
        given = {name: getattr(self, name) for name in ("name", "notes") if name in self.model_fields_set}
        return request.model_copy(update=given | {"tags": self.changed_tags(request.tags)})


class JobIds(BaseModel):
    """The jobs of a call on several."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    job_ids: list[Annotated[str, StringConstraints(min_length=1, max_length=32)]] = Field(
        min_length=1, max_length=MOST_JOBS, description="Their ids; one that is given twice counts once."
    )

    @field_validator("job_ids")
    @classmethod
    def _each_once(cls, value: list[str]) -> list[str]:
        return list(dict.fromkeys(value))


class Outcome(OpenEnum):
    """What became of one job in a call on several."""

    DONE = "done"
    NOT_FOUND = "not_found"  # also if it belongs to another key
    CONFLICT = "conflict"  # its status does not allow it


class JobOutcome(BaseModel):
    """What became of one job; `error` is the problem that a call on this job alone would have answered."""

    model_config = ConfigDict(frozen=True)

    job_id: str
    outcome: Outcome
    error: Problem | None = None


class JobOutcomes(BaseModel):
    """What became of each job of a call on several, in the order of the call."""

    outcomes: list[JobOutcome]


class JobFacets(BaseModel):
    """The values by which one's own jobs can be filtered, in alphabetical order, at most a hundred of each kind."""

    models: list[str]
    methods: list[str] = Field(description="A comparison's methods are one value, joined by commas, as in `method`.")
    tags: dict[str, list[str]] = Field(description="The values of each tag.")
