"""Occlusion. Each window is replaced by the baseline once; the same forward serves every later step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from attribution.single_pass.batch_sizes import rows_at_once
from attribution.single_pass.prefix_cache import PrefixCache
from attribution.single_pass.text_task import HeadOutput, StepResult, Task

# Windows are run in this many groups that share a prefix: 56 % of all positions are computed; at best it would be half.
_GROUPS, _FEWEST_ROWS = 8, 4


@dataclass(frozen=True)
class Window:
    """A sliding window over the positions of one input, in positions; it always covers whole embeddings."""

    size: int = 1
    stride: int = 1

    def count(self, length: int) -> int:
        """How many windows an input of this length has, as Captum counts; the last may extend past the end."""
        return -(-(length - self.size) // self.stride) + 1

    def covered(self, index: int, length: int) -> slice:
        """The positions that window number `index` covers."""
        return slice(index * self.stride, min(index * self.stride + self.size, length))


def occlusion(task: Task, *, windows: tuple[Window, ...], rows: int | None) -> Iterator[StepResult]:
    """Occlusion (Zeiler and Fergus, 2014, https://arxiv.org/abs/1311.2901), as `captum.attr.Occlusion` computes it.

    One window for each of the task's inputs; a forward has at most `rows` perturbed rows, or as many as memory allows.
    Replacing position j leaves all steps before it unchanged, and one forward shows its effect on all steps after it.
    """
    with torch.no_grad():
        states, cache = PrefixCache.of(task)
        head_output = task.apply_head(states, gradients=False, step_scores=bool(task.step_scores))
        effects = [
            _effects(task, position, window, head_output, rows, cache if position == task.prefix_index else None)
            for position, window in enumerate(windows)
        ]
        for index in range(task.count):
            scores = tuple(
                _scores(task, position, window, effects[position], index) for position, window in enumerate(windows)
            )
            yield task.result(index, scores, head_output, None)


def _effects(
    task: Task, position: int, window: Window, head_output: HeadOutput, rows: int | None, cache: PrefixCache | None
) -> torch.Tensor:
    """f(input) - f(input with the window replaced by the baseline): [windows, steps], or [windows, columns]."""
    length = task.inputs[position].shape[1]
    count = window.count(length)
    effects = head_output.values.new_zeros((count, len(task.steps)))
    first = 0
    while first < count:
        start = window.covered(first, length).start
        kept = start if cache is not None else 0
        at_once = rows_at_once(task.split_model, task.rows_length - kept, with_graph=False)
        if cache is not None:
            at_once = min(at_once, max(_FEWEST_ROWS, -(-count // _GROUPS)))
        last = min(count, first + (min(at_once, rows) if rows else at_once))
        # With a shared prefix rows become shorter, so the remaining work shrinks quadratically.
        task.report_progress(first / count if cache is None else 1 - (1 - first / count) ** 2)
        perturbed = task.inputs[position].repeat(last - first, 1, 1)
        for row, index in enumerate(range(first, last)):
            covered = window.covered(index, length)
            perturbed[row, covered] = task.baselines[position][0, covered]
        if cache is not None:
            effects[first:last] = cache.effects(perturbed, kept, head_output.values)
        else:
            inputs = [each.expand(last - first, -1, -1) for each in task.inputs]
            inputs[position] = perturbed
            effects[first:last] = head_output.values - task.apply_head(task.states(*inputs), gradients=False).values
        first = last
    return effects if task.columns is None else task.columns.summed(effects)


def _scores(task: Task, position: int, window: Window, effects: torch.Tensor, index: int) -> torch.Tensor:
    """The absolute mean effect of the windows over each position, for one step or column: [1, length]."""
    found = _mean_effects(task, position, window, effects, index)
    return found if task.is_signed else found.abs()


def _mean_effects(task: Task, position: int, window: Window, effects: torch.Tensor, index: int) -> torch.Tensor:
    length = task.inputs[position].shape[1]
    if position == task.prefix_index:
        length = task.prefix_of(index)
    if window == Window():
        return effects[:length, index][None]
    total, weight = effects.new_zeros((2, length)).unbind()
    for number in range(window.count(length)):
        covered = window.covered(number, length)
        total[covered] += effects[number, index]
        weight[covered] += 1
    return (total / weight)[None]
