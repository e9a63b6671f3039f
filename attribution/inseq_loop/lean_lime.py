"""LIME with several samples in one forward. Inseq runs each by itself, and draws its mask by way of Python lists."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from inseq.attr.feat import FeatureAttribution
from inseq.models import HuggingfaceModel


def lean_lime(method: FeatureAttribution, model: HuggingfaceModel, rows_at_once: Callable[[int], int]) -> None:
    """Have a loaded `lime` run as many samples at once as `rows_at_once` allows for so many positions, unless a call
    says how many (`perturbations_per_eval`). Samples are drawn in Inseq's order, and forwards draw nothing.
    """
    lime = method.method
    attribute, drawn = lime.attribute, lime.perturb_func

    def in_batches(
        inputs: tuple[torch.Tensor, ...],
        additional_forward_args: tuple[Any, ...],
        perturbations_per_eval: int | None = None,
        **more: Any,
    ) -> torch.Tensor:
        if perturbations_per_eval is None:
            every = (*inputs, *additional_forward_args)
            embeddings = [each for each in every if isinstance(each, torch.Tensor) and each.is_floating_point()]
            perturbations_per_eval = rows_at_once(sum(each.shape[1] for each in embeddings))
        found: torch.Tensor = attribute(
            inputs=inputs,
            additional_forward_args=additional_forward_args,
            perturbations_per_eval=perturbations_per_eval,
            **more,
        )
        return found

    lime.attribute = in_batches
    lime.perturb_func = partial(_perturbed, model, **drawn.keywords)


def _perturbed(
    model: HuggingfaceModel,
    embeddings: tuple[torch.Tensor, ...],
    *,
    mask_prob: float,
    mask_token: str = "unk",  # noqa: S107 - not a password
    **_: Any,
) -> tuple[torch.Tensor, ...]:
    """Embeddings ([1, length, width] each) with some positions set to the mask token's id, as Inseq does it.

    Inseq also means to keep special tokens, but looks for their ids among embeddings, where none is.
    """
    if mask_token not in {"unk", "pad"}:
        raise ValueError(f"Invalid mask token {mask_token} for tokenizer: {model.tokenizer}")
    masked = model.tokenizer.unk_token_id if mask_token == "unk" else model.tokenizer.pad_token_id  # noqa: S105
    perturbed = []
    for each in embeddings:
        kept = torch.multinomial(torch.tensor([mask_prob, 1 - mask_prob]), each.shape[1], replacement=True)
        kept = kept.to(each.device)[:, None]
        perturbed.append(each * kept + (1 - kept) * masked)
    return tuple(perturbed)
