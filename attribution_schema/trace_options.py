"""The options of a trace, as FastAPI reads them from a query: `Annotated[TraceOptions, Query()]`.

A span is written as positions (`19:20`), a text selection (`text:milk`, `after:</think>`, `between:<think>,</think>`),
a JSON object of `TextSelection`, or the name of one of the request's spans.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from attribution_schema.spans import PartName, TextSelection

_POSITIONS = re.compile(r"(\d*):(\d*)")
_WAY = re.compile(r"(text|after|between|characters)(?:\[(-?\d+)\])?:(.*)", re.DOTALL)
_HOW = (
    "as positions (19:20), as text:WORDS, after:WORDS, between:WORDS,WORDS or characters:0:4, as a JSON object such as "
    '{"between": [",", "."]}, or as the name of one of the request\'s spans'
)


def read_span(written: str | dict[str, Any] | TextSelection) -> TextSelection | str:
    """Return the selection that a text stands for, or the name of a span. Raises `ValueError` for neither.

    `text[1]:`, `after[-1]:` and `between[0]:` say which occurrence.
    """
    if not isinstance(written, str):
        return TextSelection.model_validate(written)
    if written.startswith("{"):
        return TextSelection.model_validate(_object(written))
    if found := _POSITIONS.fullmatch(written):
        names = ("start", "end")
        return TextSelection.model_validate(
            {name: int(each) for name, each in zip(names, found.groups(), strict=True) if each}
        )
    found = _WAY.fullmatch(written)
    if found is None:
        if not written.strip():
            raise ValueError(f"is empty: write a span {_HOW}")
        return written.strip()
    way, occurrence, text = found.groups()
    value: Any = text
    if way == "between":
        value = text.split(",", 1)
    elif way == "characters":
        value = text.split(":")
    if not text or (way in {"between", "characters"} and (len(value) != 2 or not all(value))):  # noqa: PLR2004
        raise ValueError(f"is not complete: write a span {_HOW}")
    return TextSelection.model_validate({way: value} | ({} if occurrence is None else {"occurrence": int(occurrence)}))


def _object(written: str) -> Any:
    try:
        return json.loads(written)
    except (ValueError, RecursionError):
        raise ValueError(f"is no JSON: write a span {_HOW}") from None


_Span = Annotated[TextSelection | PartName, BeforeValidator(read_span), WithJsonSchema({"type": "string"})]


class TraceOptions(BaseModel):
    """What to trace in a stored result: from which span of the generated text, and through which one."""

    model_config = ConfigDict(frozen=True)

    trace: _Span | None = Field(
        None,
        description="A span of the generated text, such as the answer: the result is then the trace from it back to "
        f"the input. Written {_HOW}. `text[1]:WORDS` is the second occurrence.",
    )
    through: _Span | None = Field(
        None,
        description="For a trace: the span that it leads through, such as the reasoning; by default all that was "
        "generated before.",
    )
    hops: Annotated[int, Field(ge=0, le=10_000)] | Literal["all"] = Field(
        "all", description="For a trace: how many times it may pass through tokens of that span."
    )
    without_template: bool = Field(
        False,
        description="For a trace: special tokens and those of the chat template get no share. They often draw much.",
    )
    sequence: Annotated[int, Field(ge=0)] | None = Field(
        None, description="For a trace: the number of one text, counted from 0; by default all texts are traced."
    )

    @property
    def max_hops(self) -> int | None:
        """The limit of hops; None for all."""
        return None if self.hops == "all" else self.hops
