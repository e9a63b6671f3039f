"""Estimates of a job: passes, seconds and memory, before it is queued."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from attribution_schema.request import AttributionRequest, Engine


class InputEstimate(BaseModel):
    """The size of one input, in tokens."""

    model_config = ConfigDict(frozen=True)

    input_tokens: int
    target_tokens: int = Field(description="Tokens of the target; for a decoder-only model including the prompt.")
    attributed_tokens: int = Field(description="Generated tokens that are attributed.")


class SecondsEstimate(BaseModel):
    """Estimated seconds of each part of a job."""

    model_config = ConfigDict(frozen=True)

    queue: float | None = Field(None, description="Until a worker is free; null before any job has ended.")
    generating: float
    probing: float = Field(
        0.0, description="Comparing the single pass with Inseq's loop on a short text, once for each model and method."
    )
    attributing: float
    total: float = Field(description="Generating, probing and attributing.")


class Estimate(BaseModel):
    """The estimate of a job, from measured rates of its model on its device. Nothing is queued."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    model: str
    methods: list[str] = Field(description="The methods; the numbers of a comparison are sums over them.")
    device: str
    dtype: str
    engine: Engine = Field(description="The engine whose passes are counted; in a comparison that of the first method.")
    inputs: list[InputEstimate]
    is_upper_bound: bool = Field(
        description="True if the job may need less: the model generates the target, or the method may stop early."
    )
    forward_passes: int = Field(description="Calls of the model by the attribution, step scores included.")
    backward_passes: int
    generation_passes: int
    seconds: SecondsEstimate
    is_calibrated: bool = Field(
        description="Whether the times of earlier jobs of this model and method corrected the estimate."
    )
    peak_memory_bytes: int = Field(description="Weights, and the activations of the largest pass.")
    available_memory_bytes: int = Field(description="The device's free memory, and that of this model's weights.")
    fits: bool
    result_bytes: int = Field(description="Size of the stored scores before compression.")
    warnings: list[str] = []
    request: AttributionRequest = Field(description="The request as it would be accepted, with defaults filled in.")
