"""Sequential integrated gradients: a path for each attributed token, on which all others keep their embeddings.

A path does not depend on the step, so one forward of its points serves all steps behind the token; and what stands
before the token does not change, so the points run only the positions from the token on.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from captum.attr._utils.approximation_methods import approximation_parameters

from attribution.single_pass.batch_sizes import rows_at_once
from attribution.single_pass.network import Graph, pull_back
from attribution.single_pass.prefix_cache import PrefixCache
from attribution.single_pass.text_task import StepResult, Task


def sequential_integrated_gradients(
    task: Task, *, n_steps: int, method: str, multiply_by_inputs: bool, internal_batch_size: int | None
) -> Iterator[StepResult]:
    """Sequential integrated gradients (Enguehard, 2023, https://arxiv.org/abs/2305.15853), as Inseq computes them."""
    with torch.no_grad():
        states, cache = PrefixCache.of(task)
        scored = bool(task.step_scores)
        head_output = task.apply_head(states, gradients=False, step_scores=scored) if scored else None
    step_sizes, alphas = (each(n_steps) for each in approximation_parameters(method))
    path = torch.tensor([step_sizes, alphas], dtype=torch.float64)
    (given,) = task.inputs
    count, length = task.count, given.shape[1]
    scores = given.new_zeros((count, length, given.shape[2]), dtype=torch.promote_types(given.dtype, torch.float32))
    for token in range(length):
        # With a shared prefix rows become shorter, so the remaining work shrinks quadratically.
        task.report_progress(token / length if cache is None else 1 - (1 - token / length) ** 2)
        kept = token if cache is not None else 0
        rows = rows_at_once(task.split_model, task.rows_length - kept, with_graph=True)
        rows = min(n_steps, rows, internal_batch_size or n_steps)
        for first in range(0, n_steps, rows):
            weights, places = path[:, first : first + rows].to(given.device)
            behind = _gradients_at_token(task, cache, token, weights, places)
            scores[count - len(behind) :, token] += behind
    if multiply_by_inputs:
        scores *= given - task.baselines[0]
    for index in range(count):
        yield task.result(index, (scores[index][None],), head_output, None)


def _gradients_at_token(
    task: Task, cache: PrefixCache | None, token: int, weights: torch.Tensor, alphas: torch.Tensor
) -> torch.Tensor:
    """The weighted gradients at a token, summed over these points of its path: of each step behind the token ([steps
    behind it, width]), or of each column ([columns, width]).
    """
    (given,), (baselines,) = task.inputs, task.baselines
    # As for integrated gradients: the gradient of a zero tensor that is added to all points is their sum.
    exact = torch.promote_types(given.dtype, torch.float32)
    shift = torch.zeros_like(given[:, token], dtype=exact).requires_grad_()
    start = baselines[:, token]
    moved = start + alphas[:, None].to(given.dtype) * (given[:, token] - start)
    moved = moved + (weights[:, None].to(exact) * shift).to(given.dtype)
    text = given.expand(len(moved), -1, -1)
    points = torch.cat([text[:, :token], moved[:, None], text[:, token + 1 :]], dim=1)
    first = 0 if task.prefix_index is None else max(0, token + 1 - task.steps.start)  # the first step behind the token
    states = task.states(points)[:, first:] if cache is None else cache.states(points, token, first)
    head_output = task.apply_head(states, gradients=True, first=first)
    assert head_output.gradients is not None
    at_once = rows_at_once(task.split_model, len(moved) * task.rows_length, with_graph=False)
    graph, count = Graph(states, (states,), (), 0, 0), states.shape[1] if task.columns is None else task.count
    found: list[torch.Tensor] = []
    for left in range(0, count, at_once):
        chosen = range(left, min(left + at_once, count))
        if task.columns is None:
            found += graph.pull_back((head_output.gradients,), chosen, (shift,))
        else:
            cotangents = task.columns.cotangents(head_output.gradients, chosen, first)
            found += pull_back((states,), (shift,), (cotangents,))
    return torch.cat(found)[:, 0]
