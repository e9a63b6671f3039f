"""GradientSHAP: Inseq draws new random samples for every step, so every step (or column) needs a forward of its own.

The single pass still saves the LM head at unread positions, the key-value cache and the forward for step scores.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from captum.attr import GradientShap

from attribution.single_pass.network import pull_back
from attribution.single_pass.text_task import StepResult, Task


def gradient_shap(task: Task, method: GradientShap, arguments: dict[str, Any]) -> Iterator[StepResult]:
    """GradientSHAP (Lundberg and Lee, 2017, https://arxiv.org/abs/1705.07874), one result for each step or column.

    `captum.attr.GradientShap` draws the samples, so the same random numbers are drawn in the same order as by Inseq.
    """
    head_output, baseline = task.unperturbed(), task.at_baseline()
    for index in range(task.count):
        task.report_progress(index / task.count)
        inputs, baselines = (task.up_to(task.prefix_of(index), each) for each in (task.inputs, task.baselines))

        method.gradient_func = partial(_gradients, task, index)
        scores = method.attribute(inputs=inputs, baselines=baselines, **arguments)
        yield task.result(index, scores, head_output, baseline)


def _gradients(
    task: Task, index: int, _function: Any, inputs: tuple[torch.Tensor, ...], *_rest: Any, **_more: Any
) -> tuple[torch.Tensor, ...]:
    """Gradients of result number `index` at sampled inputs ([samples, length, width]); Captum's signature."""
    leaves = tuple(each.detach().requires_grad_() for each in inputs)
    rows, end = len(leaves[0]), task.prefix_of(index)
    first = index if task.columns is None else 0  # the first step that is needed
    context = () if task.context is None else (task.context[:, :end].expand(rows, -1, -1),)
    with torch.enable_grad():
        states = task.split_model.states(*leaves, *context, positions=slice(task.steps[first] - 1, end))
    head_output = task.apply_head(states, gradients=True, first=first)
    assert head_output.gradients is not None
    cotangents = head_output.gradients[None]
    if task.columns is not None:
        cotangents = task.columns.cotangents(head_output.gradients, range(index, index + 1))
    return tuple(each[0] for each in pull_back((states,), leaves, (cotangents,)))
