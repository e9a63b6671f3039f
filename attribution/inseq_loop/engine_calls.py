"""The ways to run a method that is set up for a text: Inseq's loop, one forward over the whole text, and masking.

Each is called with the setup, the list that receives the finished steps, and a `ProgressCallback`,
and returns an `Attributed`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from inseq.data import FeatureAttributionOutput
from inseq.data.attribution import FeatureAttributionStepOutput
from inseq.models import HuggingfaceModel

from attribution.catalogue import inseq_catalogue, masked_methods
from attribution.corrections import positions_and_padding
from attribution.corrections.step_functions import plain_name
from attribution.inseq_loop import completeness, step_scores
from attribution.inseq_loop.text_setup import MethodOnText, Setup, embedded_batch, functions_and_arguments
from attribution.masking import masked_method
from attribution.model_cache.attention_outputs import keep_attributed_rows
from attribution.model_cache.lean_forwards import lean_forwards
from attribution.single_pass.activations import cached_derivatives
from attribution.single_pass.batch_sizes import rows_of_layer
from attribution.single_pass.inseq_output import InseqOutputBuilder
from attribution.single_pass.kept_states import KeptStates
from attribution.single_pass.logit_functions import summed_function
from attribution.single_pass.method_dispatch import step_results
from attribution.single_pass.span_output import SpanOutputBuilder
from attribution.single_pass.text_task import ProgressCallback, StepResult
from attribution.single_pass.traced_columns import TraceRecord, traced
from attribution.text.step_labels import StepLabels
from models import AttributionRequest

# A text's attribution, and each step's completeness where the method promises it.
Attributed = tuple[FeatureAttributionOutput, list[completeness.Step]]


class FinishedSteps(list[FeatureAttributionStepOutput]):
    """The finished steps of one text, in order; `on_step` is called with each before others see it, and `on_count`
    with their number after it.
    """

    def __init__(
        self, on_step: Callable[[FeatureAttributionStepOutput], None], on_count: Callable[[int], None]
    ) -> None:
        super().__init__()
        self._on_step = on_step
        self._on_count = on_count

    def append(self, step: FeatureAttributionStepOutput) -> None:
        self._on_step(step)
        super().append(step)
        self._on_count(len(self))


MASKING = "masking"  # a key of an output's `info`: what was masked, see `MaskedAttribution.describe`
DESCRIBED = "described_spans"  # a key of an output's `info`, on its way to the record of a run
METHOD_WARNINGS = "method_warnings"  # a key of an output's `info`, on its way from a corrected method to the run
EngineCall = Callable[[Setup, FinishedSteps, ProgressCallback], Attributed]


def by_single_pass(setup: Setup, steps: FinishedSteps, on_progress: ProgressCallback) -> Attributed:
    """All steps from one forward over the whole text.

    Raises `UnsupportedByModel` for a text or model whose steps depend on more than their own prefix, or whose network
    cannot be split.
    """
    identity: list[completeness.Step] = []
    has_identity = inseq_catalogue.has_identity(setup.request, setup.work.method)

    def measured(results: Iterator[StepResult]) -> Iterator[StepResult]:
        for result in results:
            if has_identity:
                assert result.scores is not None
                identity.append(completeness.step_of(result.scores, result.at_input, result.at_baseline))
            yield result

    builder = _output_builder(setup)
    task = builder.task(on_progress, needs_identity=has_identity)
    of_task = partial(step_results, setup.method, arguments=setup.arguments["attribution_args"])
    text, record = setup.work.text, TraceRecord()
    first = 1 if setup.model.is_encoder_decoder else int(text.source.input_ids.shape[1])
    results = of_task(task) if text.trace is None else traced(task, text.trace, first, record, of_task)
    with cached_derivatives(setup.loaded.network), step_scores.remembered_forward(setup.model):
        output = builder.output(measured(results), steps.append)
    if text.trace is not None:
        output.info[DESCRIBED] = {"trace": record.describe(text.trace, first)}
    return output, identity


def _output_builder(setup: Setup) -> InseqOutputBuilder:
    inputs, text = (setup.method, setup.model, setup.batch, setup.arguments), setup.work.text
    return (
        SpanOutputBuilder(text, *inputs, is_signed=setup.work.is_signed) if text.spans else InseqOutputBuilder(*inputs)
    )


def by_masking(setup: Setup, steps: FinishedSteps, on_progress: ProgressCallback) -> Attributed:
    """All steps from forwards in which parts of the input are masked: see `attribution.masking`.

    Raises `UnsupportedByModel` for a network that cannot be split.
    """
    features, request = setup.work.features, setup.request
    assert features is not None
    builder = _output_builder(setup)
    task = builder.task(on_progress, needs_identity=False)
    arguments = masked_methods.arguments_of(request)
    with step_scores.remembered_forward(setup.model):
        found = masked_method.attribute(request.attribution_method, task, features, arguments, request.seed)
        output = builder.output(found.results(), steps.append)
    # Where EOS is the padding, Inseq takes a last EOS away again.
    (sequence,) = output.sequence_attributions
    output.info[MASKING] = found.describe(sequence.attr_pos_end - sequence.attr_pos_start)
    return output, []


def by_kept_states(
    setup: Setup, steps: FinishedSteps, on_progress: ProgressCallback, *, kept: KeptStates
) -> Attributed:
    """The step scores of all steps (of the method `dummy`), from the states that another method's forward kept.

    Raises `UnsupportedByModel` where they are not those of this text.
    """
    builder = InseqOutputBuilder(setup.method, setup.model, setup.batch, setup.arguments)
    task = builder.task(on_progress, needs_identity=False)
    with step_scores.remembered_forward(setup.model):
        head_output = kept.head_output(task)
        results = (task.result(index, None, head_output, None) for index in range(task.count))
        return builder.output(results, steps.append), []


def by_loop(setup: Setup, steps: FinishedSteps, on_progress: ProgressCallback) -> Attributed:
    """Inseq's own loop. Step scores come from the logits of a step's own forward if possible (`ReadOff`), else from one
    more forward at each step.
    """
    return _loop(setup, steps, on_progress, scores=None)


def by_loop_with_shared_scores(setup: Setup, steps: FinishedSteps, on_progress: ProgressCallback) -> Attributed:
    """Inseq's own loop, with all steps' scores from one forward over the whole text (see `can_share_scores`).

    Raises `UnsupportedByModel` as `by_single_pass` does, before the first step.
    """
    return _loop(setup, steps, on_progress, scores=_scores_of_all_steps(setup, on_progress))


def can_share_scores(request: AttributionRequest, work: MethodOnText) -> bool:
    """Whether one forward over the text can compute the step scores of all steps: the loop would need an extra forward
    at each step, and no score draws random numbers (drawn earlier, they would change the draws of the steps).
    """
    names, method = work.step_scores, work.method
    if not names or step_scores.is_noisy(names) or step_scores.has_own_logits(request, method):
        return False
    return method.has_scores


def _loop(
    setup: Setup, steps: FinishedSteps, on_progress: ProgressCallback, *, scores: list[step_scores.Scores] | None
) -> Attributed:
    """Inseq's own loop; `scores` are the step scores of each step, where they are known before it."""
    request, model, method, text = setup.request, setup.model, setup.work.method, setup.work.text
    arguments, identity = dict(setup.arguments), list[completeness.Step]()
    if inseq_catalogue.has_identity(request, method):
        identity = completeness.watch(setup.method, model, setup.ledger)
    # The layer that the request names may be the head. Without corrections, the loop is Inseq's own.
    is_lean = setup.loaded.is_lean and request.corrections and not request.attribution_args.get("target_layer")
    is_lean = is_lean and setup.work.summed is None  # a sum reads several positions
    with ExitStack() as stack:
        stack.enter_context(_steps_reported(model, steps, StepLabels(setup.batch)))
        if is_lean:
            stack.enter_context(lean_forwards(model))
        if method.traits.reads_attention and request.corrections:
            target = arguments["attribute_target"]
            places = setup.loaded.attention
            stack.enter_context(keep_attributed_rows(setup.method, model, places, text.first, attribute_target=target))
        if method.traits.zeroes_positions and request.corrections:
            layers = setup.method.method
            layers.rows_at_once, layers.on_progress = partial(rows_of_layer, model.model), on_progress
        function = model.get_attributed_fn(arguments.pop("attributed_fn"))
        if setup.work.summed is not None:
            function = summed_function(function, setup.work.summed, text.target.input_ids[0])
        names, own = arguments["step_scores"], step_scores.has_own_logits(request, method)
        if scores is not None:
            step_scores.take_from(setup.method, scores, text.first)
        elif names and request.corrections and (own or not step_scores.is_noisy(names)):
            read_off = step_scores.ReadOff(setup.method, model, setup.batch)
            function = read_off.watched(function) if own else function
        output = setup.method.attribute(
            setup.batch, attributed_fn=function, show_progress=False, pretty_progress=False, **arguments
        )
    # What a corrected method leaves out; the run takes it into the result's warnings.
    output.info[METHOD_WARNINGS] = getattr(setup.method.method, "warnings", []) if method.has_scores else []
    if method.is_final_step and text.first > 1 and model.is_encoder_decoder:
        positions_and_padding.restore_decoder_scores(output, steps[-1], setup.ledger)
    return output, identity


