"""Inseq's attribution loop over one text, called on ids, with the corrections that the text and the method need.

Knows one text and one method at a time: the texts of a request, progress and cancellation are the `runner`'s.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

from inseq.attr.feat import FeatureAttribution
from inseq.data import Batch as OneSideBatch
from inseq.data import BatchEmbedding, BatchEncoding, DecoderOnlyBatch, EncoderDecoderBatch, FeatureAttributionOutput
from inseq.data.attribution import FeatureAttributionSequenceOutput, FeatureAttributionStepOutput
from inseq.models import HuggingfaceModel

from attribution.catalogue import checks, inseq_catalogue
from attribution.catalogue.inseq_catalogue import Method
from attribution.corrections import embeddings, positions_and_padding
from attribution.corrections.registry import Ledger
from attribution.corrections.step_functions import corrected_step_function, plain_name
from attribution.inseq_loop import completeness, step_scores
from attribution.inseq_loop.cheaper_forwards import lean_forwards
from attribution.inseq_loop.method_loading import load_method
from attribution.model_cache.attention_outputs import keep_attributed_rows
from attribution.model_cache.loading import LoadedModel
from attribution.single_pass.activations import cached_derivatives
from attribution.single_pass.inseq_output import Batch, InseqOutputBuilder
from attribution.single_pass.method_dispatch import step_results as steps_of
from attribution.single_pass.text_task import ProgressCallback, StepResult
from attribution.text.encoding import Text
from attribution.text.step_labels import StepLabels, labelled_once, labels
from models import Arguments, AttributionRequest
from problems import InputRejected, UnsupportedByModel

StepDone = Callable[[int], None]
# A text's attribution, and the identity of each step where the method has one.
Attributed = tuple[FeatureAttributionOutput, list[completeness.Step]]


class _Steps(list[FeatureAttributionStepOutput]):
    """The steps of one text that are done; each one more is told."""

    def __init__(self, step_done: StepDone) -> None:
        super().__init__()
        self._step_done = step_done

    def append(self, step: FeatureAttributionStepOutput) -> None:
        super().append(step)
        self._step_done(len(self))


@dataclass(frozen=True)
class _SoFar:
    """A running attribution of one text; `steps` grows."""

    text: Text
    steps: _Steps
    step_score_names: dict[str, str]  # those they run under, and Inseq's
    pad_token: str  # that Inseq drops
    method: str


# They look at the whole vocabulary, once for each model: nearest neighbours, word classes.
_PREPARE = {"discretized_integrated_gradients", "reagent"}


class EngineChoice(Protocol):
    """Says before a method runs which way it goes; told where the single pass cannot do a text."""

    def takes_single_pass(self, method: Method) -> bool: ...

    def give_up(self, method: Method, reason: str) -> None: ...


class AttributionLoop:
    """Inseq's loop on one loaded model, for one request.

    Its arguments are fresh each time: Inseq's own defaults are shared by all callers.
    """

    def __init__(
        self,
        request: AttributionRequest,
        loaded: LoadedModel,
        ledger: Ledger,
        *,
        preparing: Callable[[bool], None],
        choice: EngineChoice,
        tick: ProgressCallback,
    ) -> None:
        """`preparing` is called with whether a method is being made ready that takes its time the first time, and
        `tick` within the single pass (see `single_pass.task`).
        """
        self._request = request
        self._preparing = preparing
        self._choice = choice
        self._tick = tick
        self._loaded = loaded
        self._model: HuggingfaceModel = loaded.model
        self._ledger = ledger
        self._so_far: _SoFar | None = None

    def attribute(self, method: Method, text: Text, contrast: dict[str, Arguments], step_done: StepDone) -> Attributed:
        """The attribution of one text and its step scores, and the identity of each step where the method has one.

        `step_done` is called with the number of steps done. Raises whatever Inseq and the model raise.
        """
        names = self._request.step_scores
        try:
            if names and self._scores_apart(method, contrast):
                output, identity = self._run(method, text, contrast | {"step_scores_args": {}}, [], step_done)
                apart = contrast | {"attributed_fn_args": {}}
                scores, _ = self._run(inseq_catalogue.methods()["dummy"], text, apart, names, step_done, told=False)
                positions_and_padding.merge_step_scores(output, scores)
                return output, identity
            return self._run(method, text, contrast, names, step_done)
        except (AssertionError, ValueError, TypeError, IndexError) as error:
            if not self._request.attribution_args:
                raise
            reason = str(error).strip() or "no further explanation"
            raise InputRejected(
                f"{method.name} fails with these attribution_args: {type(error).__name__}: {reason}"
            ) from error

    def _scores_apart(self, method: Method, contrast: dict[str, Arguments]) -> bool:
        """Whether the step scores need a run of their own."""
        if method.is_final_step:
            return self._ledger.apply(positions_and_padding.FINAL_STEP_SCORES)
        attributed, scored = (
            {name: contrast[each].get(name) for name in ("contrast_targets", "contrast_targets_alignments")}
            for each in ("attributed_fn_args", "step_scores_args")
        )
        both = attributed["contrast_targets"] and scored["contrast_targets"]
        return bool(both) and attributed != scored and self._ledger.apply(positions_and_padding.TWO_CONTRASTS)

    def _run(
        self,
        method: Method,
        text: Text,
        contrast: dict[str, Arguments],
        scored: list[str],
        step_done: StepDone,
        *,
        told: bool = True,
    ) -> Attributed:
        request, model = self._request, self._model
        with ExitStack() as stack:
            float32 = embeddings.needs_float32_inputs(method.name, model.model.dtype, self._ledger)
            if float32:
                stack.enter_context(embeddings.cast_to_half(model))
            self._keep_pads(text, stack)
            stack.enter_context(labelled_once(model))
            if method.name in _PREPARE:
                self._preparing(True)
            loaded_method = load_method(method, request, self._loaded, text, self._ledger, float32=float32)
            if method.name in _PREPARE:
                self._preparing(False)
            target, tail = self._target(text)
            batch = self._batch(text.source, target, float32=float32)
            functions = self._functions(method, scored, contrast)
            arguments = {
                "attr_pos_start": text.first,
                "attr_pos_end": text.end,
                "output_step_attributions": request.output_step_attributions,
                "attribute_target": request.attribute_target and bool(model.is_encoder_decoder),
                "skip_special_tokens": request.skip_special_tokens,
                "clean_special_chars": request.clean_special_chars,
                "attribution_args": {}
                if method.name == "dummy"
                else checks.typed(request.attribution_args, method.call_parameters),
                **functions,
            }
            names = dict(zip(functions["step_scores"], scored, strict=True))

            def steps_told() -> _Steps:
                steps = _Steps(step_done)
                if told and not method.is_final_step:
                    self._so_far = _SoFar(text, steps, names, model.pad_token, method.name)
                return steps

            output = None
            if self._choice.takes_single_pass(method):
                try:
                    output, identity = self._single_pass(method, loaded_method, batch, arguments, steps_told())
                except UnsupportedByModel as error:
                    self._choice.give_up(method, error.detail)
            if output is None:
                scores = self._scores_at_once(method, loaded_method, text, target, contrast, arguments)
                output, identity = self._inseq(method, loaded_method, text, batch, arguments, scores, steps_told())
            if tail:
                positions_and_padding.restore_tail(output, tail)
            positions_and_padding.name_tokens(output)
        _rename_step_scores(output, names)
        return output, identity

    def partial(self) -> FeatureAttributionOutput | None:
        """The scores of the steps that are done, as `attr_pos_end` there would have given them; from any thread.

        None before the first one, and for methods that see the sequence once.
        """
        so_far, model = self._so_far, self._model
        steps = [copy.copy(each) for each in so_far.steps] if so_far else []
        if so_far is None or not steps:
            return None
        text, end = so_far.text, so_far.text.first + len(steps)
        target = labels(text.target.input_tokens[0], text.target.input_ids[0].tolist())
        for position, step in enumerate(steps, text.first):
            told = step.target[0][0]
            if told.token != target[position].token:  # a contrast beside its own
                target[position] = told
        if self._request.clean_special_chars:
            target = model.clean_tokens(target, as_targets=True)
            for step in steps:
                step.source = None if step.source is None else model.clean_tokens(step.source)
                step.prefix = model.clean_tokens(step.prefix, as_targets=True)
                step.target = model.clean_tokens(step.target, as_targets=True)
        tail = target[end:] if model.is_encoder_decoder else []
        sequences = FeatureAttributionSequenceOutput.from_step_attributions(
            steps, [target[:end] if tail else target], pad_token=so_far.pad_token, attr_pos_end=end
        )
        output = FeatureAttributionOutput(
            sequences,
            steps if self._request.output_step_attributions else None,
            {
                "attribution_method": so_far.method,
                "attr_pos_start": text.first,
                "attr_pos_end": end,
                "output_step_attributions": self._request.output_step_attributions,
                "attribute_target": self._request.attribute_target and bool(model.is_encoder_decoder),
                **model.info,
            },
        )
        positions_and_padding.restore_tail(output, tail)
        positions_and_padding.name_tokens(output)
        _rename_step_scores(output, so_far.step_score_names)
        return output

    def _inseq(
        self,
        method: Method,
        loaded_method: FeatureAttribution,
        text: Text,
        batch: Batch,
        arguments: Arguments,
        scores: list[step_scores.Scores] | None,
        steps: _Steps,
    ) -> Attributed:
        """Inseq's own loop; `scores` are the step scores, where they are known before it."""
        model, identity = self._model, list[completeness.Step]()
        if completeness.has_identity(self._request, method):
            identity = completeness.watch(loaded_method, model, self._ledger)
        # A layer that was named may be the head.
        lean = nullcontext() if self._request.attribution_args.get("target_layer") else lean_forwards(model)
        with ExitStack() as stack:
            stack.enter_context(_steps_reported(model, steps, StepLabels(batch)))
            stack.enter_context(lean)
            if method.name == "attention":
                target = arguments["attribute_target"]
                places = self._loaded.attention
                stack.enter_context(
                    keep_attributed_rows(loaded_method, model, places, text.first, attribute_target=target)
                )
            function = model.get_attributed_fn(arguments.pop("attributed_fn"))
            names, own = arguments["step_scores"], step_scores.has_own_logits(self._request, method)
            if scores is not None:
                step_scores.take_from(loaded_method, scores, text.first)
            elif names and self._request.corrections and (own or not step_scores.is_noisy(names)):
                read_off = step_scores.ReadOff(loaded_method, model, batch)
                function = read_off.watched(function) if own else function
            output = loaded_method.attribute(
                batch, attributed_fn=function, show_progress=False, pretty_progress=False, **arguments
            )
        if method.is_final_step and text.first > 1 and model.is_encoder_decoder:
            positions_and_padding.restore_decoder_scores(output, steps[-1], self._ledger)
        return output, identity

    def _scores_at_once(
        self,
        method: Method,
        loaded_method: FeatureAttribution,
        text: Text,
        target: BatchEncoding,
        contrast: dict[str, Arguments],
        arguments: Arguments,
    ) -> list[step_scores.Scores] | None:
        """The step scores of all steps off one forward, for a method that has no logits of its own and a model whose
        single pass is trusted. None otherwise, and for functions that draw, between other draws, in each step.
        """
        names, dummy = arguments["step_scores"], inseq_catalogue.methods()["dummy"]
        if not names or step_scores.is_noisy(names) or step_scores.has_own_logits(self._request, method):
            return None
        if method.name == "dummy" or not self._choice.takes_single_pass(dummy):
            return None
        functions = self._functions(dummy, [plain_name(name) for name in names], contrast | {"attributed_fn_args": {}})
        batch = self._batch(text.source, target, float32=False)
        assembly = InseqOutputBuilder(
            loaded_method, self._model, batch, arguments | functions | {"attribute_target": False}
        )
        task = assembly.task(lambda _: self._tick(0.0), needs_identity=False)
        try:
            with cached_derivatives(self._loaded.network), step_scores.remembered_forward(self._model):
                reading = task.unperturbed()
        except UnsupportedByModel as error:
            self._choice.give_up(dummy, error.detail)
            return None
        return None if reading is None else reading.step_scores

    def _single_pass(
        self,
        method: Method,
        loaded_method: FeatureAttribution,
        batch: Batch,
        arguments: Arguments,
        steps: _Steps,
    ) -> Attributed:
        """The same from one forward over the whole sequence."""
        identity: list[completeness.Step] = []
        has_identity = completeness.has_identity(self._request, method)

        def measured(columns: Iterator[StepResult]) -> Iterator[StepResult]:
            for column in columns:
                if has_identity:
                    assert column.scores is not None
                    identity.append(completeness.step_of(column.scores, column.at_input, column.at_baseline))
                yield column

        assembly = InseqOutputBuilder(loaded_method, self._model, batch, arguments)
        task = assembly.task(self._tick, needs_identity=has_identity)
        columns = measured(steps_of(loaded_method, task, arguments["attribution_args"]))
        with cached_derivatives(self._loaded.network), step_scores.remembered_forward(self._model):
            return assembly.output(columns, steps.append), identity

    def _functions(self, method: Method, names: list[str], contrast: dict[str, Arguments]) -> dict[str, Any]:
        """The attributed function and the step scores, corrected, and their arguments in Inseq's types."""
        request, functions = self._request, inseq_catalogue.step_functions()
        attributed = corrected_step_function(
            request.attributed_fn or "probability", self._ledger, repeats_rows=checks.repeats_rows(request, method)
        )
        parameters = functions[request.attributed_fn].parameters if request.attributed_fn else {}
        scored = {key: value for name in names for key, value in functions[name].parameters.items()}
        return {
            "attributed_fn": attributed,
            "step_scores": [corrected_step_function(name, self._ledger) for name in names],
            "attributed_fn_args": checks.typed(contrast["attributed_fn_args"], parameters),
            "step_scores_args": checks.typed(contrast["step_scores_args"], scored),
        }

    def _keep_pads(self, text: Text, stack: ExitStack) -> None:
        """Keep the tokens inside a text that Inseq would take for padding, where the model itself does not."""
        if not positions_and_padding.has_pad_inside(self._model, text.source, text.target) or not self._ledger.apply(
            positions_and_padding.PAD_INSIDE
        ):
            return
        decoder = text.target.input_ids if self._model.is_encoder_decoder else None
        source = text.source.input_ids if self._model.is_encoder_decoder else text.target.input_ids
        if not embeddings.computes_the_same(self._model, source, decoder):
            raise InputRejected(
                f"The text contains {self._model.pad_token!r}, this model's padding, and the model itself treats it as "
                "such: it computes something else from its embedding. Take it out of the text."
            )
        stack.enter_context(positions_and_padding.nothing_is_padding(self._model))

    def _target(self, text: Text) -> tuple[BatchEncoding, list[Any]]:
        """The target as Inseq is given it, and the tokens behind it that it is not."""
        length = text.target.input_ids.shape[1]
        if (
            not self._model.is_encoder_decoder
            or text.end == length
            or not self._ledger.apply(positions_and_padding.ATTR_POS_END)
        ):
            return text.target, []
        tail = labels(text.target.input_tokens[0][text.end :], text.target.input_ids[0, text.end :].tolist())
        if self._request.clean_special_chars:
            tail = self._model.clean_tokens(tail, as_targets=True)
        return positions_and_padding.truncate(text.target, text.end), tail

    def _batch(self, source: BatchEncoding, target: BatchEncoding, *, float32: bool) -> Batch:
        def embedded(encoding: BatchEncoding, *, as_targets: bool) -> OneSideBatch:
            vectors = [
                self._model.embed_ids(ids, as_targets=as_targets) for ids in (encoding.input_ids, encoding.baseline_ids)
            ]
            vectors = [each.float() for each in vectors] if float32 else vectors
            return OneSideBatch(encoding, BatchEmbedding(input_embeds=vectors[0], baseline_embeds=vectors[1]))

        if self._model.is_encoder_decoder:
            return EncoderDecoderBatch(embedded(source, as_targets=False), embedded(target, as_targets=True))
        return DecoderOnlyBatch.from_batch(embedded(target, as_targets=False))


@contextmanager
def _steps_reported(model: HuggingfaceModel, steps: _Steps, step_labels: StepLabels) -> Iterator[None]:
    """Have the model's formatter tell of every finished step: Inseq calls it once for each generated token."""
    original = model.formatter

    class ReportingFormatter(original):  # type: ignore[valid-type, misc]
        @classmethod
        def enrich_step_output(cls, model: HuggingfaceModel, output: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
            length = len(batch.target_tokens[0])
            output = step_labels.enriched(original.enrich_step_output, model, output, length, *args, **kwargs)
            steps.append(output)
            return output

    model.formatter = ReportingFormatter
    try:
        yield
    finally:
        del model.formatter


def _rename_step_scores(output: FeatureAttributionOutput, names: dict[str, str]) -> None:
    """Corrected functions ran under names of ours; the result tells the scores by Inseq's names."""
    for each in (*output.sequence_attributions, *(output.step_attributions or [])):
        if each.step_scores:
            each.step_scores = {names.get(name, name): score for name, score in each.step_scores.items()}
