"""A request that ran out of memory, made smaller: fewer rows in one forward, where the method can divide them."""

from __future__ import annotations

from attribution.catalogue import inseq_catalogue, refinement
from attribution.catalogue.traits import BATCH_SIZES
from models import AttributionRequest

DIVISOR = 4  # the second attempt has a quarter of the rows


def with_fewer_rows(request: AttributionRequest) -> AttributionRequest:
    """The same request with a quarter of the rows in a forward, for each method that can divide them."""
    if request.methods is not None:
        smaller = {name: with_fewer_rows(request.of_method(name)).attribution_args for name in request.methods}
        return request.model_copy(update={"attribution_args": smaller})
    method, arguments = inseq_catalogue.methods()[request.attribution_method], dict(request.attribution_args)
    for name in BATCH_SIZES:
        if name in method.parameters:
            # Without a bound, Captum puts all n_steps (50 by default) into one forward.
            asked = None if refinement.is_asked(arguments) else arguments.get("n_steps")
            rows = arguments.get(name) or asked or method.parameters[name].default or 50
            arguments[name] = max(1, int(rows) // DIVISOR)
    return request.model_copy(update={"attribution_args": arguments})


def describe_rows(request: AttributionRequest) -> str:
    """The bounds on rows that a request gives, for a message: "internal_batch_size 10"; empty for none."""
    each = [request.of_method(name).attribution_args for name in request.method_names]
    given = dict.fromkeys(f"{name} {one[name]}" for one in each for name in BATCH_SIZES if name in one)
    return " and ".join(given)
