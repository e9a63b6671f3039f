"""How far rounding moves a model's scores: measured, because it grows with the depth and the gain of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

_REPEATS = 3
# The single pass and Inseq's loop each round by themselves, so they differ by about 1.4 times the rounding of one.
# On 18 models and seven methods they differed by 0.02 to 1.5 times the level that is measured here.
MARGIN = 4.0


def rounding_tolerance(network: torch.nn.Module, difference_of_run: Callable[[], float]) -> float:
    """The largest difference between two right computations of a network that differ in rounding alone.

    `difference_of_run` computes again and returns the difference from the first computation. It is called while the
    output of each module is moved by one unit in the last place, up or down at random (Monte Carlo arithmetic: Parker,
    1997, "Monte Carlo Arithmetic: exploiting randomness in floating-point arithmetic"). A module rounds at least its
    output, by half a unit at most, and a sum of products in another order differs by about one unit. What the layers
    above and the backward pass make of such differences is what they make of rounding. So the level found is that
    of a computation in another order; the tolerance is `MARGIN` times the largest of three.
    """
    levels = []
    for seed in range(_REPEATS):
        with _last_places_moved(network, seed):
            levels.append(difference_of_run())
    return MARGIN * max(levels)


@contextmanager
def _last_places_moved(network: torch.nn.Module, seed: int) -> Iterator[None]:
    generators: dict[torch.device, torch.Generator] = {}  # not the process's, from which methods draw

    def moved(output: torch.Tensor) -> torch.Tensor:
        device = output.device
        if device not in generators:
            generators[device] = torch.Generator(device).manual_seed(seed)
        up = torch.randint(0, 2, output.shape, generator=generators[device], device=device, dtype=output.dtype)
        return output * (1 + torch.finfo(output.dtype).eps * (2 * up - 1))

    def after(_module: Any, _arguments: Any, output: Any) -> Any:
        first = output[0] if isinstance(output, tuple) and output else output
        if not isinstance(first, torch.Tensor) or not first.is_floating_point():
            return None
        return (moved(first), *output[1:]) if isinstance(output, tuple) else moved(first)

    with ExitStack() as stack:
        for module in network.modules():
            if module is not network:
                stack.callback(module.register_forward_hook(after).remove)
        yield
