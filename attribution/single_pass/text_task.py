"""One text to attribute: its embeddings and steps, and the attributed function and step scores of its logits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import torch

from attribution.single_pass.batch_sizes import rows_of_logits, steps_at_once
from attribution.single_pass.columns import Columns
from attribution.single_pass.logit_functions import AttributedFunction, StepScores
from attribution.single_pass.network import Graph, SplitModel


class ProgressCallback(Protocol):
    """Called before each batch; it may raise to cancel."""

    def __call__(self, done: float, spent: float | None = None, /) -> None:
        """Note the part (0 to 1) of the text that is done, and the part of its time that is spent, if it is another."""


@dataclass(frozen=True)
class HeadOutput:
    """Values computed from the logits of hidden states."""

    values: torch.Tensor  # the attributed function: [rows, steps]
    # With respect to the hidden states: [rows, steps, width]; None if not computed.
    gradients: torch.Tensor | None = None
    step_scores: list[dict[str, torch.Tensor]] = field(default_factory=list)  # of the first row, by step


@dataclass(frozen=True)
class StepResult:
    """The scores of one column, usually a step, in the order of the task's inputs ([1, length(, width)]); None for
    `dummy`, which has none.
    """

    scores: tuple[torch.Tensor, ...] | None
    at_input: float = 0.0  # the attributed function at the input
    at_baseline: float = 0.0  # and at the baseline
    step_scores: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """Everything a method needs to attribute one text.

    `inputs` are the attributed embeddings in Inseq's order ([1, length, width]): the prefix of a decoder-only model, or
    the source, or the source and the decoder's prefix. `context` is a decoder's prefix that is not attributed.
    """

    split_model: SplitModel
    inputs: tuple[torch.Tensor, ...]
    baselines: tuple[torch.Tensor, ...]  # in the shapes of `inputs`
    context: torch.Tensor | None
    steps: range  # target positions
    function: AttributedFunction
    step_scores: StepScores
    report_progress: ProgressCallback
    needs_identity: bool = False  # whether to compute f(input) and f(baseline)
    # Token ids of the inputs and of the baselines ([1, length] each), for methods that walk through the vocabulary.
    ids: tuple[tuple[torch.Tensor, torch.Tensor], ...] = ()
    columns: Columns | None = None  # sums over steps to compute scores for, in place of each step
    is_signed: bool = False  # whether scores keep their sign, also of a method that returns absolute values

    @property
    def count(self) -> int:
        """The number of results: columns, or else steps."""
        return len(self.steps) if self.columns is None else len(self.columns)

    def prefix_of(self, index: int) -> int:
        """The length of the target prefix that result number `index` depends on."""
        return self.steps[index] if self.columns is None else self.columns.ends[index] - 1

    @property
    def prefix_index(self) -> int | None:
        """The index of the input that is the target prefix, which grows by a token with each step; None if none is."""
        return None if self.context is not None else len(self.inputs) - 1

    @property
    def rows_length(self) -> int:
        """Positions in one row of a forward, over encoder and decoder."""
        return sum(each.shape[1] for each in (*self.inputs, self.context) if each is not None)

    def parts(self, rows: int) -> Iterator[Task]:
        """The task divided into ranges of steps, each with inputs no longer than its last step needs; not divided where
        it has columns, which may sum over all of them.

        `rows` is the number of rows that each step runs, which bounds the steps that fit into memory.
        """
        if self.columns is not None:
            yield self
            return
        at_once = steps_at_once(self.split_model, self.steps, self.rows_length, rows)
        for first in range(0, len(self.steps), at_once):
            steps = self.steps[first : first + at_once]
            share, start = len(steps) / len(self.steps), first / len(self.steps)
            yield replace(
                self,
                inputs=self.up_to(steps.stop - 1, self.inputs),
                baselines=self.up_to(steps.stop - 1, self.baselines),
                context=None if self.context is None else self.context[:, : steps.stop - 1],
                steps=steps,
                report_progress=partial(self._report_part, start, share),
            )

    def _report_part(self, start: float, share: float, done: float, spent: float | None = None) -> None:
        self.report_progress(start + share * done, start + share * (done if spent is None else spent))

    def with_inputs(
        self, split_model: SplitModel, inputs: tuple[torch.Tensor, ...], baselines: tuple[torch.Tensor, ...]
    ) -> Task:
        """The task on another model's inputs."""
        return replace(self, split_model=split_model, inputs=inputs, baselines=baselines)

    def up_to(self, end: int, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Tensors in the order of the inputs ([1, length, ...]), with the target prefix cut to `end` positions."""
        return tuple(each[:, :end] if place == self.prefix_index else each for place, each in enumerate(inputs))

    def states(self, *inputs: torch.Tensor, **more: Any) -> torch.Tensor:
        """Hidden states that predict the steps' tokens, of inputs [rows, length, width]: [rows, steps, width]."""
        rows = inputs[0].shape[0]
        context = () if self.context is None else (self.context.expand(rows, -1, -1),)
        return self.split_model.states(
            *inputs, *context, positions=slice(self.steps.start - 1, self.steps.stop - 1), **more
        )

    def graph(self, *inputs: torch.Tensor) -> Graph:
        """The graph of a forward of the same inputs as for `states`."""
        if self.columns is not None:  # which share what a cut would have once for each step
            states = self.states(*inputs)
            return Graph(states, (states,), (), 0, 0)
        rows = inputs[0].shape[0]
        context = () if self.context is None else (self.context.expand(rows, -1, -1),)
        return self.split_model.graph(*inputs, *context, positions=slice(self.steps.start - 1, self.steps.stop - 1))

    def apply_head(
        self,
        states: torch.Tensor,
        *,
        gradients: bool,
        values_too: bool = True,
        step_scores: bool = False,
        first: int = 0,
    ) -> HeadOutput:
        """Run the head on hidden states ([rows, steps, width]) of the steps from number `first`, in batches.

        Without `values_too` the attributed function is not called, and `values` are zero: it may draw random numbers,
        or need arguments that only its own method passes.
        """
        rows, count, _ = states.shape
        steps = self.steps[first:]
        limit = rows_of_logits(self.split_model)
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
                    logits = self.split_model.logits(leaf.flatten(0, 1)).reshape(*leaf.shape[:2], -1)
                    if values_too:
                        value = self.function(logits, steps[left : left + width])
                        values[place] = value.detach().to(values.dtype)
                        if found is not None:
                            (found[place],) = torch.autograd.grad(value.sum(), leaf)
                if step_scores and top == 0:
                    scores += self.step_scores.of_steps(steps[left : left + width], logits[0].detach())
        return HeadOutput(values, found, scores)

    def unperturbed(self) -> HeadOutput | None:
        """The head's output for the text itself, from one forward; None if neither values nor scores are needed."""
        if not self.needs_identity and not self.step_scores:
            return None
        with torch.no_grad():
            states, scored = self.states(*self.inputs), bool(self.step_scores)
            return self.apply_head(states, gradients=False, values_too=self.needs_identity, step_scores=scored)

    def at_baseline(self) -> torch.Tensor | None:
        """The attributed function of the baseline at every step ([steps]), from one forward; None if not needed."""
        if not self.needs_identity:
            return None
        with torch.no_grad():
            return self.apply_head(self.states(*self.baselines), gradients=False).values[0]

    def result(
        self,
        index: int,
        scores: tuple[torch.Tensor, ...] | None,
        head_output: HeadOutput | None,
        baseline: torch.Tensor | None,
    ) -> StepResult:
        """Result number `index`, of a step or a column, with scores cut to its prefix.

        `head_output` is that of all steps, `baseline` what `at_baseline` returned.
        """
        return StepResult(
            None if scores is None else self.up_to(self.prefix_of(index), scores),
            at_input=0.0 if head_output is None else self._value(head_output.values[0], index),
            at_baseline=0.0 if baseline is None else self._value(baseline, index),
            step_scores={} if head_output is None else self._scores_of(head_output.step_scores, index),
        )

    def _value(self, values: torch.Tensor, index: int) -> float:
        """The attributed function of result number `index`, from that of the steps ([steps])."""
        return float(values[index] if self.columns is None else self.columns.summed(values.double())[index])

    def _scores_of(self, scores: list[dict[str, torch.Tensor]], index: int) -> dict[str, torch.Tensor]:
        if not scores or self.columns is None:
            return scores[index] if scores else {}
        chosen = self.columns.weights[index].nonzero()[:, 0].tolist()
        return self.step_scores.of_span([scores[step] for step in chosen])
