"""Tells the rounding of float32 from a difference: in float64 the first all but vanishes, and the second stays."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from attribution.model_cache.device_memory import memory_of

# Two right computations in float64 differ by less, relative to the largest score: they are stored in float32, whose
# rounding is 6e-8.
SAME = 1e-6
# Rounding of a real text may be larger than that of the probe: other tokens, and more of them.
MARGIN = 4.0


def fits_in_float64(network: torch.nn.Module) -> bool:
    """Whether the network's device computes in float64, and has the memory for a copy of the weights in it."""
    device = next(network.parameters()).device
    floats = sum(each.numel() for each in network.parameters() if each.is_floating_point())
    return device.type != "mps" and 2 * 8 * floats <= memory_of(device).free  # half of it for what the run needs


class Float64Throughout(TorchFunctionMode):
    """A context in which, on its own thread, Transformers' casts to float32 become casts to float64.

    Most families compute their softmax, norms or rotary angles in float32 whatever the model's dtype. In a float64
    model these are the only roundings above 1e-15, and they depend on the processor: the vectorised float32 exponential
    of a row and that of a part of the row may differ in the last digit. Only calls from Transformers' modules change,
    so a cast to float32 in our own code, or in Inseq's, is still seen.
    """

    def __torch_function__(
        self, function: Any, types: Any, arguments: Sequence[Any] = (), named: dict[str, Any] | None = None
    ) -> Any:
        named = named or {}
        caller = sys._getframe(1)  # noqa: SLF001 - inspect offers no frame of a caller without its source
        while caller.f_globals["__name__"].partition(".")[0] == "torch" and caller.f_back is not None:
            caller = caller.f_back
        if caller.f_globals["__name__"].startswith("transformers."):
            if function is torch.Tensor.float:
                function = torch.Tensor.double
            arguments = [torch.float64 if each is torch.float32 else each for each in arguments]
            named = {name: torch.float64 if each is torch.float32 else each for name, each in named.items()}
        return function(*arguments, **named)


@contextmanager
def in_float64(network: torch.nn.Module) -> Iterator[None]:
    """Within the block, the network has its weights and buffers in float64; afterwards the very tensors from before."""
    parameters = [(each, each.data) for each in network.parameters()]
    buffers = [(module, *each) for module in network.modules() for each in module.named_buffers(recurse=False)]
    try:
        torch.nn.Module.double(network)
        with Float64Throughout():
            yield
    finally:
        for parameter, data in parameters:
            parameter.data = data
        for module, name, buffer in buffers:
            setattr(module, name, buffer)
