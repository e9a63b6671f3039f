"""What a job would take, before it is queued."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from attribution_schema.request import AttributionRequest, Engine


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
