"""Finds mixtures of experts that have the activations which DeepLIFT compares."""

from __future__ import annotations

import torch
from captum.attr._core import deep_lift

_ENOUGH = 2


def has_rescaled_experts(network: torch.nn.Module) -> bool:
    """Whether modules that are chosen for each token hold activations that DeepLIFT has a rule for.

    These are two or more members of a container within a block. Captum pairs the rows of an activation by number, and
    an expert gets other tokens of the input than of the baseline.
    """
    stacks = [each for each in network.modules() if isinstance(each, torch.nn.ModuleList)]
    blocks = {id(block) for stack in stacks for block in stack}
    for name, container in network.named_modules():
        if isinstance(container, torch.nn.ModuleList | torch.nn.ModuleDict) and _is_inside(network, name, blocks):
            holding = [child for child in container.children() if any(map(_is_rescaled, child.modules()))]
            if len(holding) >= _ENOUGH:
                return True
    return False


def _is_inside(network: torch.nn.Module, name: str, blocks: set[int]) -> bool:
    parts = name.split(".")
    parents = (".".join(parts[:count]) for count in range(1, len(parts)))
    return any(id(network.get_submodule(each)) in blocks for each in parents)


def _is_rescaled(module: torch.nn.Module) -> bool:
    return type(module) in deep_lift.SUPPORTED_NON_LINEAR
