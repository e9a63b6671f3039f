"""Results as pandas tables, with the rows and columns of the service's `csv` and `parquet` views."""

from __future__ import annotations

import io
import json
from typing import Literal

import pandas as pd
import pyarrow.parquet

from attribution_client.scores import has_text, scored_sequence
from attribution_reading.tidy_table import attributions_table, step_scores_table
from attribution_schema.result import AttributionResult


def to_frame(result: AttributionResult, table: Literal["attributions", "step_scores"] = "attributions") -> pd.DataFrame:
    """Return a result as a tidy table with its `info` in `attrs`.

    `attributions`: sequence, side (source or target), attributed_position, attributed_token, attributed_token_id,
    generated_position, generated_token, generated_token_id, score. Scores of tokens that were not yet generated are
    left out. `step_scores`: sequence, generated_position, generated_token, generated_token_id, step_score, score.

    Raises `ValueError` for granular scores: `client.to_frame(job, granular=True)` has the names of their dimensions.
    """
    is_steps, with_text = table == "step_scores", has_text(result)
    sequences = [
        scored_sequence(each, with_scores=not is_steps, with_text=with_text) for each in result.sequence_attributions
    ]
    frame: pd.DataFrame = (step_scores_table(sequences) if is_steps else attributions_table(sequences)).to_pandas()
    frame.attrs["info"] = result.info
    return frame


def read_parquet(content: bytes) -> pd.DataFrame:
    """Return the service's Parquet view as a table with the result's `info` in `attrs`."""
    found = pyarrow.parquet.read_table(io.BytesIO(content))
    info = json.loads((found.schema.metadata or {}).get(b"info", b"{}"))
    frame: pd.DataFrame = found.replace_schema_metadata(None).to_pandas()
    frame.attrs["info"] = info
    return frame
