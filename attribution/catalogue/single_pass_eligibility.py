"""What goes the single pass: methods, functions and arguments. Needs no model."""

from __future__ import annotations

from attribution.catalogue.inseq_catalogue import Method
from attribution.single_pass.logit_functions import ROWWISE, SINGLE, STEPWISE
from models import AttributionRequest

METHODS = frozenset(
    {"saliency", "input_x_gradient", "integrated_gradients", "gradient_shap", "deeplift", "occlusion", "dummy"}
)
_PERTURBING = frozenset({"occlusion"})


def obstacle(request: AttributionRequest, method: Method) -> str | None:
    """Why a request cannot go the single pass, as far as that needs no model; None where it can."""
    if method.name not in METHODS:
        return f"{method.name} does not have one: each of its steps is computed by itself."
    if not request.corrections:
        return "Without corrections the numbers are those of Inseq's own loop."
    name = request.attributed_fn or "probability"
    if method.name != "dummy" and name not in ROWWISE | STEPWISE | (SINGLE if method.name in _PERTURBING else set()):
        return f"{name} depends on more than the logits of one step."
    if request.attributed_fn_args.get("contrast_force_inputs"):
        return "With contrast_force_inputs the attributed function runs the model on other inputs."
    if request.attribution_args.get("return_convergence_delta"):
        return "return_convergence_delta is computed step by step; info.convergence has the same numbers."
    return None