def _scores_of_all_steps(setup: Setup, on_progress: ProgressCallback) -> list[step_scores.Scores] | None:
    """The step scores of each step, off one forward of the method `dummy` over the whole text."""
    request, model, work, dummy = setup.request, setup.model, setup.work, inseq_catalogue.step_scores_only()
    names, contrast = [plain_name(name) for name in setup.arguments["step_scores"]], work.contrast
    functions = functions_and_arguments(request, dummy, names, contrast | {"attributed_fn_args": {}}, setup.ledger)
    batch = embedded_batch(model, work.text.source, setup.target)
    builder = InseqOutputBuilder(setup.method, model, batch, setup.arguments | functions | {"attribute_target": False})
    task = builder.task(lambda *_: on_progress(0.0), needs_identity=False)
    with cached_derivatives(setup.loaded.network), step_scores.remembered_forward(model):
        reading = task.unperturbed()
    return None if reading is None else reading.step_scores


@contextmanager
def _steps_reported(model: HuggingfaceModel, steps: FinishedSteps, step_labels: StepLabels) -> Iterator[None]:
    """Within the block, every step that Inseq finishes is labelled by `step_labels` and appended to `steps`.

    Inseq's loop has no callback, but calls `enrich_step_output` of the class in `model.formatter` once for each step.
    We want each step as soon as it is done, with labels made in linear time, so a subclass of the formatter takes its
    place. This is safe because the attribute of the instance hides the one of the class, is deleted again in `finally`,
    and the caller holds the model's lock.
    """
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
