"""Gradient methods: one forward for each point of the path, and one vector-Jacobian product for each step or column."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from captum.attr._utils.approximation_methods import approximation_parameters

from attribution.single_pass.batch_sizes import FORWARD_IN_STEPS, rows_at_once
from attribution.single_pass.network import Graph, pull_back
from attribution.single_pass.text_task import HeadOutput, StepResult, Task

Gradients = tuple[torch.Tensor, ...]
Path = tuple[Gradients, Gradients]  # points of a path, and the weights of their gradients


def saliency(task: Task, *, absolute: bool) -> Iterator[StepResult]:
    """The gradient, or its absolute value (Simonyan et al., 2014, https://arxiv.org/abs/1312.6034)."""
    for index, gradients, head_output in step_gradients(task):
        yield task.result(index, tuple(each.abs() for each in gradients) if absolute else gradients, head_output, None)


def input_x_gradient(task: Task, *, multiply_by_inputs: bool = True) -> Iterator[StepResult]:
    """Input times gradient (Shrikumar et al., 2016, https://arxiv.org/abs/1605.01713)."""
    for index, gradients, head_output in step_gradients(task):
        scores = gradients
        if multiply_by_inputs:
            scores = tuple(x * gradient for x, gradient in zip(task.inputs, gradients, strict=True))
        yield task.result(index, scores, head_output, None)


def integrated_gradients(
    task: Task, *, n_steps: int, method: str, multiply_by_inputs: bool, internal_batch_size: int | None
) -> Iterator[StepResult]:
    """Integrated gradients (Sundararajan et al., 2017, https://arxiv.org/abs/1703.01365), with Captum's quadrature.

    An interpolated embedding does not depend on the step, so one forward of a point serves all steps.
    """
    step_sizes, alphas = (each(n_steps) for each in approximation_parameters(method))
    # In float32 for every dtype of the model, as in Captum.
    weights = torch.tensor(step_sizes).float().to(task.inputs[0].device)[:, None, None]

    def points(chosen: slice) -> Path:
        places = tuple(
            torch.cat([b + alpha * (x - b) for alpha in alphas[chosen]])
            for x, b in zip(task.inputs, task.baselines, strict=True)
        )
        return places, (weights[chosen],) * len(places)

    yield from _along_path(task, points, n_steps, internal_batch_size, multiply_by_inputs=multiply_by_inputs)


def discretized_integrated_gradients(
    task: Task, paths: Gradients, *, multiply_by_inputs: bool, internal_batch_size: int | None
) -> Iterator[StepResult]:
    """Discretized integrated gradients (Sanyal and Ren, 2021, https://arxiv.org/abs/2108.13654).

    `paths` are the embeddings on the way from each baseline to each input ([n_steps, length, width]), as Inseq's path
    builder finds them, token by token: they do not depend on the step. A gradient is weighted with the way to the next.
    """
    n_steps = len(paths[0])
    ways = tuple(torch.cat([path[1:], path[-1:]]) - path for path in paths)
    # The ends of the paths, not the task's inputs and baselines: special tokens stay where they are.
    ends = tuple(path[-1:] - path[:1] for path in paths) if multiply_by_inputs else None

    def points(chosen: slice) -> Path:
        return tuple(each[chosen] for each in paths), tuple(each[chosen] for each in ways)

    for result in _along_path(task, points, n_steps, internal_batch_size, multiply_by_inputs=False):
        if ends is None or result.scores is None:
            yield result
            continue
        cut = (each[:, : score.shape[1]] for each, score in zip(ends, result.scores, strict=True))
        yield replace(result, scores=tuple(score * each for score, each in zip(result.scores, cut, strict=True)))


def _along_path(
    task: Task,
    points: Callable[[slice], Path],
    n_steps: int,
    internal_batch_size: int | None,
    *,
    multiply_by_inputs: bool,
) -> Iterator[StepResult]:
    """Each step's weighted gradients, summed over the points of a path that all steps share."""
    head_output, baseline = task.unperturbed(), task.at_baseline()
    rows = points_at_once(task, n_steps, internal_batch_size)
    pieces = range(0, n_steps, rows)
    sums: list[Gradients] = []
    for first in pieces:
        task.report_progress(first / n_steps)
        places, weights = points(slice(first, first + rows))
        done = first / n_steps
        for index, gradients in enumerate(_weighted_gradients(task, places, weights, done, len(pieces))):
            if len(sums) == index:
                sums.append(gradients)
            else:
                sums[index] = tuple(a + b for a, b in zip(sums[index], gradients, strict=True))
            if first == pieces[-1]:
                total = sums[index]
                sums[index] = ()
                if multiply_by_inputs:
                    total = tuple(g * (x - b) for g, x, b in zip(total, task.inputs, task.baselines, strict=True))
                yield task.result(index, total, head_output, baseline)


def points_at_once(task: Task, n_steps: int, internal_batch_size: int | None) -> int:
    """How many points of the path to run in one forward: bounded by memory and by `internal_batch_size`."""
    return min(
        n_steps, internal_batch_size or n_steps, rows_at_once(task.split_model, task.rows_length, with_graph=True)
    )


def step_gradients(
    task: Task, around_forward: AbstractContextManager[None] | None = None
) -> Iterator[tuple[int, Gradients, HeadOutput]]:
    """Each result's number, its gradients at the text itself, and the head's output for all steps.

    Gradients are one tensor for each of the task's inputs ([1, length, width]). `around_forward` is entered for the
    forward only.
    """
    inputs = tuple(each.detach().requires_grad_() for each in task.inputs)
    with around_forward or nullcontext():
        graph = task.graph(*inputs)
    head_output = task.apply_head(graph.states, gradients=True, step_scores=bool(task.step_scores))
    for index, gradients in enumerate(_vector_jacobian_products(task, graph, inputs, head_output, 0.0, 1.0)):
        yield index, gradients, head_output


def _weighted_gradients(
    task: Task, points: Gradients, weights: Gradients, done: float, pieces: int
) -> Iterator[Gradients]:
    """Each step's weighted gradients ([1, length, width]), summed over the points ([points, length, width]).

    `weights` are [points, length, width], or broadcast to it.
    """
    # One zero tensor is added to all points: its gradient is the sum over the points, so autograd never stores the
    # gradient of each. In float32 at least, as Captum sums: half precision would round the weights and the sum.
    exact = torch.promote_types(points[0].dtype, torch.float32)
    shifts = tuple(torch.zeros_like(each[:1], dtype=exact).requires_grad_() for each in points)
    moved = (
        (scale.to(exact) * shift).to(point.dtype) for point, scale, shift in zip(points, weights, shifts, strict=True)
    )
    graph = task.graph(*(point + each for point, each in zip(points, moved, strict=True)))
    head_output = task.apply_head(graph.states, gradients=True)
    yield from _vector_jacobian_products(task, graph, shifts, head_output, done, 1 / pieces)


def _vector_jacobian_products(
    task: Task, graph: Graph, inputs: Gradients, head_output: HeadOutput, done: float, part: float
) -> Iterator[Gradients]:
    """Each result's vector-Jacobian product, one tensor ([1, length, width]) for each input."""
    assert head_output.gradients is not None
    count = task.count
    at_leaves = graph.gradients_at_leaves(head_output.gradients)
    at_once = rows_at_once(task.split_model, len(graph.states) * task.rows_length, with_graph=False)
    for first in range(0, count, at_once):
        # The forward has taken the time of a few of these.
        task.report_progress(
            done + part * first / count, done + part * (first + FORWARD_IN_STEPS) / (count + FORWARD_IN_STEPS)
        )
        chosen = range(first, min(first + at_once, count))
        if task.columns is None:
            found = graph.pull_back(at_leaves, chosen, inputs)
        else:
            found = pull_back((graph.states,), inputs, (task.columns.cotangents(head_output.gradients, chosen),))
        yield from zip(*found, strict=True)
