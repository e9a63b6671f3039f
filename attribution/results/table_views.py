"""Tidy tables of a result, as CSV and Parquet: one row for each number, with what it belongs to beside it.

Rows are identified by positions, so nothing is lost where a token occurs twice. Scores of positions that were not yet
generated are left out; any other that is not a number is null (CSV: an empty field).
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from inseq.data import FeatureAttributionOutput
from inseq.data.attribution import FeatureAttributionSequenceOutput
from inseq.utils.typing import TokenWithId

from attribution.results.aggregation import aggregate
from attribution.results.inseq_fields import token_notes, without_notes
from attribution.text.readable_tokens import Note
from attribution_schema.view_options import ViewOptions
from problems import InvalidRequest

Column = tuple[str, pa.Array]
_SIDES = ("source", "target")
MOST_ROWS = 3_000_000  # about half a gigabyte while it is made


def csv_view(output: FeatureAttributionOutput, options: ViewOptions) -> bytes:
    """RFC 4180 in UTF-8 with a header line: text is quoted, numbers are not; a null is an empty field."""
    written = io.BytesIO()
    pyarrow.csv.write_csv(table(output, options), written)
    return written.getvalue()


def parquet_view(output: FeatureAttributionOutput, options: ViewOptions) -> bytes:
    """Parquet, with the result's `info` as JSON in the schema's metadata."""
    info = without_notes(output.info)
    written = io.BytesIO()
    found = table(output, options).replace_schema_metadata({"info": orjson.dumps(info)})
    pyarrow.parquet.write_table(found, written, compression="zstd")
    return written.getvalue()


def table(output: FeatureAttributionOutput, options: ViewOptions) -> pa.Table:
    """The table that is asked for, over all sequences.

    `attributions`: sequence, side, attributed_position, attributed_token, attributed_token_id, generated_position,
    generated_token, generated_token_id, the tensor's further dimensions (granular only), score.
    `step_scores`: sequence, generated_position, generated_token, generated_token_id, step_score, score.
    Raises `InvalidRequest` where the scores are too many.
    """
    aggregated = aggregate(output, options)
    _check_size(aggregated)
    make = _step_scores if options.table == "step_scores" else _attributions
    parts = [
        part
        for index, (sequence, each) in enumerate(
            zip(aggregated.sequence_attributions, token_notes(aggregated), strict=True)
        )
        for part in make(index, _Tokens(sequence, each, with_text=options.decode_tokens), sequence)
    ]
    # A side without scores has no further dimensions either, and must not say which columns there are.
    return pa.concat_tables([part for part in parts if part.num_rows] or parts[:1])


def _check_size(output: FeatureAttributionOutput) -> None:
    rows = sum(
        tensor.numel()
        for sequence in output.sequence_attributions
        for tensor in (sequence.source_attributions, sequence.target_attributions)
        if tensor is not None
    )
    if rows > MOST_ROWS:
        raise InvalidRequest(
            f"{rows} scores are too many for a table (at most {MOST_ROWS}). Aggregate them, or ask for format=inseq."
        )


class _Tokens:
    """The tokens of both sides as columns, by position."""

    def __init__(
        self, sequence: FeatureAttributionSequenceOutput, notes: dict[str, list[Note]], *, with_text: bool
    ) -> None:
        self._columns = {
            side: _token_columns(getattr(sequence, side), notes.get(side, []), with_text=with_text) for side in _SIDES
        }

    def at(self, role: str, side: str, positions: np.ndarray[Any, Any]) -> list[Column]:
        """The columns `<role>_position`, `<role>_token`, ... for these positions."""
        columns = [(f"{role}_position", pa.array(positions, pa.int32()))]
        return columns + [(f"{role}_{name}", values.take(pa.array(positions))) for name, values in self._columns[side]]


def _token_columns(tokens: Sequence[TokenWithId], notes: Sequence[Note], *, with_text: bool) -> list[Column]:
    columns = [
        ("token", pa.array([each.token for each in tokens], pa.string())),
        ("token_id", pa.array([each.id if isinstance(each.id, int) else -1 for each in tokens], pa.int32())),
    ]
    if with_text:
        texts = [note.get("text") for note in notes] or [None] * len(tokens)
        columns.append(("text", pa.array(texts, pa.string())))
    return columns


def _attributions(index: int, tokens: _Tokens, sequence: FeatureAttributionSequenceOutput) -> list[pa.Table]:
    made = []
    for side in _SIDES:
        tensor = getattr(sequence, f"{side}_attributions")
        tensor = np.empty((0, 0), np.float32) if tensor is None else tensor.detach().float().numpy()
        attributed, step, *further = np.indices(tensor.shape, np.int32).reshape(tensor.ndim, -1)
        generated, scores = step + sequence.attr_pos_start, tensor.reshape(-1)
        known = ~(np.isnan(scores) & (attributed >= generated)) if side == "target" else np.full(scores.shape, True)
        names = _dimension_names(sequence, side, len(further))
        made.append(
            _table(
                ("sequence", pa.array(np.full(known.sum(), index), pa.int32())),
                ("side", pa.array([side], pa.string()).take(pa.array(np.zeros(known.sum(), np.int32)))),
                *tokens.at("attributed", side, attributed[known]),
                *tokens.at("generated", "target", generated[known]),
                *((name, pa.array(each[known])) for name, each in zip(names, further, strict=True)),
                _scores(scores[known]),
            )
        )
    return made


def _step_scores(index: int, tokens: _Tokens, sequence: FeatureAttributionSequenceOutput) -> list[pa.Table]:
    found = {name: each.detach().float().numpy() for name, each in (sequence.step_scores or {}).items()}
    made = []
    for name, scores in (found or {"": np.empty(0, np.float32)}).items():
        generated = np.arange(len(scores), dtype=np.int32) + sequence.attr_pos_start
        made.append(
            _table(
                ("sequence", pa.array(np.full(len(scores), index), pa.int32())),
                *tokens.at("generated", "target", generated),
                ("step_score", pa.array([name] * len(scores), pa.string())),
                _scores(scores),
            )
        )
    return made


def _dimension_names(sequence: FeatureAttributionSequenceOutput, side: str, count: int) -> list[str]:
    """Inseq's own names of a granular tensor's further dimensions: `embedding_dimension`, `attention_layer`, ..."""
    names = (sequence._attribution_dim_names or {}).get(f"{side}_attributions", {})  # noqa: SLF001
    return [names.get(axis, f"dimension {axis}").lower().replace(" ", "_") for axis in range(2, 2 + count)]


def _scores(values: np.ndarray[Any, Any]) -> Column:
    return "score", pa.array(values, pa.float32(), from_pandas=True)  # NaN becomes null


def _table(*columns: Column) -> pa.Table:
    return pa.table(dict(columns))
