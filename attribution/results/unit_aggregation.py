"""Merges the tokens of each unit of text (words, sentences, ...) where scores are [attributed, generated].

Inseq's `spans` merges tokens, step scores and sequence scores. The scores of pairs are added up here, because Inseq's
functions give NaN for a unit in which one token had not been generated yet.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from inseq.data.attribution import FeatureAttributionSequenceOutput
from numpy.typing import NDArray

from attribution.catalogue.text_units import FUNCTIONS
from attribution.results import inseq_fields
from attribution.results.scored_sequences import numbers
from attribution.text.readable_tokens import Note
from attribution.text.text_units import Span, unit_spans
from attribution_reading.scored_sequence import Scores, not_yet_generated
from problems import InvalidRequest

_MATRIX = 2  # dimensions


def merge_units(
    sequence: FeatureAttributionSequenceOutput, notes: dict[str, list[Note]], unit: str, function: str | None
) -> FeatureAttributionSequenceOutput:
    """Return the sequence with one token for each unit. `function` is applied to the scores of two units' tokens.

    Step scores are merged by Inseq's own functions (the product for probabilities, the sum for entropies, ...). Raises
    `InvalidRequest` for scores of another shape, and for a function that is not among `FUNCTIONS`.
    """
    function = function or "sum"
    if function not in FUNCTIONS:
        raise InvalidRequest(f"{unit} can be aggregated by {', '.join(FUNCTIONS)}, and not by {function!r}.")
    tensors = {side: getattr(sequence, f"{side}_attributions") for side in inseq_fields.SIDES}
    if any(each is not None and each.ndim != _MATRIX for each in tensors.values()):
        raise InvalidRequest(
            f"{unit} needs one score for each pair of tokens: put the aggregators that make one of several in front, "
            f"or leave them out for the method's own."
        )
    start, end = sequence.attr_pos_start, sequence.attr_pos_end
    spans = {
        "source": unit_spans(notes.get("source") or _plain(sequence.source), unit),
        "target": unit_spans(notes.get("target") or _plain(sequence.target), unit, borders=(start, end)),
    }
    columns = [(first - start, last - start) for first, last in spans["target"] if start <= first < end]
    merged = sequence.aggregate(
        "spans",
        do_post_aggregation_checks=False,
        **{f"{side}_spans": [each for each in found if each[1] - each[0] > 1] for side, found in spans.items()},
    )
    for side, tensor in tensors.items():
        if tensor is not None:
            rows = [each for each in spans[side] if each[1] <= tensor.shape[0]]
            later = not_yet_generated(numbers(tensor), side, start)
            scores = _by_blocks(numbers(tensor), later, rows, columns, function)
            setattr(merged, f"{side}_attributions", torch.from_numpy(scores))
    return merged


def _plain(tokens: Sequence[object]) -> list[Note]:
    """Notes for tokens without any: each is a unit of its own."""
    return [{"text": "", "label": True} for _ in tokens]


def _by_blocks(
    scores: Scores, later: NDArray[np.bool_], rows: Sequence[Span], columns: Sequence[Span], function: str
) -> Scores:
    """Return the function of each block of `scores`, [len(rows), len(columns)]; NaN for a block that is `later`."""

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
