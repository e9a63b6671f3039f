"""DeepLIFT's rescale rule: one forward of the baseline, one of the input, one vector-Jacobian product for each step.

Captum applies its multipliers only to activations that are modules (`nn.ReLU`, not a call of `functional.gelu`); all
other operations keep their gradient. A multiplier depends on its own position alone, so it is the same for every step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from captum.attr._core import deep_lift

from attribution.single_pass.gradients import step_gradients
from attribution.single_pass.text_task import StepResult, Task
from problems import UnsupportedByModel

_ELEMENTWISE = tuple(kind for kind, rule in deep_lift.SUPPORTED_NON_LINEAR.items() if rule is deep_lift.nonlinear)
_EPSILON = 1e-10  # Captum's: a smaller difference of inputs counts as zero


def deeplift(task: Task, embedded: Task, *, multiply_by_inputs: bool) -> Iterator[StepResult]:
    """DeepLIFT (Shrikumar et al., 2017, https://arxiv.org/abs/1704.02685), as `captum.attr.DeepLift` computes it.

    `embedded` is the task on embeddings: where scores are those of a layer, the baseline still runs through the whole
    network. Raises `UnsupportedByModel` for a network with a softmax or pooling module, or an activation that is
    called twice.
    """
    activations = _activations(task.split_model.network)
    seen: dict[torch.nn.Module, tuple[torch.Tensor, torch.Tensor]] = {}
    with _hooked(activations, _recording(seen)), torch.no_grad():
        states = embedded.states(*embedded.baselines)
    baseline = task.apply_head(states, gradients=False).values[0] if task.needs_identity else None
    for index, gradients, head_output in step_gradients(task, around_forward=_hooked(activations, _rescaled(seen))):
        scores = gradients
        if multiply_by_inputs:
            scores = tuple((x - b) * g for x, b, g in zip(task.inputs, task.baselines, gradients, strict=True))
        yield task.result(index, scores, head_output, baseline)


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
        raise UnsupportedByModel(f"DeepLIFT's rule for {names} mixes positions, so the steps cannot share a forward.")
    return [module for module in network.modules() if type(module) in kinds]


def _recording(seen: dict[torch.nn.Module, tuple[torch.Tensor, torch.Tensor]]) -> Any:
    def hook(module: torch.nn.Module, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        if module in seen:
            raise UnsupportedByModel("DeepLIFT cannot handle an activation module that is called twice in one forward.")
        seen[module] = (arguments[0].detach(), output.detach())

    return hook


def _rescaled(seen: dict[torch.nn.Module, tuple[torch.Tensor, torch.Tensor]]) -> Any:
    def hook(module: torch.nn.Module, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        before, after = seen[module]
        given = arguments[0]
        # In float32 at least: float16 cannot represent a number as small as the bound, and would compute 0 / 0.
        exact = torch.promote_types(given.dtype, torch.float32)
        difference = given.detach().to(exact) - before.to(exact)
        is_small = difference.abs() < _EPSILON
        multiplier = (output.detach().to(exact) - after.to(exact)) / torch.where(is_small, 1.0, difference)
        # The same value, with the multiplier as gradient (see `activations._with_cached_derivative`).
        rescaled = output.detach() + (multiplier * (given - given.detach())).to(output.dtype)
        return torch.where(is_small, output, rescaled)

    return hook
