"""Tests whether the gradients of a loaded network are the slopes of its logits, as finite differences measure them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from inseq.models import HuggingfaceModel

from attribution.corrections.embeddings import ordinary_ids

# Steps relative to the root mean square of the embeddings, the smallest first: its curvature is the least.
_STEPS = (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)
_ROUNDING = 0.05  # the share of the slope that rounding may be, for a step to be judged
_CURVATURE = 0.1  # the share of the slope that the third derivative may be at that step
_TOKENS = 8


def obstacle(model: HuggingfaceModel) -> str | None:
    """Why the gradients cannot be trusted; None if they can, or if the dtype's rounding hides the slope.

    One backward and two to four forwards of eight tokens. The step of a central difference is the smallest at which the
    dtype's rounding (a unit of the largest logit for each layer) is at most a twentieth of the slope.
    """
    ids = ordinary_ids(model, _TOKENS)
    more = {"decoder_input_ids": ids[:, :3]} if model.is_encoder_decoder else {}
    with torch.no_grad():
        point = model.embed_ids(ids)
    largest = 0.0

    def function(at: torch.Tensor) -> torch.Tensor:
        nonlocal largest
        logits = model.model(inputs_embeds=at.to(point.dtype), use_cache=False, **more).logits[0, -1].double()
        largest = float(logits.detach().abs().max())
        value: torch.Tensor = logits.log_softmax(-1)[int(ids[0, 0])]
        return value

    with torch.enable_grad():
        at = point.detach().clone().requires_grad_()
        value = function(at)
        if not value.requires_grad:
            return "no gradient reaches its inputs"
        (gradient,) = torch.autograd.grad(value, at, allow_unused=True)
    if gradient is None:
        return "no gradient reaches its inputs"
    gradient = gradient.double()
    if not bool(gradient.isfinite().all()) or not bool(gradient.any()):
        return "the gradient at its inputs is zero or not a number"
    slope, root = float(gradient.norm()), float(point.double().pow(2).mean().sqrt())
    layers = 1 + int(getattr(model.model.config.get_text_config(decoder=True), "num_hidden_layers", 1) or 1)
    rounding = layers * torch.finfo(model.model.dtype).eps * largest
    step = next((each * root for each in _STEPS if rounding <= _ROUNDING * slope * each * root), None)
    if step is None:
        return None
    along = gradient / gradient.norm()
    measured, wider = (_difference(function, point.double(), along, each) for each in (step, 2 * step))
    curvature = min(abs(wider - measured) / 3, _CURVATURE * slope)  # a central difference errs by c h^2
    if abs(measured - slope) <= curvature + rounding / step:
        return None
    return f"the slope of its logits is {measured:.3g}, and {slope:.3g} by its gradient"


@torch.no_grad()
def _difference(
    function: Callable[[torch.Tensor], torch.Tensor], point: torch.Tensor, along: torch.Tensor, step: float
) -> float:
    return float(function(point + step * along) - function(point - step * along)) / (2 * step)
