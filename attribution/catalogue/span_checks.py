"""What a request for spans or choices may ask for besides, and the defaults that it has of its own. Needs no model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from attribution.catalogue import inseq_catalogue, traits
from attribution.catalogue.inseq_catalogue import Method
from attribution.catalogue.traits import DEFAULT_FUNCTION, Reads
from models import AttributionRequest, Engine, ProblemItem


def with_defaults(request: AttributionRequest) -> AttributionRequest:
    """The request with what it means for spans: the logarithm of their probability is attributed, since the probability
    of a long text is too small for a number; and next-token candidates, which are those of a token, are left out.
    """
    if not request.attributes_spans:
        return request
    changes: dict[str, Any] = {"candidates": 0}
    if request.attributed_fn is None and not request.attributed_fn_args:
        changes |= {"attributed_fn": DEFAULT_FUNCTION, "attributed_fn_args": {"logprob": True}}
    return request.model_copy(update=changes)


def span_errors(request: AttributionRequest, method: Method) -> Iterator[ProblemItem]:
    """Yield an error for each thing that does not go together with spans or choices."""
    yield from _trace_errors(request, method)
    if not request.attributes_spans:
        return
    field = "spans" if request.spans is not None else "choices"
    if not request.corrections:
        yield _at("/corrections", f"Inseq has no {field}: leave out corrections.")
    for name in ("attr_pos_start", "attr_pos_end"):
        if getattr(request, name) is not None:
            yield _at(f"/{name}", f"{field} say what is attributed: leave out {name}.")
    if request.output_step_attributions:
        yield _at("/output_step_attributions", f"{field} are attributed as wholes, without steps.")
    if method.has_scores and method.ignores_attributed_fn:
        able = [each.name for each in inseq_catalogue.methods().values() if not each.ignores_attributed_fn]
        yield _at(
            "/method",
            f"{method.name} attributes no function of the output, so that {field} have no score. Use one of "
            f"{', '.join(able)}; or leave out {field}, and read the result with an aggregator.",
        )
        return
    function = inseq_catalogue.step_functions().get(request.attributed_fn or DEFAULT_FUNCTION)
    if function is not None and function.traits.reads is not Reads.LOGITS:
        able = [name for name, each in traits.STEP_FUNCTIONS.items() if each.reads is Reads.LOGITS]
        yield _at(
            "/attributed_fn",
            f"{function.name} is not a function of a token's logits, which could be added up over a span. Use one of "
            f"{', '.join(able)}; a span may have a contrast.",
        )
    if request.attribution_args.get("return_convergence_delta"):
        yield _at(
            "/attribution_args/return_convergence_delta",
            "info.convergence has the same numbers: leave out return_convergence_delta.",
        )
    yield from _same_texts(request)
    if _has_contrast(request) and method.traits.is_random:
        yield _at(
            "/method",
            f"{method.name} draws anew for each text, so that the scores of two cannot be subtracted. Use a method "
            "without random draws.",
        )


def _trace_errors(request: AttributionRequest, method: Method) -> Iterator[ProblemItem]:
    trace = request.trace
    if trace is None:
        return
    names = [each.name for each in request.spans or ()]
    for pointer, name in (("/trace/from", trace.from_), ("/trace/through", trace.through)):
        if name is not None and name not in names:
            yield _at(pointer, f"There is no span {name!r}: name one of `spans`, each with a selection of its own.")
    if not method.has_scores:
        yield _at("/trace", f"{method.name} has no scores to trace.")
    if trace.mode == "span":
        yield from _trace_by_span_errors(request, method)


def _trace_by_span_errors(request: AttributionRequest, method: Method) -> Iterator[ProblemItem]:
    if any(each.contrast is not None for each in request.spans or ()):
        yield _at("/spans", "A trace leads from a span, and not from its margin: leave out contrast.")
    if not method.traits.has_single_pass or method.traits.is_random:
        yield _at("/method", f"{method.name} has no single pass that a trace by spans could use: input_x_gradient has.")
    if request.engine == Engine.INSEQ:
        yield _at("/engine", "A trace by spans needs the single pass: use auto, or an exact trace.")
    if request.step_scores:
        yield _at("/step_scores", "The hops of a trace have no step scores: leave them out.")
    if request.attribution_args.get("n_steps") == "auto":
        yield _at("/n_steps", "A trace by spans needs a number of steps.")


def _same_texts(request: AttributionRequest) -> Iterator[ProblemItem]:
    """Yield an error for each text that is compared with itself."""
    for index, span in enumerate(request.spans or ()):
        if span.contrast is not None and span.contrast == span.text:
            yield _at(f"/spans/{index}/contrast", "This is the span itself. Give another text.")
    choices = request.choices or []
    for index, words in enumerate(choices):
        if words in choices[:index]:
            yield _at(f"/choices/{index}", f"This is choice {choices.index(words)} again. Leave it out.")


def _has_contrast(request: AttributionRequest) -> bool:
    return any(each.contrast is not None for each in request.spans or ()) or len(request.choices or ()) > 1


def _at(pointer: str, detail: str) -> ProblemItem:
    return ProblemItem(pointer=pointer, detail=detail)
