"""Inseq's data classes for spans of a text: the tokens of the text, and behind them each span as a token of its own.

So a span has a column of scores for the tokens of the text, as a generated token has, and every view, aggregator and
file of Inseq's can be used. A position that no token of the span depends on is NaN, as one behind a step is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any

import torch
from inseq.data import FeatureAttributionOutput
from inseq.data.attribution import (
    CoarseFeatureAttributionSequenceOutput,
    CoarseFeatureAttributionStepOutput,
    FeatureAttributionSequenceOutput,
    FeatureAttributionStepOutput,
    GranularFeatureAttributionSequenceOutput,
    GranularFeatureAttributionStepOutput,
)
from inseq.models import HuggingfaceModel
from inseq.utils.typing import TokenWithId

from attribution.single_pass.columns import Columns
from attribution.single_pass.inseq_output import InseqOutputBuilder, StepOutputCallback
from attribution.single_pass.logit_functions import merged_scores
from attribution.single_pass.text_task import ProgressCallback, StepResult, Task
from attribution.text.encoding import Text
from attribution.text.step_labels import labels

_STEP_CLASSES = {
    CoarseFeatureAttributionSequenceOutput: CoarseFeatureAttributionStepOutput,
    GranularFeatureAttributionSequenceOutput: GranularFeatureAttributionStepOutput,
}
NO_ID = -1  # the id of a span, as of every merged token


class SpanOutputBuilder(InseqOutputBuilder):
    """Prepares the `Task` of a text's spans, and builds Inseq's output from its results."""

    def __init__(self, text: Text, *inputs: Any, is_signed: bool = False) -> None:
        """`inputs`: those of `InseqOutputBuilder`. `is_signed`: see `Task`."""
        super().__init__(*inputs)
        self._text = text
        self._is_signed = is_signed

    def task(self, report_progress: ProgressCallback, *, needs_identity: bool) -> Task:
        """See `InseqOutputBuilder.task`; the steps are those of all spans."""
        task = replace(super().task(report_progress, needs_identity=needs_identity), is_signed=self._is_signed)
        if self._text.trace is not None or len(task.steps) == len(self._text.spans) == 1:
            return task  # a trace makes its columns one by one; one token has the very numbers of that step
        columns = Columns.of_spans([range(each.start, each.end) for each in self._text.spans], task.steps)
        return replace(task, columns=columns)

    def output(self, results: Iterator[StepResult], step_done: StepOutputCallback) -> FeatureAttributionOutput:
        """Inseq's output from one result for each span, in order; calls `step_done` with each span's output."""
        spans, began = [], perf_counter()
        for index, result in enumerate(results):
            spans.append(labelled(self._step_output(result), self._text, index))
            step_done(spans[-1])
        sequence = joined(spans, self._text, self._model, clean=self._arguments["clean_special_chars"])
        return FeatureAttributionOutput(
            sequence_attributions=[sequence],
            info={
                "attribution_method": self._method.method_name,
                "attr_pos_start": sequence.attr_pos_start,
                "attr_pos_end": sequence.attr_pos_end,
                "output_step_attributions": False,
                "attribute_target": self._arguments["attribute_target"],
                "step_scores": self._arguments["step_scores"],
                "exec_time": perf_counter() - began,
            }
            | self._model.info,
        )


def labelled(output: FeatureAttributionStepOutput, text: Text, index: int) -> FeatureAttributionStepOutput:
    """The output of span number `index` with its labels; its prefix is the text and the spans before it."""
    is_decoder_only = output.source_attributions is None
    output.source = None if is_decoder_only else [_tokens(text.source)]
    output.prefix = [_tokens(text.target) + span_labels(text, index)]
    output.target = [span_labels(text, index + 1)[-1:]]
    scores = output.target_attributions
    if scores is not None:
        missing = len(output.prefix[0]) - scores.shape[1]
        padding = scores.new_full((1, missing, *scores.shape[2:]), torch.nan)
        output.target_attributions = torch.cat([scores, padding], dim=1)
    return output


def joined(
    spans: Sequence[FeatureAttributionStepOutput], text: Text, model: HuggingfaceModel, *, clean: bool
) -> FeatureAttributionSequenceOutput:
    """The sequence of a text's first spans, from their `labelled` outputs; `clean` strips the tokenizer's marks."""
    tokens = _tokens(text.target) + span_labels(text, len(spans))
    (sequence,) = FeatureAttributionSequenceOutput.from_step_attributions(
        list(spans), [tokens], pad_token=None, attr_pos_end=len(tokens)
    )
    if not model.is_encoder_decoder:
        sequence.source = sequence.target[: text.source.input_ids.shape[1]]
    if clean:
        written = len(tokens) - len(spans)
        sequence.source = model.clean_tokens(sequence.source)
        cleaned = model.clean_tokens(sequence.target[:written], as_targets=True)
        sequence.target = [*cleaned, *sequence.target[written:]]
    return sequence


def of_single_steps(
    outputs: Sequence[FeatureAttributionOutput], text: Text, model: HuggingfaceModel, *, clean: bool
) -> FeatureAttributionOutput:
    """The output of a text's spans, from that of each as the only step of a text of its own."""
    steps = [labelled(_only_step(each), text, index) for index, each in enumerate(outputs)]
    sequence = joined(steps, text, model, clean=clean)
    places = {"attr_pos_start": sequence.attr_pos_start, "attr_pos_end": sequence.attr_pos_end}
    return FeatureAttributionOutput([sequence], None, outputs[0].info | places)


def scores_of_spans(
    scores: Mapping[str, torch.Tensor], text: Text, arguments: dict[str, Any]
) -> dict[str, torch.Tensor]:
    """The spans' step scores ([spans] each), from those of all tokens from the text's first step on ([tokens] each)."""
    found = []
    for span in text.spans:
        positions = range(span.start - text.first, span.end - text.first)
        found.append(merged_scores([{n: each[at] for n, each in scores.items()} for at in positions], arguments))
    return {name: torch.cat([each[name] for each in found]) for name in found[0]}


def _only_step(output: FeatureAttributionOutput) -> FeatureAttributionStepOutput:
    """The one step of an output, with the scores of the positions before it."""
    (sequence,) = output.sequence_attributions
    source, target = sequence.source_attributions, sequence.target_attributions
    kind = FeatureAttributionStepOutput
    for each in (CoarseFeatureAttributionSequenceOutput, GranularFeatureAttributionSequenceOutput):
        if isinstance(sequence, each):
            kind = _STEP_CLASSES[each]
    return kind(
        source_attributions=None if source is None else source[None, :, 0],
        target_attributions=None if target is None else target[None, : sequence.attr_pos_start, 0],
        step_scores={},
    )


def span_labels(text: Text, count: int) -> list[TokenWithId]:
    """The first spans as tokens."""
    return [TokenWithId(each.name, NO_ID) for each in text.spans[:count]]


def _tokens(encoding: Any) -> list[TokenWithId]:
    return labels(encoding.input_tokens[0], encoding.input_ids[0].tolist())
