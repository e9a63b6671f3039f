"""Merges the tokens of each unit of text (words, sentences, ...) where scores are [attributed, generated].

Inseq's `spans` merges tokens, step scores and sequence scores. The scores of pairs are added up here, because Inseq's
functions give NaN for a unit in which one token had not been generated yet.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from inseq.data.attribution import FeatureAttributionSequenceOutput
from inseq.utils.typing import TokenWithId

from attribution.results import inseq_fields
from attribution.results.scored_sequences import numbers
from attribution.results.span_aggregation import aggregate_spans
from attribution.text.readable_tokens import Note
from attribution_reading.scored_sequence import not_yet_generated
from attribution_reading.text_units import SEGMENTS, segment_label, unit_spans
from attribution_reading.unit_scores import FUNCTIONS, by_blocks
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
    if unit == SEGMENTS and not any("segment" in note for side in notes.values() for note in side):
        raise InvalidRequest(
            "This job has no segments. Submit it with `segments`, or aggregate over a unit of text, such as sentences."
        )
    start, end = sequence.attr_pos_start, sequence.attr_pos_end
    spans = {
        "source": unit_spans(notes.get("source") or _plain(sequence.source), unit),
        "target": unit_spans(notes.get("target") or _plain(sequence.target), unit, borders=(start, end)),
    }
    columns = [(first - start, last - start) for first, last in spans["target"] if start <= first < end]
    merged = aggregate_spans(
        sequence,
        do_post_aggregation_checks=False,
        **{f"{side}_spans": [each for each in found if each[1] - each[0] > 1] for side, found in spans.items()},
    )
    for side, tensor in tensors.items():
        if tensor is not None:
            rows = [each for each in spans[side] if each[1] <= tensor.shape[0]]
            later = not_yet_generated(numbers(tensor), side, start)
            scores = by_blocks(numbers(tensor), later, rows, columns, function)
            setattr(merged, f"{side}_attributions", torch.from_numpy(scores))
    return merged


def label_segments(sequence: FeatureAttributionSequenceOutput, notes: dict[str, list[Note]]) -> None:
    """Call each merged segment by its name; `notes` are those of the merged tokens."""
    for side in inseq_fields.SIDES:
        tokens = list(getattr(sequence, side))
        for index, note in enumerate(notes.get(side, ())):
            if name := note.get("segment"):
                tokens[index] = TokenWithId(name, -1)
                note["text"] = segment_label(name, note["text"])
        setattr(sequence, side, tokens)


def _plain(tokens: Sequence[object]) -> list[Note]:
    """Notes for tokens without any: each is a unit of its own."""
    return [{"text": "", "label": True} for _ in tokens]
