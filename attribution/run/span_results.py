"""Margins: the scores of spans minus those of the texts that might stand in their place; and what is said of them.

F(span) - F(other text) has the difference of their scores, for a method whose scores are linear in the attributed
function: on the tokens before the span, which both texts share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from inseq.data import FeatureAttributionOutput

from attribution.catalogue import next_token, traits
from attribution.inseq_loop.engine_calls import DESCRIBED
from attribution.run.prepared_text import PreparedText
from models import AttributionRequest


def margins(
    request: AttributionRequest,
    prepared: PreparedText,
    output: FeatureAttributionOutput,
    others: Sequence[FeatureAttributionOutput],
) -> FeatureAttributionOutput:
    """The output of a text's spans, with the scores of their alternatives' outputs taken away. All scores have a sign;
    those returned are absolute where the method's are.
    """
    describe(request, prepared, output, others)
    for alternative, other in zip(prepared.alternatives, others, strict=True):
        _subtract(output, alternative.span, other, alternative.text.first)
    if traits.of_method(request.attribution_method).returns_absolute(request.attribution_args):
        _make_absolute(output)
    return output


def _subtract(output: FeatureAttributionOutput, column: int, other: FeatureAttributionOutput, shared: int) -> None:
    """Take the scores of another text's one span from those of a column, on the `shared` tokens of the target."""
    (ours,), (theirs,) = output.sequence_attributions, other.sequence_attributions
    if ours.source_attributions is not None:
        ours.source_attributions[:, column] -= theirs.source_attributions[:, 0]
    if ours.target_attributions is not None:
        ours.target_attributions[:shared, column] -= theirs.target_attributions[:shared, 0]
        ours.target_attributions[shared:, column] = torch.nan


def _make_absolute(output: FeatureAttributionOutput) -> None:
    """Replace the scores by their absolute values, as the method returns them for one text."""
    (sequence,) = output.sequence_attributions
    for each in (sequence.source_attributions, sequence.target_attributions):
        if each is not None:
            each.abs_()


def describe(
    request: AttributionRequest,
    prepared: PreparedText,
    output: FeatureAttributionOutput,
    others: Sequence[FeatureAttributionOutput],
) -> None:
    """Write into the output's `info` what the spans are, in plain data: their tokens and log-probabilities, those of
    their alternatives, and of choices how likely each is among them. Takes the log-probabilities out of the scores.
    """
    text = prepared.text
    found = [
        {
            "name": span.name,
            "start": span.start,
            "end": span.end,
            "text": span.text,
            "token_ids": text.target.input_ids[0, span.start : span.end].tolist(),
            "log_probability": probability,
        }
        for span, probability in zip(text.spans, _log_probabilities(output), strict=False)
    ]
    for alternative, other in zip(prepared.alternatives, others, strict=False):
        (probability,) = _log_probabilities(other)
        (span,) = alternative.text.spans
        found[alternative.span]["contrast"] = {
            "text": alternative.words,
            "token_ids": alternative.text.target.input_ids[0, span.start : span.end].tolist(),
            "log_probability": probability,
        }
    output.info[DESCRIBED] = {"spans": found} | ({"choices": _choices(request, found)} if request.choices else {})


def _log_probabilities(output: FeatureAttributionOutput) -> list[float]:
    (sequence,) = output.sequence_attributions
    return [float(each) for each in sequence.step_scores.pop(next_token.LOG_PROBABILITY)]


def _choices(request: AttributionRequest, spans: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each choice with its probability among all of them, and the mean log-probability of its tokens."""
    assert request.choices is not None
    every = [spans[0], *(each["contrast"] for each in spans if "contrast" in each)]
    largest = max(each["log_probability"] for each in every)
    total = sum(math.exp(each["log_probability"] - largest) for each in every)
    return [
        {
            "text": words,
            "tokens": len(each["token_ids"]),
            "log_probability": each["log_probability"],
            "log_probability_per_token": each["log_probability"] / len(each["token_ids"]),
            "probability_among_choices": math.exp(each["log_probability"] - largest) / total,
        }
        for words, each in zip(request.choices, every, strict=False)
    ]
