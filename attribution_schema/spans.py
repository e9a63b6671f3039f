"""Parts of a text: spans of the target, which are attributed as wholes, and segments of the input, its features.

Both are selected in the same ways; `attribution.text.spans` finds their tokens.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

MAX_SPANS = 256
MAX_CHOICES = 64
MAX_SEGMENTS = 2048

PartName = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]
_Selected = Annotated[str, StringConstraints(min_length=1, max_length=100_000)]
_Position = Annotated[int, Field(ge=0)]


class TextSelection(BaseModel):
    """A part of a text: by one of `start` and `end`, `text`, `after`, `between` and `characters`; else all of it.

    A token that begins or ends within the part belongs to it as a whole.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: PartName | None = Field(None, description="What to call it in the result; its text by default.")
    start: _Position | None = Field(None, description="The first token's position, as in `attr_pos_start`.")
    end: Annotated[int, Field(ge=1)] | None = Field(None, description="The position behind the last token.")
    text: _Selected | None = Field(None, description="The text of the part, as it stands there.")
    after: _Selected | None = Field(None, description="All that stands behind this text.")
    between: tuple[_Selected, _Selected] | None = Field(
        None, description="What stands behind the first of these texts, up to the second."
    )
    characters: tuple[_Position, _Position] | None = Field(
        None, description="The offsets of its first character and of the one behind its last."
    )
    occurrence: int | None = Field(
        None,
        description="Which occurrence of `text`, of `after` or of the first text of `between`, if there are several: "
        "counted from 0, and from the end below 0. The first by default, with a warning.",
    )

    @model_validator(mode="after")
    def _is_selected_in_one_way(self) -> Self:
        ways = [name for name in ("text", "after", "between", "characters") if getattr(self, name) is not None]
        ways += ["start and end"] if (self.start, self.end) != (None, None) else []
        if len(ways) > 1:
            raise ValueError(f"is selected by {' and by '.join(ways)}: give one of them")
        if self.occurrence is not None and not {"text", "after", "between"} & set(ways):
            raise ValueError("occurrence says which text, after or between, and none is given")
        if self.start is not None and self.end is not None and self.start >= self.end:
            raise ValueError("start must be less than end")
        if self.characters is not None and self.characters[0] >= self.characters[1]:
            raise ValueError("characters are the offsets of the first character and of the one behind the last")
        return self


class Span(TextSelection):
    """A part of the target that is attributed as a whole: F is the sum of the attributed function over its tokens, by
    default the logarithm of the probability of the whole span. Positions are those of the target, characters those of
    what follows the input.
    """

    contrast: _Selected | None = Field(
        None,
        description="A text of any length that might stand in the place of the span: what is attributed is the "
        "difference, F of the span - F of this text.",
    )


class Segment(TextSelection):
    """A part of the input that is one feature. Positions and characters are those of the input; behind messages, those
    of the conversation as the chat template renders it.
    """

    pinned: bool = Field(False, description="Never masked, and so without a score.")


SegmentUnit = Literal["words", "sentences", "lines", "paragraphs", "messages"]


class Trace(BaseModel):
    """The way from a span of the answer through another one, such as a chain of thought, to the input."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    from_: PartName = Field(alias="from", description="The name of the span that it begins at.")
    through: PartName | None = Field(
        None, description="The name of the span that it leads through: by default all that was generated before `from`."
    )
    hops: Annotated[int, Field(ge=0, le=10_000)] | Literal["all"] = Field(
        "all", description="How many times it may pass through tokens of that span."
    )
    mode: Literal["exact", "span"] = Field(
        "exact",
        description="`exact` needs the scores of every token of both spans; `span`, for a long chain, takes one "
        "backward pass for each hop and is an approximation.",
    )
