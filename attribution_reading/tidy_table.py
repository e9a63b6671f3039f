"""A result as a tidy table: one row for each score, beside it what the score belongs to.

Rows are identified by positions, so that a token that occurs twice loses nothing. Scores of tokens that were not yet
generated are left out; any other NaN is a null.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from attribution_reading.scored_sequence import SIDES, ScoredSequence, Scores, Tokens, not_yet_generated

_Column = tuple[str, pa.Array]
_Positions = NDArray[np.integer[Any]]


def attributions_table(sequences: Iterable[ScoredSequence]) -> pa.Table:
    """Return the attribution scores of all sequences: by sequence and side, then attributed, then generated token.

    Columns: sequence, side (source or target), attributed_position, attributed_token, attributed_token_id,
    generated_position, generated_token, generated_token_id, the scores' further dimensions (granular scores only),
    score. Where tokens have decoded texts, attributed_text and generated_text are behind the ids.
    """
    return _joined(_side_rows(index, side, sequence) for index, sequence in enumerate(sequences) for side in SIDES)


def step_scores_table(sequences: Iterable[ScoredSequence]) -> pa.Table:
    """Return the step scores of all sequences: by sequence and step score, then generated token.

    Columns: sequence, generated_position, generated_token, generated_token_id, step_score, score. Where tokens have
    decoded texts, generated_text is behind the id.
    """
    return _joined(
        _step_rows(index, name, scores, sequence)
        for index, sequence in enumerate(sequences)
        for name, scores in (sequence.step_scores or {"": np.empty(0, np.float32)}).items()
    )


def _joined(parts: Iterable[pa.Table]) -> pa.Table:
    """Return one table of all rows. A part without rows does not know the further dimensions, and is left out."""
    tables = list(parts)
    return pa.concat_tables([table for table in tables if table.num_rows] or tables[:1])


def _side_rows(index: int, side: str, sequence: ScoredSequence) -> pa.Table:
    scores = sequence.scores.get(side, np.empty((0, 0), np.float32))
    is_kept = ~not_yet_generated(scores, side, sequence.start).reshape(-1)
    attributed, step, *further = np.indices(scores.shape, np.int32).reshape(scores.ndim, -1)[:, is_kept]
    names = sequence.dimensions.get(side, ()) if further else ()
    return _table(
        ("sequence", _repeated(index, len(attributed), pa.int32())),
        ("side", _repeated(side, len(attributed), pa.string())),
        *_token_columns("attributed", sequence.tokens[side], attributed),
        *_token_columns("generated", sequence.tokens["target"], step + sequence.start),
        *((name, pa.array(each)) for name, each in zip(names, further, strict=True)),
        ("score", _numbers(scores.reshape(-1)[is_kept])),
    )


def _step_rows(index: int, name: str, scores: Scores, sequence: ScoredSequence) -> pa.Table:
    return _table(
        ("sequence", _repeated(index, len(scores), pa.int32())),
        *_token_columns("generated", sequence.tokens["target"], np.arange(len(scores)) + sequence.start),
        ("step_score", _repeated(name, len(scores), pa.string())),
        ("score", _numbers(scores)),
    )


def _token_columns(role: str, tokens: Tokens, positions: _Positions) -> list[_Column]:
    """Return the columns `<role>_position`, `<role>_token`, `<role>_token_id` and, with texts, `<role>_text`."""
    at = pa.array(positions, pa.int32())
    columns = [
        (f"{role}_position", at),
        (f"{role}_token", pa.array(tokens.tokens, pa.string()).take(at)),
        (f"{role}_token_id", pa.array(tokens.ids, pa.int32()).take(at)),
    ]
    if tokens.texts is not None:
        columns.append((f"{role}_text", pa.array(tokens.texts, pa.string()).take(at)))
    return columns


def _repeated(value: object, count: int, kind: pa.DataType) -> pa.Array:
    return pa.repeat(pa.scalar(value, kind), count)


def _numbers(values: Scores) -> pa.Array:
    return pa.array(values, pa.float32(), from_pandas=True)  # NaN becomes null


def _table(*columns: _Column) -> pa.Table:
    return pa.table(dict(columns))
