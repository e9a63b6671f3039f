"""Which requests run by masking parts of the input (`attribution.masking`), and what such a request cannot ask.

They are the methods of this service, and those of Inseq that take the request's segments as their features.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from attribution.catalogue.inseq_catalogue import Method, attributed_function
from attribution.catalogue.traits import BATCH_SIZES, DEFAULT_FUNCTION, MethodTraits, Reads, of_method
from models import Arguments, AttributionRequest, Engine, ProblemItem
from perturbation import METHODS, OF_SEGMENTS, PerturbationMethod

# Arguments that say how Inseq masks single tokens, and how many rows it runs.
_OF_TOKENS = ("sliding_window_shapes", "strides", "mask_token", *BATCH_SIZES)


def is_masked(request: AttributionRequest) -> bool:
    """Whether the request, of one method, runs by masking."""
    return _masks(of_method(request.attribution_method), request)


def masks_any(request: AttributionRequest) -> bool:
    """Whether a method of the request, or of the comparison, runs by masking."""
    return any(_masks(of_method(name), request) for name in request.method_names)


def implementation(name: str) -> PerturbationMethod:
    """What a method that runs by masking does."""
    return METHODS.get(name) or OF_SEGMENTS[name]


def arguments_of(request: AttributionRequest) -> Arguments:
    """The arguments of the method's implementation: those that say how Inseq masks tokens are left out."""
    return {name: value for name, value in request.attribution_args.items() if name not in _OF_TOKENS}


def with_function(request: AttributionRequest) -> AttributionRequest:
    """The request of one method with the function that it attributes: by default the logarithm of the probability for
    the methods of this service.
    """
    if request.attributed_fn is not None or not of_method(request.attribution_method).masks_features:
        return request
    arguments: dict[str, Any] = {"logprob": True, **request.attributed_fn_args}
    return request.model_copy(update={"attributed_fn": DEFAULT_FUNCTION, "attributed_fn_args": arguments})


def refusals(request: AttributionRequest, method: Method, arguments: Arguments) -> Iterator[ProblemItem]:
    """Yield an error for what does not go together with masking. `arguments` are the method's."""
    if is_masked(request):
        what = method.name if method.traits.masks_features else f"{method.name} over segments"
        yield from _of_engine(request, what)
        yield from _of_function(request, what)
        yield from _of_features(request, method, arguments)
    elif request.engine == Engine.MASKING:
        yield _at("/engine", f"{method.name} is not computed by masking parts of the input: use auto.")


def _of_engine(request: AttributionRequest, what: str) -> Iterator[ProblemItem]:
    if request.engine not in {Engine.AUTO, Engine.MASKING}:
        yield _at("/engine", f"{what} is computed by masking parts of the input: use auto.")
    if not request.corrections:
        yield _at("/corrections", f"Without corrections the numbers are Inseq's own, and Inseq has no {what}.")


def _of_function(request: AttributionRequest, what: str) -> Iterator[ProblemItem]:
    function = attributed_function(request)
    if function.traits.reads is Reads.OWN_FORWARDS:
        yield _at(
            "/attributed_fn",
            f"{function.name} runs the model itself, and {what} needs a function of the logits, such as probability, "
            "logit or contrast_logits_diff.",
        )
    elif request.attributed_fn_args.get("contrast_force_inputs"):
        yield _at(
            "/attributed_fn_args/contrast_force_inputs",
            "The function would run the model on the contrast's own texts, in which nothing is masked: leave it out.",
        )


def _of_features(request: AttributionRequest, method: Method, arguments: Arguments) -> Iterator[ProblemItem]:
    if request.attribute_target and method.traits.can_attribute_target:
        yield _at("/attribute_target", f"{method.name} over segments masks parts of the source alone.")
    if isinstance(request.segments, list) and all(each.pinned for each in request.segments):
        yield _at("/segments", f"Every segment is pinned, so that {method.name} has nothing to mask.")
    for name in _OF_TOKENS:
        if name in method.parameters and arguments.get(name) is not None:
            yield _at(f"/attribution_args/{name}", f"{name} is for single tokens: leave it out with segments.")


def _masks(traits: MethodTraits, request: AttributionRequest) -> bool:
    return traits.masks_features or (traits.masks_segments and request.segments is not None)


def _at(pointer: str, detail: str) -> ProblemItem:
    return ProblemItem(pointer=pointer, detail=detail)
