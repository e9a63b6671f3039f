"""GradientSHAP: Inseq draws anew for every step, so each step is a forward of its own, up to the head."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from captum.attr import GradientShap

from attribution.single_pass.network import pull_back
from attribution.single_pass.text_task import Column, Task


def gradient_shap(task: Task, method: GradientShap, arguments: dict[str, Any]) -> Iterator[Column]:
    """Lundberg and Lee, 2017: Captum's own sampling, so that the same numbers are drawn in the same order."""
    reading, baseline = task.unperturbed(), task.at_baseline()
    for index in range(len(task.steps)):
        task.tick(index / len(task.steps))
        inputs, baselines = (task.up_to(task.steps[index], each) for each in (task.inputs, task.baselines))

        method.gradient_func = partial(_gradients, task, index)
        scores = method.attribute(inputs=inputs, baselines=baselines, **arguments)
        yield task.column(index, scores, reading, baseline)


def _gradients(
    task: Task, index: int, _function: Any, inputs: tuple[torch.Tensor, ...], *_rest: Any, **_more: Any
) -> tuple[torch.Tensor, ...]:
    """Of step number `index` at sampled inputs ([samples, length, width]); the signature is Captum's."""
    leaves = tuple(each.detach().requires_grad_() for each in inputs)
    rows, step = len(leaves[0]), task.steps[index]
    context = () if task.context is None else (task.context[:, :step].expand(rows, -1, -1),)
    with torch.enable_grad():
        states = task.trunk.states(*leaves, *context, positions=slice(step - 1, step))
    reading = task.read(states, gradients=True, first=index)
    assert reading.gradients is not None
    return tuple(each[0] for each in pull_back((states,), leaves, (reading.gradients[None],)))
