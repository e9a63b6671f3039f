"""The finished steps of a running text, as an output of their own."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from inseq.data import FeatureAttributionOutput
from inseq.data.attribution import FeatureAttributionSequenceOutput, FeatureAttributionStepOutput
from inseq.models import HuggingfaceModel

from attribution.corrections import positions_and_padding
from attribution.inseq_loop.text_setup import rename_step_scores
from attribution.single_pass import span_output
from attribution.text.encoding import Text
from attribution.text.step_labels import labels
from models import AttributionRequest


@dataclass(frozen=True)
class RunningText:
    """A text that is being attributed; `steps` grows."""

    text: Text
    steps: Sequence[FeatureAttributionStepOutput]
    step_score_names: dict[str, str]  # see `Setup.step_score_names`
    pad_token: str  # that Inseq drops from the text
    method: str


def output_of_steps(
    request: AttributionRequest, model: HuggingfaceModel, running: RunningText
) -> FeatureAttributionOutput | None:
    """The scores of the finished steps, equal to those of a request whose `attr_pos_end` is behind the last of them.

    None before the first step. Safe in any thread while the steps grow.
    """
    steps = [copy.copy(each) for each in running.steps]
    if not steps:
        return None
    if running.text.spans:
        return _of_spans(request, model, running, steps)
    text, end = running.text, running.text.first + len(steps)
    target = labels(text.target.input_tokens[0], text.target.input_ids[0].tolist())
    for position, step in enumerate(steps, text.first):
        labelled = step.target[0][0]
        if labelled.token != target[position].token:  # with its contrast: "that → this"
            target[position] = labelled
    if request.clean_special_chars:
        target = model.clean_tokens(target, as_targets=True)
        for step in steps:
            step.source = None if step.source is None else model.clean_tokens(step.source)
            step.prefix = model.clean_tokens(step.prefix, as_targets=True)
            step.target = model.clean_tokens(step.target, as_targets=True)
    tail = target[end:] if model.is_encoder_decoder else []
    sequences = FeatureAttributionSequenceOutput.from_step_attributions(
        steps, [target[:end] if tail else target], pad_token=running.pad_token, attr_pos_end=end
    )
    kept = steps if request.output_step_attributions else None
    output = FeatureAttributionOutput(sequences, kept, _info(request, model, running, text.first, end))
    positions_and_padding.restore_tail(output, tail)
    positions_and_padding.name_tokens(output)
    rename_step_scores(output, running.step_score_names)
    return output


def _of_spans(
    request: AttributionRequest,
    model: HuggingfaceModel,
    running: RunningText,
    steps: Sequence[FeatureAttributionStepOutput],
) -> FeatureAttributionOutput:
    sequence = span_output.joined(steps, running.text, model, clean=request.clean_special_chars)
    info = _info(request, model, running, sequence.attr_pos_start, sequence.attr_pos_end)
    output = FeatureAttributionOutput([sequence], None, info)
    positions_and_padding.name_tokens(output)
    rename_step_scores(output, running.step_score_names)
    return output


def _info(
    request: AttributionRequest, model: HuggingfaceModel, running: RunningText, start: int, end: int
) -> dict[str, Any]:
    return {
        "attribution_method": running.method,
        "attr_pos_start": start,
        "attr_pos_end": end,
        "output_step_attributions": request.output_step_attributions,
        "attribute_target": request.attribute_target and bool(model.is_encoder_decoder),
        **model.info,
    }
