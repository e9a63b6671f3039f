"""DeepLIFT's rescale rule in one forward each of baseline and input, and a product for each step.

Captum gives its multipliers to the activations that are modules of their own (a ReLU, not a GELU of a function); all
else is differentiated as it is. A multiplier of a position depends on that position alone, so it is the same for every
step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from captum.attr._core import deep_lift

from attribution.single_pass.gradients import of_the_text
from attribution.single_pass.text_task import Column, Task
from problems import UnsupportedByModel

_ELEMENTWISE = tuple(kind for kind, rule in deep_lift.SUPPORTED_NON_LINEAR.items() if rule is deep_lift.nonlinear)
_EPSILON = 1e-10  # Captum's, below which a difference counts as none


def deeplift(task: Task, *, multiply_by_inputs: bool) -> Iterator[Column]:
    """Shrikumar et al., 2017 (https://arxiv.org/abs/1704.02685)."""
    activations = _activations(task.trunk.network)
    seen: dict[torch.nn.Module, tuple[torch.Tensor, torch.Tensor]] = {}
    with _hooked(activations, _remembering(seen)), torch.no_grad():
        states = task.states(*task.baselines)
    baseline = task.read(states, gradients=False).values[0] if task.needs_identity else None
    for index, gradients, reading in of_the_text(task, around_forward=_hooked(activations, _rescaled(seen))):
        scores = gradients
        if multiply_by_inputs:
            scores = tuple((x - b) * g for x, b, g in zip(task.inputs, task.baselines, gradients, strict=True))
        yield task.column(index, scores, reading, baseline)


@contextmanager
def _hooked(modules: list[torch.nn.Module], hook: Any) -> Iterator[None]:
    with ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_hook(hook).remove)
        yield


def _activations(network: torch.nn.Module) -> list[torch.nn.Module]:
    kinds = {type(module) for module in network.modules()} & set(deep_lift.SUPPORTED_NON_LINEAR)
    if not kinds <= set(_ELEMENTWISE):
        names = ", ".join(sorted(kind.__name__ for kind in kinds - set(_ELEMENTWISE)))
        raise UnsupportedByModel(f"DeepLIFT's rule for {names} couples positions, and so steps.")
    return [module for module in network.modules() if type(module) in kinds]


def _remembering(seen: dict[torch.nn.Module, tuple[torch.Tensor, torch.Tensor]]) -> Any:
    def hook(module: torch.nn.Module, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        if module in seen:
            raise UnsupportedByModel("DeepLIFT cannot follow an activation that is used twice.")
        seen[module] = (arguments[0].detach(), output.detach())

    return hook


def _rescaled(seen: dict[torch.nn.Module, tuple[torch.Tensor, torch.Tensor]]) -> Any:
    def hook(module: torch.nn.Module, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        before, after = seen[module]
        given = arguments[0]
        # In float32 at least: float16 has no number as small as the bound, and would divide nothing by nothing.
        exact = torch.promote_types(given.dtype, torch.float32)
        difference = given.detach().to(exact) - before.to(exact)
        is_small = difference.abs() < _EPSILON
        multiplier = (output.detach().to(exact) - after.to(exact)) / torch.where(is_small, 1.0, difference)
        # The same value, with another gradient.
        rescaled = output.detach() + (multiplier * (given - given.detach())).to(output.dtype)
        return torch.where(is_small, output, rescaled)

    return hook
