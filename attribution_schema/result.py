"""Results: the default JSON view, shaped like Inseq's `FeatureAttributionOutput`, and parts as stored bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, Field


class Token(BaseModel):
    """A token of the model's vocabulary, and its id (-1 for a merged token)."""

    token: str
    token_id: int
    text: str | None = Field(None, description="With `decode_tokens=true`: the token as readable text.")
    continues: bool | None = Field(
        None, description="With `decode_tokens=true`: true if it continues a character, whose first token has its text."
    )
    contrast: str | None = Field(
        None, description="With `decode_tokens=true`: where a contrast has another token, that token's text."
    )
    special: bool | None = Field(None, description="True for a special token, such as the end of a text.")
    prompt: bool | None = Field(
        None, description="True for a token of the prompt, which a decoder-only model's target begins with."
    )
    span: bool | None = Field(
        None, description="True for a span that was attributed as a whole: it stands behind the text's own tokens."
    )
    template: bool | None = Field(None, description="In a conversation: whether the chat template added it.")
    turn: int | None = Field(
        None,
        description="In a conversation: the number of its message, from 0; -1 for what the template says before it.",
    )
    role: str | None = Field(None, description="In a conversation: the role of that message.")
    segment: str | None = Field(
        None,
        description="Of a token of the input, in a job with `segments`: the name of its segment, empty for none.",
    )


class Candidate(BaseModel):
    """A token that the model might have generated at a step."""

    token: str
    token_id: int
    text: str | None = Field(None, description="With `decode_tokens=true`: the token as readable text.")
    probability: float | None = Field(description="By a softmax of the model's own logits at this step.")
    rank: int = Field(description="Its place among all tokens of the vocabulary: 1 for the likeliest.")
    chosen: bool = Field(description="Whether it is the token that stands in the text.")


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
    candidates: list[list[Candidate] | None] | None = Field(
        None,
        description="For each generated token the likeliest tokens at its step, likeliest first; the token itself is "
        "among them, last if it is not one of the likeliest. Null for a token that an aggregator merged; null as a "
        "whole where the request wanted none.",
    )
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
    """The agreement of two methods on a text: means over its generated tokens, of their absolute scores."""

    methods: tuple[str, str]
    sequence: int = Field(description="Number of the input text.")
    spearman: float | None = Field(description="Rank correlation; null where a method's scores are all equal.")
    kendall: float | None = Field(description="Rank correlation by pairs (tau-b).")
    top_overlap: float | None = Field(description="Fraction of the `k` largest scores that both share.")
    k: int


class JobAgreement(Agreement):
    """The agreement of two jobs, or of a comparison's methods, on the text of the same number."""

    jobs: tuple[str, str]
    same_tokens: bool = Field(
        description="Whether both have the same prompt and generated tokens. If not, their scores cannot be compared "
        "one by one, and the measures are null."
    )


class JobAgreements(BaseModel):
    """The agreement of each two of several jobs."""

    agreement: list[JobAgreement]


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
