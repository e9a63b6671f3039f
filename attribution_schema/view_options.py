"""The options of a result's view: how scores are aggregated and what is written.

FastAPI reads the model as query parameters: `Annotated[ViewOptions, Query()]`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema


def _names(value: str | Iterable[str]) -> list[str]:
    """The names in comma-separated lists, in order; blank ones are left out."""
    lists = [value] if isinstance(value, str) else value
    return [name.strip() for each in lists for name in each.split(",") if name.strip()]


def _functions(value: str | Iterable[str | None]) -> list[str | None]:
    """The names in comma-separated lists, in order; an empty one is `None`."""
    lists = [value] if isinstance(value, str) else value
    return [name or None for each in lists for name in (each or "").split(",")]


def _object(value: str | dict[str, Any]) -> dict[str, Any]:
    """A JSON object. Raises `ValueError` for any other text."""
    if isinstance(value, dict):
        return value
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        raise ValueError('must be a JSON object, such as {"source_spans": [[0, 2]]}.')  # noqa: TRY004 - a 422
    return parsed


_TEXT = WithJsonSchema({"type": "string"})  # how these fields are written in a query


class ViewOptions(BaseModel):
    """How scores are aggregated, with Inseq's names, and how a view writes them.

    Whether Inseq knows the names is checked where the view is made (`attribution.results.aggregation`).
    """

    model_config = ConfigDict(frozen=True)

    aggregators: Annotated[tuple[str, ...], BeforeValidator(_names), _TEXT] = Field(
        default_factory=tuple,  # a default value would be in the OpenAPI document, as an array
        alias="aggregator",
        description="Inseq's aggregators in order, e.g. `subwords,scores`; by default those of the method.",
    )
    aggregate_fn: Annotated[tuple[str | None, ...], BeforeValidator(_functions), _TEXT] = Field(
        default_factory=tuple,
        description="A function for each aggregator, e.g. `absmax,vnorm`; empty for its default.",
    )
    aggregator_args: Annotated[dict[str, Any], BeforeValidator(_object), _TEXT] = Field(
        default_factory=dict, description="Arguments of the aggregators, as a JSON object."
    )
    normalize: bool | None = Field(None, description="Whether scores sum to 1 over the attributed tokens.")
    granular: bool = Field(False, description="The scores as they were computed, not aggregated.")
    decode_tokens: bool = Field(False, description="Each token's decoded text (`text`) beside the raw token.")
    table: Literal["attributions", "step_scores"] = Field(
        "attributions", description="Which table `csv` and `parquet` write."
    )
    escape_formulas: bool = Field(
        False,
        description="For `csv` in a spreadsheet: an apostrophe before each text that it could take for a formula.",
    )
    style: Literal["heatmap", "inseq"] = Field(
        "heatmap", description="For `html`: the service's `heatmap`, or what `inseq`'s own `show` makes."
    )

    @property
    def is_default(self) -> bool:
        """Whether every option has its default value; the JSON view with these options is stored."""
        return self == ViewOptions()
