"""Inseq's `spans` aggregator, also for tokens of the target that stand behind the last attributed one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from inseq.data.aggregator import ContiguousSpanAggregator
from inseq.data.attribution import FeatureAttributionSequenceOutput
from inseq.utils.misc import aggregate_token_sequence

Spans = Sequence[tuple[int, int]]  # [start, end) of token positions


def aggregate_spans(
    sequence: FeatureAttributionSequenceOutput,
    source_spans: Spans | tuple[int, int] | None = None,
    target_spans: Spans | tuple[int, int] | None = None,
    **options: Any,
) -> FeatureAttributionSequenceOutput:
    """Return the sequence with one token for each span, as `sequence.aggregate("spans")` does.

    Tokens from `attr_pos_end` on have neither rows nor columns of scores, and Inseq reads scores of them all the same.
    So it gets the attributed part of each span, and the labels are merged here: a span that begins before
    `attr_pos_end` and ends behind it is one token with the scores of its first part, as Inseq has it at
    `attr_pos_start`. Raises what Inseq raises for spans that are none of the sequence's.
    """
    ContiguousSpanAggregator.validate_spans(sequence.target, target_spans)
    whole = ContiguousSpanAggregator.format_spans(target_spans) or []
    end = sequence.attr_pos_end
    attributed = [(first, min(last, end)) for first, last in whole if first < end]
    merged = sequence.aggregate("spans", source_spans=source_spans, target_spans=attributed, **options)
    merged.target = aggregate_token_sequence(sequence.target, whole)
    return merged
