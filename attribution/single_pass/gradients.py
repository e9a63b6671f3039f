"""Gradient methods: a forward for each point of the path, and one vector-Jacobian product for each step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from captum.attr._utils.approximation_methods import approximation_parameters

from attribution.single_pass.batch_sizes import rows_at_once
from attribution.single_pass.network import Graph
from attribution.single_pass.text_task import Column, Reading, Task

Gradients = tuple[torch.Tensor, ...]


def saliency(task: Task, *, absolute: bool) -> Iterator[Column]:
    """Simonyan et al., 2014: the gradient, or its absolute value."""
    for index, gradients, reading in of_the_text(task):
        yield task.column(index, tuple(each.abs() for each in gradients) if absolute else gradients, reading, None)


def input_x_gradient(task: Task) -> Iterator[Column]:
    """Shrikumar et al., 2016."""
    for index, gradients, reading in of_the_text(task):
        scores = tuple(x * gradient for x, gradient in zip(task.inputs, gradients, strict=True))
        yield task.column(index, scores, reading, None)


def integrated_gradients(
    task: Task, *, n_steps: int, method: str, multiply_by_inputs: bool, internal_batch_size: int | None
) -> Iterator[Column]:
    """Sundararajan et al., 2017, with Captum's quadrature.

    An interpolated embedding does not depend on the step, so each point of the path is one forward for all of them.
    """
    reading, baseline = task.unperturbed(), task.at_baseline()
    step_sizes, alphas = (each(n_steps) for each in approximation_parameters(method))
    # In float32 whatever the model's type, as in Captum.
    weights = torch.tensor(step_sizes).float().to(task.inputs[0].device)
    rows = points_at_once(task, n_steps, internal_batch_size)
    pieces = range(0, n_steps, rows)
    sums: list[Gradients] = []
    for first in pieces:
        task.tick(first / n_steps)
        points = tuple(
            torch.cat([b + alpha * (x - b) for alpha in alphas[first : first + rows]])
            for x, b in zip(task.inputs, task.baselines, strict=True)
        )
        done = first / n_steps
        for index, gradients in enumerate(_pulled(task, points, weights[first : first + rows], done, len(pieces))):
            if len(sums) == index:
                sums.append(gradients)
            else:
                sums[index] = tuple(a + b for a, b in zip(sums[index], gradients, strict=True))
            if first == pieces[-1]:
                total = sums[index]
                sums[index] = ()
                if multiply_by_inputs:
                    total = tuple(g * (x - b) for g, x, b in zip(total, task.inputs, task.baselines, strict=True))
                yield task.column(index, total, reading, baseline)


def points_at_once(task: Task, n_steps: int, internal_batch_size: int | None) -> int:
    """How many points of the path are one forward."""
    return min(n_steps, internal_batch_size or n_steps, rows_at_once(task.trunk, task.rows_length, with_graph=True))


def of_the_text(
    task: Task, around_forward: AbstractContextManager[None] | None = None
) -> Iterator[tuple[int, Gradients, Reading]]:
    """The gradient of each step at the text itself; each step's number, its gradients, and the reading of all."""
    inputs = tuple(each.detach().requires_grad_() for each in task.inputs)
    with around_forward or nullcontext():
        graph = task.graph(*inputs)
    reading = task.read(graph.states, gradients=True, step_scores=bool(task.step_scores))
    for index, gradients in enumerate(_products(task, graph, inputs, reading, 0.0, 1.0)):
        yield index, gradients, reading


def _pulled(task: Task, points: Gradients, weights: torch.Tensor, done: float, pieces: int) -> Iterator[Gradients]:
    """For each step, the weighted sum of its gradients over the points ([points, length, width])."""
    # All points are moved along with one tensor: its gradient is the sum over them, and nothing larger is ever made.
    # In float32 at least, as Captum sums: the weights and the sum of many points have no place in half precision.
    exact = torch.promote_types(points[0].dtype, torch.float32)
    shifts = tuple(torch.zeros_like(each[:1], dtype=exact).requires_grad_() for each in points)
    scale = weights.to(exact)[:, None, None]
    moved = ((scale * shift).to(point.dtype) for point, shift in zip(points, shifts, strict=True))
    graph = task.graph(*(point + each for point, each in zip(points, moved, strict=True)))
    reading = task.read(graph.states, gradients=True)
    yield from _products(task, graph, shifts, reading, done, 1 / pieces)


def _products(
    task: Task, graph: Graph, inputs: Gradients, reading: Reading, done: float, part: float
) -> Iterator[Gradients]:
    """The vector-Jacobian product of each step: [1, length, width] for each input."""
    assert reading.gradients is not None
    rows, steps, _ = graph.states.shape
    at_anchors = graph.at_anchors(reading.gradients)
    at_once = rows_at_once(task.trunk, rows * task.rows_length, with_graph=False)
    for first in range(0, steps, at_once):
        task.tick(done + part * first / steps)
        found = graph.pull_back(at_anchors, range(first, min(first + at_once, steps)), inputs)
        yield from zip(*found, strict=True)
