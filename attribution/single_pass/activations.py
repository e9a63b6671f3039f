"""Activations for a forward that is differentiated many times: fused, and with their derivative worked out once.

Every step's backward goes through the same forward, so an activation's derivative is the same number each time; torch
would compute it anew. Some families also spell their activation out in eight operations where torch has one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from torch.nn import functional
from transformers import activations
from transformers.models.bloom.modeling_bloom import BloomGelu

_tanh_gelu = partial(functional.gelu, approximate="tanh")
# Of one element each; None: as the module itself has it.
_ELEMENTWISE: dict[type[nn.Module], Callable[[torch.Tensor], torch.Tensor] | None] = {
    activations.NewGELUActivation: _tanh_gelu,
    activations.FastGELUActivation: _tanh_gelu,
    BloomGelu: _tanh_gelu,
    activations.GELUTanh: None,
    activations.GELUActivation: None,
    activations.QuickGELUActivation: None,
    activations.SiLUActivation: None,
    activations.ReLUSquaredActivation: None,
    nn.GELU: None,
    nn.SiLU: None,
    nn.ReLU: None,
    nn.Tanh: None,
}


@contextmanager
def prepared(network: nn.Module) -> Iterator[None]:
    """Within the block, the network's activations are made for many backward passes; the caller holds its lock."""
    modules = [module for module in network.modules() if type(module) in _ELEMENTWISE]
    for module in modules:
        module.forward = partial(_once, _ELEMENTWISE[type(module)] or module.forward)
    try:
        yield
    finally:
        for module in modules:
            del module.forward


def _once(function: Callable[[torch.Tensor], torch.Tensor], given: torch.Tensor) -> torch.Tensor:
    if not (given.requires_grad and torch.is_grad_enabled()):
        return function(given)
    # A derivative that is kept in half precision would be rounded once more than torch's own backward does it.
    exact = torch.promote_types(given.dtype, torch.float32)
    leaf = given.detach().to(exact).requires_grad_()
    value = function(leaf)
    (derivative,) = torch.autograd.grad(value.sum(), leaf)
    # The value as it is: what is added to it is zero, and has the derivative.
    return value.detach().to(given.dtype) + (derivative * (given - given.detach())).to(given.dtype)
