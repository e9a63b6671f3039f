"""Builds Inseq's own data classes from the steps' scores, equal to those that its loop returns, token labels included.

Inseq computes the labels again for every step, in time that grows with the square of the text's length; here they are
computed once (`attribution.text.step_labels`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any, TypeAlias

from inseq.attr.feat import FeatureAttribution
from inseq.data import (
    CoarseFeatureAttributionStepOutput,
    DecoderOnlyBatch,
    EncoderDecoderBatch,
    FeatureAttributionOutput,
    FeatureAttributionSequenceOutput,
    FeatureAttributionStepOutput,
    GranularFeatureAttributionStepOutput,
)
from inseq.models import HuggingfaceModel

from attribution.single_pass.logit_functions import AttributedFunction, StepScores
from attribution.single_pass.network import SplitModel
from attribution.single_pass.text_task import ProgressCallback, StepResult, Task
from attribution.text.step_labels import StepLabels

_COARSE = 2  # dimensions of a step's scores with one number for each token

Batch: TypeAlias = DecoderOnlyBatch | EncoderDecoderBatch
StepOutputCallback = Callable[[FeatureAttributionStepOutput], None]


class InseqOutputBuilder:
    """Prepares one text's `Task` and builds Inseq's output from its results, as the outer part of Inseq's loop does."""

    def __init__(
        self,
        method: FeatureAttribution,
        model: HuggingfaceModel,
        batch: Batch,
        arguments: dict[str, Any],
    ) -> None:
        """`arguments` are those of Inseq's `FeatureAttribution.attribute`. Aligns contrasts here, as Inseq does."""
        self._method = method
        self._model = model
        self._batch = batch
        self._steps = steps = range(arguments["attr_pos_start"], arguments["attr_pos_end"])
        self._arguments = arguments
        contrast, alignments, attributed_args, scores_args = method.format_contrastive_targets(
            model.formatter.get_text_sequences(model, batch).targets,
            batch.target_tokens,
            arguments["attributed_fn_args"],
            arguments["step_scores_args"],
            steps.start,
            steps.stop,
            arguments["skip_special_tokens"],
        )
        self._contrast, self._alignments = contrast, alignments
        self._function_args, self._scores_args = attributed_args, scores_args
        self._labels = StepLabels(batch)
        self._began = perf_counter()

    def task(self, report_progress: ProgressCallback, *, needs_identity: bool) -> Task:
        """The text's embeddings, baselines, steps and functions, for `method_dispatch.step_results`."""
        model, steps, end = self._model, self._steps, self._steps.stop - 1
        function = AttributedFunction(model, self._arguments["attributed_fn"], self._function_args, self._batch)
        scores = StepScores(model, self._arguments["step_scores"], self._scores_args, self._batch)
        context = None
        if model.is_encoder_decoder:
            encodings = [self._batch.sources.encoding, self._batch.targets.encoding]
            source, target = self._batch.sources.embedding, self._batch.targets.embedding
            inputs, baselines = [source.input_embeds], [source.baseline_embeds]
            if self._arguments["attribute_target"]:
                inputs.append(target.input_embeds[:, :end])
                baselines.append(target.baseline_embeds[:, :end])
            else:
                context = target.input_embeds[:, :end]
        else:
            encodings = [self._batch.encoding]
            inputs = [self._batch.input_embeds[:, :end]]
            baselines = [self._batch.baseline_embeds[:, :end]]
        return Task(
            SplitModel(model),
            tuple(inputs),
            tuple(baselines),
            context,
            steps,
            function,
            scores,
            report_progress,
            needs_identity,
            tuple((each.input_ids, each.baseline_ids) for each, _ in zip(encodings, inputs, strict=False)),
        )

    def output(self, results: Iterator[StepResult], step_done: StepOutputCallback) -> FeatureAttributionOutput:
        """Inseq's output from one result for each step, in order; calls `step_done` with each step's output."""
        if self._contrast is not None:
            tokens = self._model.get_token_with_ids(
                self._batch,
                contrast_target_tokens=self._contrast.target_tokens,
                contrast_targets_alignments=self._alignments,
            )
        else:
            tokens = [list(self._labels.target)]
        outputs = []
        for step, result in zip(self._steps, results, strict=True):
            output = self._label(self._step_output(result), step)
            outputs.append(output)
            step_done(output)
        if self._arguments["clean_special_chars"]:
            for each in outputs:
                each.source = None if each.source is None else self._model.clean_tokens(each.source)
                each.prefix = self._model.clean_tokens(each.prefix, as_targets=True)
                each.target = self._model.clean_tokens(each.target, as_targets=True)
            tokens = self._model.clean_tokens(tokens, as_targets=True)
        seconds = perf_counter() - self._began
        return FeatureAttributionOutput(
            sequence_attributions=FeatureAttributionSequenceOutput.from_step_attributions(
                attributions=outputs,
                tokenized_target_sentences=tokens,
                pad_token=self._model.pad_token,
                attr_pos_end=self._arguments["attr_pos_end"],
            ),
            step_attributions=outputs if self._arguments["output_step_attributions"] else None,
            info={
                "attribution_method": self._method.method_name,
                "attr_pos_start": self._steps.start,
                "attr_pos_end": self._arguments["attr_pos_end"],
                "output_step_attributions": self._arguments["output_step_attributions"],
                "attribute_target": self._arguments["attribute_target"],
                "step_scores": self._arguments["step_scores"],
                "exec_time": seconds,
            }
            | self._model.info,
        )

    def _step_output(self, result: StepResult) -> FeatureAttributionStepOutput:
        source = target = None
        if result.scores is not None:
            scores = [each.detach().to("cpu") for each in result.scores]
            if self._model.is_encoder_decoder:
                source, target = scores[0], scores[1] if len(scores) > 1 else None
            else:
                target = scores[0]
        kind = FeatureAttributionStepOutput
        if result.scores is not None:
            is_coarse = result.scores[0].ndim == _COARSE
            kind = CoarseFeatureAttributionStepOutput if is_coarse else GranularFeatureAttributionStepOutput
        return kind(source_attributions=source, target_attributions=target, step_scores=dict(result.step_scores))

    def _label(self, output: FeatureAttributionStepOutput, step: int) -> FeatureAttributionStepOutput:
        ids = self._batch.target_ids[:, step : step + 1]
        labelled: FeatureAttributionStepOutput = self._labels.enriched(
            self._model.formatter.enrich_step_output,
            self._model,
            output,
            step,
            self._model.convert_ids_to_tokens(ids, skip_special_tokens=False),
            ids[:, 0].detach().to("cpu"),
            contrast_batch=self._contrast,
            contrast_targets_alignments=self._alignments,
        )
        return labelled
