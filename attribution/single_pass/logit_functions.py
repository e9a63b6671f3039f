"""The attributed function and the step scores, on rows of logits that one forward made for all steps.

The functions are Inseq's own, called with the arguments that its loop would give them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, TypeAlias

import torch
from inseq.attr.step_functions import STEP_SCORES_MAP, get_step_scores, get_step_scores_args
from inseq.data import DecoderOnlyBatch, EncoderDecoderBatch
from inseq.models import HuggingfaceModel

from attribution.catalogue import traits
from attribution.catalogue.traits import Reads, StepFunctionTraits
from attribution.corrections.step_functions import plain_name, repeating_contrast

Batch: TypeAlias = DecoderOnlyBatch | EncoderDecoderBatch


class AttributedFunction:
    """What is attributed, as a function of logits, for the steps of one text."""

    def __init__(self, model: HuggingfaceModel, name: str, arguments: dict[str, Any], batch: Batch) -> None:
        """`name` is a key of Inseq's table of step functions."""
        self._model = model
        self._plain = plain_name(name)
        self._reads = traits.of_step_function(self._plain).reads
        self._function: Callable[..., torch.Tensor] = (
            STEP_SCORES_MAP[name] if self._reads is not Reads.LOGITS_AND_PREFIX else repeating_contrast(self._plain)
        )
        self._arguments = {key: value for key, value in arguments.items() if value is not None}
        self._batch = batch
        self._targets = batch.target_ids[0]

    def __call__(self, logits: torch.Tensor, steps: range) -> torch.Tensor:
        """[rows, steps, vocabulary] to [rows, steps]; `steps` are target positions."""
        rows, count = logits.shape[:2]
        if self._reads is Reads.LOGITS:
            targets = self._targets[steps.start : steps.stop].repeat(rows)
            return self._call(logits.flatten(0, 1), targets, self._batch).reshape(rows, count)
        columns = []
        for index, step in enumerate(steps):
            column, target, batch = logits[:, index], self._targets[step].repeat(rows), self._batch[:step]
            if self._reads is Reads.ONE_ROW:
                values = [self._call(row[None], target[:1], batch).reshape(1) for row in column]
                columns.append(torch.cat(values))
            else:
                columns.append(self._call(column, target, batch).reshape(rows))
        return torch.stack(columns, 1)

    def _call(self, logits: torch.Tensor, targets: torch.Tensor, batch: Batch) -> torch.Tensor:
        arguments = self._model.formatter.format_step_function_args(
            attribution_model=self._model,
            forward_output=_as_output(logits),
            target_ids=targets,
            is_attributed_fn=True,
            batch=batch,
        )
        if self._reads is Reads.LOGITS_AND_PREFIX and len(logits) > 1:
            arguments.decoder_input_ids = arguments.decoder_input_ids.expand(len(logits), -1)
        return self._function(arguments, **self._arguments)


class StepScores:
    """The step scores that a request asks for."""

    def __init__(self, model: HuggingfaceModel, names: list[str], arguments: dict[str, Any], batch: Batch) -> None:
        self._model = model
        self._names = names
        self._arguments = arguments
        self._batch = batch

    def __bool__(self) -> bool:
        return bool(self._names)

    def of_steps(self, steps: range, logits: torch.Tensor) -> list[dict[str, torch.Tensor]]:
        """Of these target positions, from a row of logits for each ([steps, vocabulary]); each score is [1]."""
        rowwise, others = dict[str, Sequence[torch.Tensor]](), list[dict[str, torch.Tensor]]()
        with torch.no_grad():
            for name in self._names:
                if _traits_of(name).reads is Reads.LOGITS:
                    targets = self._batch.target_ids[0, steps.start : steps.stop]
                    rowwise[name] = self._score(name, _as_output(logits), targets, self._batch).reshape(-1, 1).unbind()
            # One step after the other: functions that follow each other on a step may share a forward.
            for step, row in zip(steps, logits, strict=True):
                others.append({n: self._of_step(n, step, row) for n in self._names if n not in rowwise})
        return [
            {name: rowwise[name][index] if name in rowwise else other[name] for name in self._names}
            for index, other in enumerate(others)
        ]

    def _of_step(self, name: str, step: int, row: torch.Tensor) -> torch.Tensor:
        # Only those that look at the prefix are shown it: to cut it is not free.
        batch = self._batch if _traits_of(name).reads is Reads.ONE_ROW else self._batch[:step]
        output = self._model.get_forward_output(batch) if _traits_of(name).draws_dropout else _as_output(row[None])
        return self._score(name, output, self._batch.target_ids[0, step], batch)

    def _score(self, name: str, output: Any, targets: torch.Tensor, batch: Batch) -> torch.Tensor:
        arguments = self._model.formatter.format_step_function_args(
            attribution_model=self._model,
            forward_output=output,
            target_ids=targets,
            is_attributed_fn=False,
            batch=batch,
        )
        found: torch.Tensor = get_step_scores(name, arguments, get_step_scores_args([name], self._arguments))
        return found.to("cpu")


def _traits_of(name: str) -> StepFunctionTraits:
    return traits.of_step_function(plain_name(name))


def _as_output(logits: torch.Tensor) -> SimpleNamespace:
    """Rows of logits ([rows, vocabulary]) as a forward's output of one position each."""
    return SimpleNamespace(logits=logits[:, None])
