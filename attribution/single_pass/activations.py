"""Activations for a forward that is differentiated many times: fused kernels, with the derivative computed once.

The backward pass of every step uses the same forward, so an activation's derivative is the same number each time; torch
would compute it again. Some families also write an activation as eight operations where torch has one kernel.
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
# Elementwise activations, each with the torch function that replaces its forward; None keeps the module's own.
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
def cached_derivatives(network: nn.Module) -> Iterator[None]:
    """Compute the network's activations with `_with_cached_derivative` within the block; the caller holds its lock."""
    modules = [module for module in network.modules() if type(module) in _ELEMENTWISE]
    for module in modules:
        module.forward = partial(_with_cached_derivative, _ELEMENTWISE[type(module)] or module.forward)
    try:
        yield
    finally:
        for module in modules:
            del module.forward


def _with_cached_derivative(function: Callable[[torch.Tensor], torch.Tensor], given: torch.Tensor) -> torch.Tensor:
    """`function(given)`, whose gradient is a derivative that was computed in this forward; any shape."""
    if not (given.requires_grad and torch.is_grad_enabled()):
        return function(given)
    # Keep the derivative in float32 at least: half precision would round it once more than torch's own backward does.
    exact = torch.promote_types(given.dtype, torch.float32)
    leaf = given.detach().to(exact).requires_grad_()
    value = function(leaf)
    (derivative,) = torch.autograd.grad(value.sum(), leaf)
    # Adds a zero-valued term whose gradient is the precomputed derivative. autograd calls an activation's backward
    # formula again in every backward pass; this graph holds one multiplication instead. `given - given.detach()` is
    # exactly zero wherever `given` is finite, so the value does not change.
    return value.detach().to(given.dtype) + (derivative * (given - given.detach())).to(given.dtype)
