"""The scores of pairs of text units (words, sentences, ...), from those of their tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from attribution_reading.scored_sequence import Scores
from attribution_reading.text_units import Span

FUNCTIONS = ("sum", "mean", "max", "min", "absmax")


def by_blocks(
    scores: Scores, later: NDArray[np.bool_], rows: Sequence[Span], columns: Sequence[Span], function: str
) -> Scores:
    """Return the function of each block of `scores`, [len(rows), len(columns)]; NaN for a block that is `later`.

    `scores` and `later` are [attributed, generated]; `later` marks pairs whose attributed token did not exist yet, and
    which do not count. `rows` and `columns` contain every token once, in order.
    """

    def reduced(values: NDArray[np.float64], by: np.ufunc) -> NDArray[np.float64]:
        at_rows, at_columns = ([first for first, _ in spans] for spans in (rows, columns))
        return by.reduceat(by.reduceat(values, at_rows, axis=0), at_columns, axis=1)

    def but(neutral: float) -> NDArray[np.float64]:
        return np.where(later, neutral, scores.astype(np.float64))

    if not rows or not columns:
        return np.empty((len(rows), len(columns)), np.float32)
    counts = reduced((~later).astype(np.float64), np.add)
    if function in {"sum", "mean"}:
        found = reduced(but(0.0), np.add) / (np.maximum(counts, 1) if function == "mean" else 1)
    else:
        least, most = reduced(but(np.inf), np.minimum), reduced(but(-np.inf), np.maximum)
        found = {"max": most, "min": least, "absmax": np.where(most >= -least, most, least)}[function]
    return np.where(counts > 0, found, np.nan).astype(np.float32)
