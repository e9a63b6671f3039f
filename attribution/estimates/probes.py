"""Probes of a model: which ones a job runs before it trusts the single pass, as what requests, and what they cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from attribution.catalogue import inseq_catalogue
from attribution.catalogue.inseq_catalogue import Method, attributed_function
from attribution.catalogue.length_changes import LengthChange, length_changes, rescaling_within
from attribution.catalogue.single_pass_eligibility import obstacle
from attribution.catalogue.traits import DEFAULT_FUNCTION, Reads
from attribution.estimates import passes
from attribution.estimates.passes import Passes, Shape
from attribution.estimates.probe_shapes import probe_shapes
from attribution.estimates.rates import ModelRates
from attribution.model_cache.loading import LoadedModel
from models import AttributionRequest, Engine

# A float32 difference from a tenth of the tolerance on is looked at in float64 (see `run.rounding`). No difference
# above the most is called rounding, in a probe or in a text that is checked again.
DOUBTED, MOST_ROUNDING = 1e-5, 5e-4
_ALWAYS_PROBED = 512  # tokens up to which a probe costs little
# A longer probe runs if the texts have this many times its steps: Inseq's loop needs as much time and memory for each.
_WORTH_A_PROBE = 2
_SHORT = 64  # tokens up to which a probe of occlusion moves its window by one token
_WINDOWS = 4  # of a longer probe of occlusion: the loop runs a forward for each, at each step
_SMALL = {"n_steps": 3, "n_samples": 2, "internal_batch_size": 2}
_KEPT = {"method", "multiply_by_inputs", "abs", "stdevs", "target_layer"}
_SLOWER_IN_FLOAT64 = 2  # times; 2.1 on a CPU, for SmolLM2
# How many times the rounding of one gradient is that of scores which are differences of nearly equal numbers, or which
# begin at a baseline of zeros. On SmolLM2 occlusion has 7 times the rounding of saliency, integrated gradients 36.
_MORE_ROUNDING = 10


def verdict_key(request: AttributionRequest, method: Method, shape: Shape) -> tuple[object, ...]:
    """Under which a loaded model's `verdicts` hold what a probe of this shape found."""
    arguments = request.attribution_args if method.is_layer else {}
    layer = tuple(str(arguments.get(name)) for name in ("target_layer", "multiply_by_inputs"))
    return (method.name, shape, request.attribute_target, *layer)


def shapes_for(loaded: LoadedModel, changes: Sequence[LengthChange], texts: Sequence[Shape]) -> list[Shape]:
    """The shapes of the probes for these texts, the longest last."""
    seq2seq = bool(loaded.model.is_encoder_decoder)
    return probe_shapes(changes, texts, limit=loaded.limit, is_encoder_decoder=seq2seq)


def is_worth(shape: Shape, texts: Sequence[Shape]) -> bool:
    """Whether a probe of this shape pays for itself on these texts."""
    return shape.longest <= _ALWAYS_PROBED or sum(each.steps for each in texts) >= _WORTH_A_PROBE * shape.steps


def expected_seconds(
    request: AttributionRequest, loaded: LoadedModel, rates: ModelRates, method: Method, texts: Sequence[Shape]
) -> float:
    """Seconds of the probes of this method that a job of these texts still has to run."""
    precisions = 1 + (_SLOWER_IN_FLOAT64 if _is_doubt_expected(loaded, method) else 0)
    return precisions * rates.seconds(passes_of_missing(request, loaded, method, texts))


def forwards_of(request: AttributionRequest, loaded: LoadedModel, method: Method, shape: Shape) -> int:
    """About how many forward passes a probe of this shape runs."""
    precisions = 1 + _is_doubt_expected(loaded, method)
    return precisions * sum(each.calls for each in _passes_of(request, loaded, method, shape) if each.is_forward)


def passes_of_missing(
    request: AttributionRequest, loaded: LoadedModel, method: Method, texts: Sequence[Shape]
) -> Iterator[Passes]:
    """What both engines run in the probes that these texts need and that have not run yet, once."""
    for shape in _missing(request, loaded, method, texts):
        yield from _passes_of(request, loaded, method, shape)


def _passes_of(request: AttributionRequest, loaded: LoadedModel, method: Method, shape: Shape) -> Iterator[Passes]:
    probed = probe_request(request, method, shape, loaded.model.get_embedding_layer().embedding_dim)
    yield from passes.of_text(probed, shape)
    yield from passes.of_single_pass(probed, shape)


def probe_request(request: AttributionRequest, method: Method, shape: Shape, width: int) -> AttributionRequest:
    """The request with which a probe runs a method on a text of this shape. `width`: dimensions of an embedding."""
    arguments = {name: value for name, value in request.attribution_args.items() if name in _KEPT}
    arguments |= {name: value for name, value in _SMALL.items() if name in method.parameters}
    if "sliding_window_shapes" in method.parameters and shape.longest > _SHORT:
        sides = [shape.source] if shape.source else []
        sides += [shape.first] if request.attribute_target or not sides else []
        windows = tuple((-(-each // _WINDOWS), width) for each in sides)
        strides = tuple(window[0] for window in windows)
        arguments |= (
            {"sliding_window_shapes": windows, "strides": strides}
            if len(sides) > 1
            else {"sliding_window_shapes": windows[0], "strides": strides[0]}
        )
    reads_logits = attributed_function(request).traits.reads is Reads.LOGITS
    function = request.attributed_fn if reads_logits else None
    return request.model_copy(
        update={
            "method": method.name,
            "attribution_args": arguments if method.has_scores else {},
            "attributed_fn": function,
            "attributed_fn_args": request.attributed_fn_args if function else {},
            "step_scores": [DEFAULT_FUNCTION],
            "step_scores_args": {},
            "candidates": 0,
            "output_step_attributions": False,
            "clean_special_chars": False,
        }
    )


def _missing(request: AttributionRequest, loaded: LoadedModel, method: Method, texts: Sequence[Shape]) -> list[Shape]:
    """The shapes of the probes that these texts need and that have not run yet."""
    changes = length_changes(loaded.network.config)
    if request.engine == Engine.INSEQ or obstacle(request, method) or rescaling_within(changes, texts):
        return []
    shapes = shapes_for(loaded, changes, texts)
    known = loaded.verdicts
    return [each for each in shapes if verdict_key(request, method, each) not in known and is_worth(each, texts)]


def _is_doubt_expected(loaded: LoadedModel, method: Method) -> bool:
    """Whether the probe will probably be repeated in float64, by the differences that other methods' probes found."""
    if loaded.network.dtype is not torch.float32:
        return False
    differences: dict[bool, list[float]] = {True: [], False: []}
    for key, verdict in dict(loaded.verdicts).items():
        if verdict.difference is not None:
            differences[_rounds_more(inseq_catalogue.methods()[key[0]])].append(verdict.difference)
    more = _rounds_more(method)
    others = [each * _MORE_ROUNDING if more else each / _MORE_ROUNDING for each in differences[not more]]
    return DOUBTED < max(differences[more] or others, default=0.0) <= MOST_ROUNDING


def _rounds_more(method: Method) -> bool:
    """Whether the scores are differences of nearly equal numbers, or come from points of a path."""
    return isinstance(method.traits.rows, str) or method.traits.perturbed is not None
