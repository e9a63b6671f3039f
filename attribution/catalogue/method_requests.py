"""The request of each method of a comparison, as it runs."""

from __future__ import annotations

from attribution.catalogue.masked_methods import with_function
from models import AttributionRequest


def requests_of_methods(request: AttributionRequest) -> list[AttributionRequest]:
    """The request of each method; the first one computes the candidates, which are those of all on the same target."""
    first, *others = (with_function(request.of_method(name)) for name in request.method_names)
    return [first, *(each.model_copy(update={"candidates": 0}) for each in others)]
