"""Checks of a comparison's request: each method's arguments as if it were alone, and the fields that only one has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from transformers import GenerationConfig, PretrainedConfig

from attribution.catalogue import checks, inseq_catalogue, refinement
from attribution.catalogue.span_checks import with_defaults as with_span_defaults
from attribution.catalogue.traits import SHORTHANDS
from models import AttributionRequest, ProblemItem
from problems import InvalidRequest
from settings import Settings


def resolve(
    request: AttributionRequest,
    settings: Settings,
    *,
    is_encoder_decoder: bool | None,
    config: PretrainedConfig | None = None,
    generation: GenerationConfig | None = None,
) -> AttributionRequest:
    """Return the request with every default filled in; each method is checked as if it were the only one.

    Raises `InvalidRequest` with every error found, each with a JSON pointer into the body.
    """
    request = with_span_defaults(request)
    if request.methods is None:
        return checks.resolve(
            request, settings, is_encoder_decoder=is_encoder_decoder, config=config, generation=generation
        )
    errors = list(_misplaced(request, request.methods))
    resolved: dict[str, Any] = {}
    for index, name in enumerate(request.methods):
        try:
            alone = _alone(request, name)
            one = checks.resolve(
                alone, settings, is_encoder_decoder=is_encoder_decoder, config=config, generation=generation
            )
            resolved[name] = one.attribution_args
        except InvalidRequest as error:
            errors += (_moved(item, name, index) for item in error.errors)
    if errors:
        errors = list(dict.fromkeys(errors))  # an error of every method is listed once
        detail = errors[0].detail if len(errors) == 1 else f"{len(errors)} errors; the first: {errors[0].detail}"
        raise InvalidRequest(detail, errors=errors)
    return request.model_copy(
        update={"attribution_args": resolved} | dict.fromkeys(SHORTHANDS) | checks.of_corrections(request)
    )


def _misplaced(request: AttributionRequest, methods: Sequence[str]) -> Iterator[ProblemItem]:
    for index, name in enumerate(methods):
        if name in methods[:index]:
            yield ProblemItem(pointer=f"/methods/{index}", detail=f"{name!r} is named twice.")
    for name, arguments in request.attribution_args.items():
        if name not in methods or not isinstance(arguments, dict):
            yield ProblemItem(
                pointer=checks.pointer("attribution_args", name),
                detail="In a comparison, attribution_args has an object of arguments under the name of a method: "
                f"{', '.join(methods)}.",
            )
    for name in SHORTHANDS:
        if getattr(request, name) is not None and not any(_has(method, name) for method in methods):
            yield ProblemItem(pointer=f"/{name}", detail=f"None of these methods has {name}.")
    if request.completeness_tolerance is not None and not any(_is_refined(request, method) for method in methods):
        yield refinement.TOLERANCE_ALONE


def _has(method: str, parameter: str) -> bool:
    known = inseq_catalogue.methods().get(method)
    return known is not None and parameter in known.parameters


def _is_refined(request: AttributionRequest, method: str) -> bool:
    given = request.attribution_args.get(method)
    arguments = given if isinstance(given, dict) else {}
    return _has(method, "n_steps") and refinement.is_asked({"n_steps": request.n_steps} | arguments)


def _alone(request: AttributionRequest, name: str) -> AttributionRequest:
    """Return the request of one method: with its own arguments, and only the shorthands that it accepts."""
    given = request.attribution_args.get(name)
    arguments = {name: given if isinstance(given, dict) else {}}
    without = {each: None for each in SHORTHANDS if not _has(name, each)}
    if not _is_refined(request, name):
        without["completeness_tolerance"] = None
    return request.model_copy(update={"attribution_args": arguments, **without}).of_method(name)


def _moved(item: ProblemItem, name: str, index: int) -> ProblemItem:
    """Return an error of one method's request with its pointer into the comparison's body."""
    place = item.pointer or ""
    if place == "/method":
        place = f"/methods/{index}"
    elif place.startswith("/attribution_args"):
        place = checks.pointer("attribution_args", name) + place.removeprefix("/attribution_args")
    return item.model_copy(update={"pointer": place})
