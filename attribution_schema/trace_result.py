"""Traces: which tokens of the input led to an answer through the tokens that were generated before it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from attribution_schema.result import Token


class PlacedToken(Token):
    """A token and its place in the text."""

    side: str = Field(description="`source` or `target`.")
    position: int = Field(description="Its position on that side, as in `attr_pos_start`.")

    @model_serializer(mode="wrap")
    def _leave_out_nulls(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items() if value is not None}


class TracedSpan(BaseModel):
    """A span of the generated text, by the target positions of its tokens, [start, end)."""

    name: str
    start: int
    end: int
    text: str


class TraceHop(BaseModel):
    """What one hop brings. Hop 0 is what the answer rests on directly, hop 1 by way of one token of the reasoning."""

    hop: int
    prompt: float = Field(description="The share that it brings to the input: the sum of `scores`.")
    reasoning: float = Field(description="The share that it brings to the reasoning, which the next hop passes on.")
    elsewhere: float = Field(description="The share that it brings to other generated tokens, which pass nothing on.")
    scores: list[float] = Field(description="What it brings to each token of `inputs`.")
    reasoning_scores: list[float] = Field(description="What it brings to each token of `through`.")


class TracePath(BaseModel):
    """A single path, in the order of the text: a token of the input, tokens of the reasoning, tokens of the answer."""

    tokens: list[PlacedToken]
    mass: float = Field(description="The product of the shares along it.")


class SequenceTrace(BaseModel):
    """The trace of one text. `scores`, `elsewhere` and `mass_left` add up to 1."""

    model_config = ConfigDict(populate_by_name=True)

    sequence: int = Field(description="Number of the input text.")
    mode: str = "exact"
    from_: Annotated[TracedSpan, Field(alias="from")]
    through: TracedSpan | None = Field(None, description="Null where nothing was generated before `from`.")
    inputs: list[PlacedToken] = Field(
        description="The tokens of the source, and the target's before the first generated."
    )
    generated: list[PlacedToken] = Field(description="The generated tokens up to the end of `from`.")
    scores: list[float] = Field(description="The share of each token of `inputs` after all hops asked for.")
    mass_left: float = Field(description="The share that further hops would pass on from the reasoning.")
    elsewhere: float = Field(
        description="The share of generated tokens that are neither in `from` nor in `through`, or have no scores."
    )
    elsewhere_scores: list[float] = Field(description="The same for each token of `generated`.")
    reasoning_scores: list[float] = Field(
        description="What reached each token of `through`, in all hops together. Their sum can be above 1: it is the "
        "mean number of tokens of the reasoning on the way."
    )
    hops: list[TraceHop] = Field(
        description="The first hops one by one, at most 64, and as long as there is a billionth to pass on."
    )
    unlisted: float = Field(description="What later hops bring, which are in `scores` and not in `hops`.")
    paths: list[TracePath] = Field(description="The strongest single paths, of at most 32 tokens of the reasoning.")
    dropped: int | None = Field(
        None,
        description="With `without_template`: how many tokens got no share, being special or the template's.",
    )
    warnings: list[str] = []


class TraceResult(BaseModel):
    """The traces of a result, one for each text."""

    traces: list[SequenceTrace]
    info: dict[str, Any]
