"""Everything that one method needs on one text before it runs: corrections, embeddings, functions, arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from inseq.attr.feat import FeatureAttribution
from inseq.data import Batch as OneSideBatch
from inseq.data import BatchEmbedding, BatchEncoding, DecoderOnlyBatch, EncoderDecoderBatch, FeatureAttributionOutput
from inseq.models import HuggingfaceModel
from inseq.utils.typing import TokenWithId

from attribution.catalogue import checks, inseq_catalogue, next_token
from attribution.catalogue.inseq_catalogue import Method
from attribution.corrections import embeddings, positions_and_padding
from attribution.corrections.registry import Ledger
from attribution.corrections.step_functions import corrected_step_function
from attribution.inseq_loop.method_loading import load_masked, load_method
from attribution.model_cache.loading import LoadedModel
from attribution.single_pass.inseq_output import Batch
from attribution.text.contrast import encoded_as
from attribution.text.encoding import Text
from attribution.text.segments import Features
from attribution.text.step_labels import labelled_once, labels
from models import Arguments, AttributionRequest
from problems import InputRejected


@dataclass(frozen=True)
class MethodOnText:
    """One method on one text, with the step scores to compute beside it."""

    method: Method
    text: Text
    step_scores: list[str]  # see `next_token.scored_names`
    contrast: dict[str, Arguments]  # `attributed_fn_args` and `step_scores_args` of this text
    is_for_scores_only: bool = False  # a second run over the text, whose step scores alone are used
    summed: range | None = None  # target positions whose attributed function is added up, at the one step of the text
    is_signed: bool = False  # scores keep their sign, also where the method returns absolute values
    features: Features | None = None  # what is masked, where the method runs by masking


@dataclass(frozen=True)
class Setup:
    """A method loaded and corrected for one text, and the arguments of Inseq's `FeatureAttribution.attribute`."""

    request: AttributionRequest
    loaded: LoadedModel
    ledger: Ledger
    work: MethodOnText
    method: FeatureAttribution
    target: BatchEncoding  # [1, target_len]; without the tail
    tail: list[TokenWithId]  # tokens behind `attr_pos_end` that Inseq is not given
    batch: Batch  # ids [1, length] and embeddings [1, length, width]; float32 copies where the method needs them
    arguments: dict[str, Any]

    @property
    def model(self) -> HuggingfaceModel:
        return self.loaded.model

    @property
    def step_score_names(self) -> dict[str, str]:
        """Inseq's name of each step score, by the name that its corrected function runs under."""
        return dict(zip(self.arguments["step_scores"], self.work.step_scores, strict=True))


@contextmanager
def set_up(
    request: AttributionRequest,
    loaded: LoadedModel,
    ledger: Ledger,
    work: MethodOnText,
    preparing: Callable[[], AbstractContextManager[None]],
) -> Iterator[Setup]:
    """Within the block, the model has the corrections that the method and the text need.

    `preparing` is entered while a method is loaded whose first load on a model takes long. Raises `InputRejected` for a
    layer, or a padding token in the text, that cannot be attributed.
    """
    model, method, text = loaded.model, work.method, work.text
    with ExitStack() as stack:
        needs_float32 = method.traits.needs_float32_inputs and work.features is None
        float32 = needs_float32 and embeddings.takes_float32_copies(model.model.dtype, ledger)
        if float32:
            stack.enter_context(embeddings.cast_to_half(model))
        _keep_pads(loaded, text, ledger, stack)
        stack.enter_context(labelled_once(model))
        stack.enter_context(encoded_as(model, text.contrasts))
        with ExitStack() as loading:
            if method.traits.prepares_vocabulary:
                loading.enter_context(preparing())
            if work.features is None:
                loaded_method = load_method(
                    method,
                    request,
                    loaded,
                    text,
                    ledger,
                    float32=float32,
                    is_signed=work.is_signed,
                    is_sum=bool(work.summed),
                )
            else:
                loaded_method = load_masked(method, loaded)
        target, tail = _target_and_tail(request, model, text, ledger)
        arguments = {
            "attr_pos_start": text.first,
            "attr_pos_end": text.end,
            "output_step_attributions": request.output_step_attributions,
            "attribute_target": request.attribute_target and bool(model.is_encoder_decoder),
            "skip_special_tokens": request.skip_special_tokens,
            "clean_special_chars": request.clean_special_chars,
            "attribution_args": _attribution_args(request, method, is_signed=work.is_signed),
            **functions_and_arguments(request, method, work.step_scores, work.contrast, ledger),
        }
        batch = embedded_batch(model, text.source, target, float32=float32)
        yield Setup(request, loaded, ledger, work, loaded_method, target, tail, batch, arguments)


