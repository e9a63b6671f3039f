"""Tests whether the gradients of a loaded network are the slopes of its logits, as finite differences measure them."""

from __future__ import annotations

from math import inf
from typing import Any

import torch
from inseq.models import HuggingfaceModel

from attribution.corrections.embeddings import ordinary_ids

# Steps along the gradient, relative to the root mean square of the embeddings. With longer ones a real network bends.
_STEPS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
_ROUNDING = 0.02  # the share of the difference that the dtype's rounding may be
_TOLERANCE = 0.1  # between gradient and difference, relative to the gradient
_TOKENS = 8


def obstacle(model: HuggingfaceModel) -> str | None:
    """Why the gradients of the last logits cannot be trusted; None if they can.

    One backward of eight tokens, and one or two forwards of two such texts. Half precision rounds by more than any of
    these steps changes, so there only a gradient that is missing, zero or not a number is found.
    """
    ids = ordinary_ids(model, _TOKENS)
    with torch.no_grad():
        point = model.embed_ids(ids)
    gradient, largest = _gradient(model, ids, point)
    if gradient is None:
        return "no gradient reaches its inputs"
    slope = float(gradient.norm())
    if not 0 < slope < inf:
        return "the gradient at its inputs is zero or not a number"
    if (step := _shortest_step(model, point, slope, largest)) is None:
        return None
    along = gradient / slope
    measured = _difference(model, ids, point, step * along)
    if abs(measured - slope) > _TOLERANCE * slope:
        # The error of a central difference grows with the square of its step: this is that of a step of zero.
        measured = (4 * measured - _difference(model, ids, point, 2 * step * along)) / 3
    if abs(measured - slope) <= _TOLERANCE * slope:
        return None
    return f"the slope of its logits is {measured:.3g}, and {slope:.3g} by its gradient"


def _gradient(model: HuggingfaceModel, ids: torch.Tensor, point: torch.Tensor) -> tuple[torch.Tensor | None, float]:
    """The gradient of a log-probability at the embeddings `point`, in float64, and the largest logit."""
    with torch.enable_grad():
        at = point.detach().clone().requires_grad_()
        logits = _last_logits(model, at, ids)
        found = None
        if logits.requires_grad:
            (found,) = torch.autograd.grad(_log_probability(logits, ids), at, allow_unused=True)
    return None if found is None else found.double(), float(logits.detach().abs().max())


def _shortest_step(model: HuggingfaceModel, point: torch.Tensor, slope: float, largest: float) -> float | None:
    """The shortest step whose difference is far above the rounding: a unit of the largest logit in each layer."""
    config = model.model.config.get_text_config(decoder=True)
    layers = 1 + int(getattr(config, "num_hidden_layers", None) or 1)
    rounding = layers * torch.finfo(model.model.dtype).eps * largest
    scale = float(point.double().pow(2).mean().sqrt())
    return next((each * scale for each in _STEPS if rounding <= _ROUNDING * slope * each * scale), None)


@torch.no_grad()
def _difference(model: HuggingfaceModel, ids: torch.Tensor, point: torch.Tensor, change: torch.Tensor) -> float:
    """The slope between the points `change` ([1, length, width]) ahead and behind."""
    ends = torch.cat([point + change, point - change]).to(point.dtype)
    ahead, behind = _log_probability(_last_logits(model, ends, ids), ids).tolist()
    return float((ahead - behind) / (ends[0].double() - ends[1].double()).norm())


def _last_logits(model: HuggingfaceModel, embeddings: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Logits behind the last position of each text: [texts, vocabulary]."""
    more: dict[str, Any] = {}
    if model.is_encoder_decoder:
        more["decoder_input_ids"] = ids[:, :3].expand(len(embeddings), -1)
    last: torch.Tensor = model.model(inputs_embeds=embeddings, use_cache=False, **more).logits[:, -1]
    return last.double()


def _log_probability(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Of the first of the tokens, for each text."""
    return logits.log_softmax(-1)[:, int(ids[0, 0])]
