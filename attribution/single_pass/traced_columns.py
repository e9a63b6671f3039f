"""A trace by spans: from an answer back to the input, one column of scores for each hop through the reasoning.

A hop attributes the sum of log-probabilities of the tokens that it comes from, each weighted by the share of the trace
that reached it: one backward pass, whatever their number. The exact trace (`attribution_reading.traces`) normalises the
scores of each token by themselves, for which all of them are needed; here the sum is normalised: an approximation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from attribution.single_pass.columns import Columns
from attribution.single_pass.text_task import StepResult, Task
from attribution.text.spans import TracePlan

NOTHING = 1e-9  # share of the trace that is not followed further


@dataclass
class TraceRecord:
    """What each hop brings, as shares of 1; grows with the hops."""

    scores: torch.Tensor | None = None  # [inputs], of all hops
    reasoning: torch.Tensor | None = None  # [reasoning], what reached each of its tokens in all hops
    elsewhere: float = 0.0  # on other generated tokens
    left: float = 1.0  # on the reasoning, behind the last hop
    hops: list[dict[str, Any]] = field(default_factory=list)

    def describe(self, plan: TracePlan, first: int) -> dict[str, Any]:
        """As plain data, with the names of an exact trace. `first`: see `traced`."""
        assert self.scores is not None
        assert self.reasoning is not None
        return {
            "mode": "span",
            "from": {"start": plan.answer.start, "end": plan.answer.stop},
            "through": {"start": plan.reasoning.start, "end": plan.reasoning.stop},
            "first_generated": first,
            "scores": self.scores.tolist(),
            "mass_left": self.left,
            "elsewhere": self.elsewhere,
            "reasoning_scores": self.reasoning.tolist(),
            "hops": self.hops,
        }

    def add(self, inputs: torch.Tensor, reasoning: torch.Tensor, elsewhere: float) -> None:
        """Note a hop: its shares on the input [inputs] and on the reasoning [reasoning], and the rest."""
        self.scores = inputs if self.scores is None else self.scores + inputs
        self.reasoning = reasoning if self.reasoning is None else self.reasoning + reasoning
        self.elsewhere += elsewhere
        self.left = float(reasoning.sum())
        self.hops.append(
            {
                "hop": len(self.hops), "prompt": float(inputs.sum()), "reasoning": self.left, "elsewhere": elsewhere,
                "scores": inputs.tolist(),
            }
        )  # fmt: skip


def traced(
    task: Task, plan: TracePlan, first: int, record: TraceRecord, results_of: Callable[[Task], Iterator[StepResult]]
) -> Iterator[StepResult]:
    """One result for each hop, until the reasoning has nothing left to pass on. Fills `record`.

    first: the target position of the first generated token. results_of: the results of a task's columns.
    """
    weights = torch.zeros(len(task.steps), dtype=torch.float64)
    weights[_within(task, plan.answer)] = 1.0
    mass, own = 1.0, plan.answer  # what an answer's token gives to an earlier one stays within the answer
    for hop in range(plan.hops + 1):
        last = int(weights.nonzero()[-1])
        columns = Columns(weights[None], (task.steps[last] + 1,))
        report = partial(_report, task, hop, plan.hops + 1)
        (result,) = results_of(replace(task, columns=columns, report_progress=report))
        yield result
        inputs, generated = _shares(task, result, first, own)
        on = generated.new_zeros(len(plan.reasoning))
        reached = generated[plan.reasoning.start - first : plan.reasoning.stop - first]
        on[: len(reached)] = reached
        record.add(inputs * mass, on * mass, float(generated.sum() - on.sum()) * mass)
        mass, own = record.left, range(0)
        if mass <= NOTHING:
            return
        weights = torch.zeros(len(task.steps), dtype=torch.float64)
        weights[_within(task, plan.reasoning)] = on / on.sum()


def _within(task: Task, positions: range) -> slice:
    return slice(positions.start - task.steps.start, positions.stop - task.steps.start)


def _report(task: Task, hop: int, hops: int, done: float, spent: float | None = None) -> None:
    task.report_progress((hop + done) / hops, None if spent is None else (hop + spent) / hops)


def _shares(task: Task, result: StepResult, first: int, own: range) -> tuple[torch.Tensor, torch.Tensor]:
    """The shares of a result's absolute scores on the input and on the generated tokens, which add up to 1.

    Vectors count by their norm, as Inseq aggregates them. The `own` positions get none.
    """
    assert result.scores is not None
    assert task.prefix_index is not None
    sizes = [each[0].double().cpu() for each in result.scores]
    sizes = [each.norm(dim=-1) if each.ndim > 1 else each.abs() for each in sizes]
    prefix = sizes[task.prefix_index].clone()
    prefix[own.start : own.stop] = 0.0
    inputs = torch.cat([*sizes[: task.prefix_index], prefix[:first]])
    total = float(inputs.sum() + prefix[first:].sum())
    return inputs / max(total, 1e-300), prefix[first:] / max(total, 1e-300)
