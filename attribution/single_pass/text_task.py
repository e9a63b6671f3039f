"""One text to attribute: its embeddings, its steps, and what is read off the logits of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from attribution.single_pass.batch_sizes import rows_of_logits, steps_at_once
from attribution.single_pass.logit_functions import AttributedFunction, StepScores
from attribution.single_pass.network import Graph, Trunk

# Called before each piece of work with the part that is done; it may raise to stop.
Tick = Callable[[float], None]


@dataclass(frozen=True)
class Reading:
    """What the head makes of hidden states: the attributed function ([rows, steps]), its gradient with respect to them
    ([rows, steps, width]) where it was asked for, and the step scores of the first row.
    """

    values: torch.Tensor
    gradients: torch.Tensor | None = None
    step_scores: list[dict[str, torch.Tensor]] = field(default_factory=list)


@dataclass(frozen=True)
class Column:
    """One step's result: scores in the order of the task's inputs ([1, length(, width)]), `None` for no attribution."""

    scores: tuple[torch.Tensor, ...] | None
    at_input: float = 0.0
    at_baseline: float = 0.0
    step_scores: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """`inputs` are the attributed embeddings in Inseq's order ([1, length, width]): the prefix, or the source, or the
    source and the decoder's prefix; `context` is a decoder's prefix that is not attributed.
    """

    trunk: Trunk
    inputs: tuple[torch.Tensor, ...]
    baselines: tuple[torch.Tensor, ...]
    context: torch.Tensor | None
    steps: range
    function: AttributedFunction
    step_scores: StepScores
    tick: Tick
    needs_identity: bool = False  # whether f(input) and f(baseline) are wanted

    @property
    def prefix_index(self) -> int | None:
        """Which of the inputs grows with the steps."""
        return None if self.context is not None else len(self.inputs) - 1

    @property
    def rows_length(self) -> int:
        """Positions in one row of a forward, over encoder and decoder."""
        return sum(each.shape[1] for each in (*self.inputs, self.context) if each is not None)

    def parts(self, rows: int) -> Iterator[Task]:
        """The task for a few steps at a time: no longer than these need, and with room for `rows` of each in memory."""
        at_once = steps_at_once(self.trunk, self.steps, self.rows_length, rows)
        for first in range(0, len(self.steps), at_once):
            steps = self.steps[first : first + at_once]
            share, start = len(steps) / len(self.steps), first / len(self.steps)
            yield replace(
                self,
                inputs=self.up_to(steps.stop - 1, self.inputs),
                baselines=self.up_to(steps.stop - 1, self.baselines),
                context=None if self.context is None else self.context[:, : steps.stop - 1],
                steps=steps,
                tick=partial(self._tick_part, start, share),
            )

    def _tick_part(self, start: float, share: float, done: float) -> None:
        self.tick(start + share * done)

    def up_to(self, end: int, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Tensors in the order of the inputs ([1, length, ...]), cut to the prefix of a step."""
        return tuple(each[:, :end] if place == self.prefix_index else each for place, each in enumerate(inputs))

    def states(self, *inputs: torch.Tensor, **more: Any) -> torch.Tensor:
        """Hidden states that predict the steps' tokens: [rows, steps, width]."""
        rows = inputs[0].shape[0]
        context = () if self.context is None else (self.context.expand(rows, -1, -1),)
        return self.trunk.states(*inputs, *context, positions=slice(self.steps.start - 1, self.steps.stop - 1), **more)

    def graph(self, *inputs: torch.Tensor) -> Graph:
        """As `states`, to be differentiated."""
        rows = inputs[0].shape[0]
        context = () if self.context is None else (self.context.expand(rows, -1, -1),)
        return self.trunk.graph(*inputs, *context, positions=slice(self.steps.start - 1, self.steps.stop - 1))

    def read(
        self,
        states: torch.Tensor,
        *,
        gradients: bool,
        values_too: bool = True,
        step_scores: bool = False,
        first: int = 0,
    ) -> Reading:
        """Run the head on hidden states ([rows, steps, width]) of the steps from number `first`, a few at a time.

        Without `values_too` the attributed function is not called: it may draw, or need what only its method has.
        """
        rows, count, _ = states.shape
        steps = self.steps[first:]
        limit = rows_of_logits(self.trunk)
        width = max(1, min(count, limit // rows))
        height = min(rows, limit)
        values = states.new_zeros(
            (rows, count), dtype=torch.float64 if states.dtype == torch.float64 else torch.float32
        )
        found = torch.zeros_like(states) if gradients else None
        scores: list[dict[str, torch.Tensor]] = []
        for left in range(0, count, width):
            for top in range(0, rows, height):
                place = (slice(top, top + height), slice(left, left + width))
                with torch.set_grad_enabled(gradients):
                    leaf = states[place].detach().requires_grad_(gradients)
                    logits = self.trunk.logits(leaf.flatten(0, 1)).reshape(*leaf.shape[:2], -1)
                    if values_too:
                        value = self.function(logits, steps[left : left + width])
                        values[place] = value.detach().to(values.dtype)
                        if found is not None:
                            (found[place],) = torch.autograd.grad(value.sum(), leaf)
                if step_scores and top == 0:
                    scores += self.step_scores.of_steps(steps[left : left + width], logits[0].detach())
        return Reading(values, found, scores)

    def unperturbed(self) -> Reading | None:
        """The values and step scores of the text itself, where they are wanted; one forward."""
        if not self.needs_identity and not self.step_scores:
            return None
        with torch.no_grad():
            states, scored = self.states(*self.inputs), bool(self.step_scores)
            return self.read(states, gradients=False, values_too=self.needs_identity, step_scores=scored)

    def at_baseline(self) -> torch.Tensor | None:
        """The attributed function of the baseline at every step ([steps]), where it is wanted; one forward."""
        if not self.needs_identity:
            return None
        with torch.no_grad():
            return self.read(self.states(*self.baselines), gradients=False).values[0]

    def column(
        self,
        index: int,
        scores: tuple[torch.Tensor, ...] | None,
        reading: Reading | None,
        baseline: torch.Tensor | None,
    ) -> Column:
        """Step number `index`: what stands behind it is cut off."""
        step = self.steps[index]
        return Column(
            None if scores is None else self.up_to(step, scores),
            at_input=0.0 if reading is None else float(reading.values[0, index]),
            at_baseline=0.0 if baseline is None else float(baseline[index]),
            step_scores=reading.step_scores[index] if reading is not None and reading.step_scores else {},
        )