def _attribution_args(request: AttributionRequest, method: Method, *, is_signed: bool) -> dict[str, Any]:
    if not method.has_scores:
        return {}
    arguments = checks.typed(request.attribution_args, method.call_parameters)
    return arguments | ({"abs": False} if is_signed and "abs" in method.call_parameters else {})


def functions_and_arguments(
    request: AttributionRequest, method: Method, step_scores: list[str], contrast: dict[str, Arguments], ledger: Ledger
) -> dict[str, Any]:
    """The attributed function and the step scores, corrected, and their arguments in Inseq's types."""
    functions = inseq_catalogue.step_functions()
    function, repeats_rows = inseq_catalogue.attributed_function(request), checks.repeats_rows(request, method)
    given = contrast["attributed_fn_args"]
    attributed = corrected_step_function(function.name, ledger, given, repeats_rows=repeats_rows)
    parameters = function.parameters if request.attributed_fn else {}
    own = [functions[name] for name in step_scores if name not in next_token.OWN]
    scored = {key: value for each in own for key, value in each.parameters.items()}
    return {
        "attributed_fn": attributed,
        "step_scores": [corrected_step_function(name, ledger, contrast["step_scores_args"]) for name in step_scores],
        "attributed_fn_args": checks.typed(given, parameters),
        "step_scores_args": checks.typed(contrast["step_scores_args"], scored),
    }


def embedded_batch(
    model: HuggingfaceModel, source: BatchEncoding, target: BatchEncoding, *, float32: bool = False
) -> Batch:
    """Source and target ([1, length]) as Inseq's batch, with embeddings of ids and baseline ([1, length, width])."""

    def embedded(encoding: BatchEncoding, *, as_targets: bool) -> OneSideBatch:
        vectors = [model.embed_ids(ids, as_targets=as_targets) for ids in (encoding.input_ids, encoding.baseline_ids)]
        vectors = [each.float() for each in vectors] if float32 else vectors
        return OneSideBatch(encoding, BatchEmbedding(input_embeds=vectors[0], baseline_embeds=vectors[1]))

    if model.is_encoder_decoder:
        return EncoderDecoderBatch(embedded(source, as_targets=False), embedded(target, as_targets=True))
    return DecoderOnlyBatch.from_batch(embedded(target, as_targets=False))


def rename_step_scores(output: FeatureAttributionOutput, names: dict[str, str]) -> None:
    """Give step scores Inseq's names again (see `Setup.step_score_names`)."""
    for each in (*output.sequence_attributions, *(output.step_attributions or [])):
        if each.step_scores:
            each.step_scores = {names.get(name, name): score for name, score in each.step_scores.items()}


def _keep_pads(loaded: LoadedModel, text: Text, ledger: Ledger, stack: ExitStack) -> None:
    """Keep the tokens inside a text that Inseq would take for padding, where the model itself does not.

    Raises `InputRejected` where the model does, also for one at the beginning.
    """
    model = loaded.model
    is_inside = positions_and_padding.has_pad_inside(model, text.source, text.target)
    if is_inside and not ledger.apply(positions_and_padding.PAD_INSIDE):
        return
    if not is_inside and not (ledger.enabled and positions_and_padding.begins_with_pad(model, text.target)):
        return
    if not loaded.reads_pads(text.source if model.is_encoder_decoder else None, text.target):
        raise InputRejected(
            f"The text contains {model.pad_token!r}, this model's padding, and the model itself treats it as "
            "such: it computes something else from its embedding. Take it out of the text."
        )
    if is_inside:
        stack.enter_context(positions_and_padding.nothing_is_padding(model))


def _target_and_tail(
    request: AttributionRequest, model: HuggingfaceModel, text: Text, ledger: Ledger
) -> tuple[BatchEncoding, list[TokenWithId]]:
    """The target as Inseq is given it ([1, target_len]), and the tokens behind it that Inseq is not given."""
    length = text.target.input_ids.shape[1]
    if not model.is_encoder_decoder or text.end == length or not ledger.apply(positions_and_padding.ATTR_POS_END):
        return text.target, []
    tail = labels(text.target.input_tokens[0][text.end :], text.target.input_ids[0, text.end :].tolist())
    if request.clean_special_chars:
        tail = model.clean_tokens(tail, as_targets=True)
    return positions_and_padding.truncate(text.target, text.end), tail
