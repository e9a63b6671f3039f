"""Results as pandas tables: a row for each attributed and generated token, as the service's `csv` and `parquet` are."""

from __future__ import annotations

import io
import json
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow.parquet

from attribution_schema.result import AttributionResult, SequenceAttribution, Token

_DTYPES = {"sequence": "int32", "score": "float32"} | {
    f"{role}_{name}": "int32" for role in ("attributed", "generated") for name in ("position", "token_id")
}
Scores = np.ndarray[Any, np.dtype[np.float32]]
Positions = np.ndarray[Any, np.dtype[np.integer[Any]]]


def to_frame(result: AttributionResult, table: Literal["attributions", "step_scores"] = "attributions") -> pd.DataFrame:
    """A result as a tidy table; `info` is in its `attrs`.

    `attributions`: sequence, side (source or target), attributed_position, attributed_token, attributed_token_id,
    generated_position, generated_token, generated_token_id, score. Positions that were not yet generated are left out.
    `step_scores`: sequence, generated_position, generated_token, generated_token_id, step_score, score.

    Raises `ValueError` for a granular result: `client.to_frame(job, granular=True)` has its dimensions' names.
    """
    make = _step_scores if table == "step_scores" else _attributions
    parts = [make(index, sequence) for index, sequence in enumerate(result.sequence_attributions)]
    frame = pd.concat(parts, ignore_index=True)
    frame.attrs["info"] = result.info
    return frame.astype({name: kind for name, kind in _DTYPES.items() if name in frame})


def read_parquet(content: bytes) -> pd.DataFrame:
    """The service's Parquet view; `info` is in the table's `attrs`."""
    found = pyarrow.parquet.read_table(io.BytesIO(content))
    info = json.loads((found.schema.metadata or {}).get(b"info", b"{}"))
    frame: pd.DataFrame = found.replace_schema_metadata(None).to_pandas()
    frame.attrs["info"] = info
    return frame


def _attributions(index: int, sequence: SequenceAttribution) -> pd.DataFrame:
    parts = []
    for side in ("source", "target"):
        scores = scores_of(sequence, side)
        attributed, step = (each.reshape(-1) for each in np.indices(scores.shape))
        generated, values = step + sequence.attr_pos_start, scores.reshape(-1)
        known = ~(np.isnan(values) & (attributed >= generated)) if side == "target" else np.full(values.shape, True)
        parts.append(
            pd.DataFrame(
                {
                    "sequence": index,
                    "side": pd.Series(side, index=range(int(known.sum())), dtype="str"),
                    **_token_columns("attributed", getattr(sequence, side), attributed[known]),
                    **_token_columns("generated", sequence.target, generated[known]),
                    "score": values[known],
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def _step_scores(index: int, sequence: SequenceAttribution) -> pd.DataFrame:
    parts = []
    for name, scores in (sequence.step_scores or {"": []}).items():
        generated = np.arange(len(scores)) + sequence.attr_pos_start
        parts.append(
            pd.DataFrame(
                {
                    "sequence": pd.Series(index, index=range(len(scores))),
                    **_token_columns("generated", sequence.target, generated),
                    "step_score": pd.Series(name, index=range(len(scores)), dtype="str"),
                    "score": np.array(scores, np.float32),
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def scores_of(sequence: SequenceAttribution, side: str) -> Scores:
    """The scores of one side, [attributed, generated], NaN where there is none; no rows where the side has no scores.

    Raises `ValueError` where they are not aggregated to a number for each pair.
    """
    found = getattr(sequence, f"{side}_attributions") or []
    if any(isinstance(each, list) for row in found[:1] for each in row):
        raise ValueError("These scores are granular: ask for the result without it, or for client.to_frame.")
    return np.array(found, np.float32).reshape(len(found), -1 if found else 0)


def _token_columns(role: str, tokens: list[Token], positions: Positions) -> dict[str, object]:
    columns: dict[str, object] = {
        f"{role}_position": positions,
        f"{role}_token": pd.Series([tokens[at].token for at in positions], dtype="str"),
        f"{role}_token_id": [tokens[at].token_id for at in positions],
    }
    if any(token.text is not None for token in tokens):
        columns[f"{role}_text"] = pd.Series([tokens[at].text for at in positions], dtype="str")
    return columns
