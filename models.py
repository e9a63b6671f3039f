"""What crosses the wire: a request, a job, a result and a problem, as Pydantic models.

Knows nothing of HTTP, storage or torch. The request, which is the longest, has a module of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from request_models import (
    METHOD_ALIASES,
    MODEL_NAME_PATTERN,
    TOLERANT,
    Arguments,
    AttributionRequest,
    ChatMessage,
    Engine,
    OpenEnum,
)

__all__ = [
    "METHOD_ALIASES",
    "MODEL_NAME_PATTERN",
    "TOLERANT",
    "Agreement",
    "Arguments",
    "AttributionRequest",
    "AttributionResult",
    "ChatMessage",
    "ComparisonResult",
    "Engine",
    "Estimate",
    "InputEstimate",
    "Job",
    "JobList",
    "JobStatus",
    "Links",
    "MethodResult",
    "Problem",
    "ProblemItem",
    "Progress",
    "ResultPart",
    "SecondsEstimate",
    "SequenceAttribution",
    "Stage",
    "Token",
]


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


class _WithoutNulls(BaseModel):
    """A document in which what does not apply is left out, as RFC 9457's members are."""

    @model_serializer(mode="wrap")
    def _leave_out_nulls(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items() if value is not None}


class ProblemItem(_WithoutNulls):
    """One of several errors in a request: where (a JSON pointer into the body, or a parameter) and what."""

    model_config = ConfigDict(frozen=True)

    pointer: str | None = Field(None, description="JSON pointer into the body (RFC 6901).", examples=["/method"])
    parameter: str | None = Field(None, description="Query or path parameter.")
    detail: str


class Problem(_WithoutNulls):
    """An error, as RFC 9457 `application/problem+json`."""

    model_config = ConfigDict(frozen=True)

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    instance: str | None = None
    errors: list[ProblemItem] | None = None
    cause: Problem | None = Field(None, description="The problem behind this one, e.g. why a job failed.")


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


class InputEstimate(BaseModel):
    """One input's size, in tokens."""

    model_config = ConfigDict(frozen=True)

    input_tokens: int
    target_tokens: int = Field(description="With the prompt, for a decoder-only model.")
    attributed_tokens: int = Field(description="Generated tokens that are attributed.")


class SecondsEstimate(BaseModel):
    """Where the time goes, in seconds."""

    model_config = ConfigDict(frozen=True)

    queue: float | None = Field(None, description="Before a worker is free; null where nothing tells yet.")
    generating: float
    attributing: float
    total: float = Field(description="Generating and attributing.")


class Estimate(BaseModel):
    """What a job would take, from measured rates of its model on its device. Nothing is queued."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    model: str
    methods: list[str] = Field(description="One, or those of a comparison, whose numbers are added up.")
    device: str
    dtype: str
    engine: Engine = Field(description="The one that the passes are counted for; in a comparison the first method's.")
    inputs: list[InputEstimate]
    is_upper_bound: bool = Field(
        description="The model writes the target, or the method ends when it has found enough: it may be less."
    )
    forward_passes: int = Field(description="Calls of the model by the attribution, step scores included.")
    backward_passes: int
    generation_passes: int
    seconds: SecondsEstimate
    is_calibrated: bool = Field(
        description="Whether earlier jobs of this model and method corrected the time; else it is from a probe alone."
    )
    peak_memory_bytes: int = Field(description="Weights, and what the largest pass needs beside them.")
    available_memory_bytes: int = Field(description="What the device has for it: free, or taken by the model itself.")
    fits: bool
    result_bytes: int = Field(description="The stored scores before compression.")
    warnings: list[str] = []
    request: AttributionRequest = Field(description="As it would be accepted, defaults filled in.")


class Token(BaseModel):
    """A token as it is in the model's vocabulary, and its id there (-1 for one that was merged)."""

    token: str
    token_id: int
    text: str | None = Field(None, description="With `decode_tokens=true`: as people read it.")
    template: bool | None = Field(None, description="In a conversation: whether the chat template added it.")


class SequenceAttribution(BaseModel):
    """The attribution of one sequence, shaped like Inseq's `FeatureAttributionSequenceOutput`.

    Scores are [attributed_len][generated_len] (deeper when granular); `null` where a position was not yet generated.
    """

    source: list[Token]
    target: list[Token]
    source_attributions: list[Any] | None
    target_attributions: list[Any] | None
    step_scores: dict[str, list[float | None]]
    sequence_scores: dict[str, list[Any]]
    attr_pos_start: int
    attr_pos_end: int


class AttributionResult(BaseModel):
    """A result in the default JSON view, shaped like Inseq's `FeatureAttributionOutput`."""

    sequence_attributions: list[SequenceAttribution]
    step_attributions: list[dict[str, Any]] | None = None
    info: dict[str, Any]


class MethodResult(AttributionResult):
    """One method's result in a comparison."""

    method: str


class Agreement(BaseModel):
    """How two methods agree on a text: means over its generated tokens, of the absolute scores of the tokens before."""

    methods: tuple[str, str]
    sequence: int = Field(description="Number of the input text.")
    spearman: float | None = Field(description="Rank correlation; null where a method's scores are all equal.")
    kendall: float | None = Field(description="Rank correlation by pairs (tau-b).")
    top_overlap: float | None = Field(description="The part of the `k` largest scores that both have.")
    k: int


class ComparisonResult(BaseModel):
    """The result of a comparison in the default JSON view."""

    comparison: list[MethodResult]
    agreement: list[Agreement]


@dataclass(frozen=True)
class ResultPart:
    """A piece of a result as bytes, on its way from the engine into the store; `codec` says how to read it."""

    kind: str
    codec: str
    content: bytes
