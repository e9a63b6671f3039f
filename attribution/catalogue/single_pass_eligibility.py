"""Which requests the single pass can compute, by method, function and arguments. Needs no model."""

from __future__ import annotations

from attribution.catalogue.inseq_catalogue import Method, attributed_function
from attribution.catalogue.traits import Reads
from models import AttributionRequest


def obstacle(request: AttributionRequest, method: Method) -> str | None:
    """Return why the single pass cannot compute a request, or None if it can; a model may still not qualify."""
    if not method.traits.has_single_pass:
        return f"{method.name} has no single pass: each of its steps is computed by itself."
    if not request.corrections:
        return "Without corrections the numbers are those of Inseq's own loop."
    function = attributed_function(request)
    # Functions of one row count tokens and have no gradient; occlusion needs only their values.
    allowed = {Reads.LOGITS, Reads.LOGITS_AND_PREFIX} | (set() if method.is_gradient else {Reads.ONE_ROW})
    if method.has_scores and function.traits.reads not in allowed:
        return f"{function.name} depends on more than the logits of one step."
    if request.attributed_fn_args.get("contrast_force_inputs"):
        return "With contrast_force_inputs the attributed function runs the model on other inputs."
    if request.attribution_args.get("return_convergence_delta"):
        return "return_convergence_delta is computed step by step; info.convergence has the same numbers."
    return None
