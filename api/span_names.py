"""The names of spans in a trace's options: what a job's request calls them."""

from __future__ import annotations

from models import AttributionRequest, ProblemItem, TextSelection, TraceOptions
from problems import InvalidRequest


def with_named_spans(asked: TraceOptions, request: AttributionRequest | None) -> TraceOptions:
    """Return the options with selections in the place of names. Raises `InvalidRequest` for one that is not there."""
    written = {"trace": asked.trace, "through": asked.through}
    named = {name: _named_span(value, request, name) for name, value in written.items() if isinstance(value, str)}
    return asked.model_copy(update=named) if named else asked


def _named_span(name: str, request: AttributionRequest | None, parameter: str) -> TextSelection:
    """The span of the request that has this name."""
    spans: list[TextSelection] = getattr(request, "spans", None) or []
    for span in spans:
        if span.name == name:
            return span
    known = ", ".join(repr(each.name) for each in spans if each.name) or "none"
    detail = (
        f"This job has no span {name!r} (it has: {known}). Give positions, such as 19:20, or words, such as text:milk, "
        "after:</think> or between:<think>,</think>."
    )
    raise InvalidRequest(detail, errors=[ProblemItem(parameter=parameter, detail=detail)])
