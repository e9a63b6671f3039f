"""The attributed function and the step scores, computed from the rows of logits that one forward gives for all steps.

Calls Inseq's own functions with the arguments that its loop passes. Knows nothing of how the logits were computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, TypeAlias

import torch
from inseq.attr.step_functions import STEP_SCORES_MAP, get_step_scores, get_step_scores_args
from inseq.data import DecoderOnlyBatch, EncoderDecoderBatch
from inseq.models import HuggingfaceModel

from attribution.catalogue import next_token, traits
from attribution.catalogue.traits import Reads, StepFunctionTraits
from attribution.corrections.step_functions import plain_name, repeating_contrast

Batch: TypeAlias = DecoderOnlyBatch | EncoderDecoderBatch


class AttributedFunction:
    """The attributed function as a function of logits, for the steps of one text."""

    def __init__(self, model: HuggingfaceModel, name: str, arguments: dict[str, Any], batch: Batch) -> None:
        """`name` is a key of Inseq's `STEP_SCORES_MAP`, possibly that of a corrected function."""
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
        """Map logits [rows, steps, vocabulary] to values [rows, steps]; `steps` are target positions."""
        rows, count = logits.shape[:2]
        if self._reads is Reads.LOGITS:
            targets = self._targets[steps.start : steps.stop].repeat(rows)
            return self._call(logits.flatten(0, 1), targets, self._batch).reshape(rows, count)
        values = []
        for index, step in enumerate(steps):
            step_logits, target, batch = logits[:, index], self._targets[step].repeat(rows), self._batch[:step]
            if self._reads is Reads.ONE_ROW:
                each_row = [self._call(row[None], target[:1], batch).reshape(1) for row in step_logits]
                values.append(torch.cat(each_row))
            else:
                values.append(self._call(step_logits, target, batch).reshape(rows))
        return torch.stack(values, 1)

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
    """The step scores that a request names, as functions of logits; false where it names none."""

    def __init__(self, model: HuggingfaceModel, names: list[str], arguments: dict[str, Any], batch: Batch) -> None:
        self._model = model
        self._names = names
        self._arguments = arguments
        self._batch = batch

    def __bool__(self) -> bool:
        return bool(self._names)

    def of_steps(self, steps: range, logits: torch.Tensor) -> list[dict[str, torch.Tensor]]:
        """Scores by name for each of these target positions, from logits [steps, vocabulary].

        Each score is a tensor of shape [1] on the CPU, and the candidates' row [1, numbers].
        """
        rowwise, others = dict[str, Sequence[torch.Tensor]](), list[dict[str, torch.Tensor]]()
        with torch.no_grad():
            for name in self._names:
                if _traits_of(name).reads is Reads.LOGITS:
                    targets = self._batch.target_ids[0, steps.start : steps.stop]
                    found = self._score(name, _as_output(logits), targets, self._batch)
                    # [1] for each step; candidates are [1, numbers].
                    rowwise[name] = found.reshape(len(logits), 1, *found.shape[1:]).unbind()
            # All functions of a step before the next step: neighbouring contrastive functions then share a forward.
            for step, row in zip(steps, logits, strict=True):
                others.append({n: self._of_step(n, step, row) for n in self._names if n not in rowwise})
        return [
            {name: rowwise[name][index] if name in rowwise else other[name] for name in self._names}
            for index, other in enumerate(others)
        ]

    def of_span(self, steps: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """The scores of a span from those of its steps: probabilities are multiplied, other scores added up.

        Next-token candidates are those of a step, so a span has none.
        """
        return merged_scores(steps, self._arguments)

    def _of_step(self, name: str, step: int, row: torch.Tensor) -> torch.Tensor:
        # Cutting the batch takes time, so only functions that read the prefix get a cut one.
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


def summed_function(
    function: Callable[..., torch.Tensor], span: range, ids: torch.Tensor
) -> Callable[..., torch.Tensor]:
    """The sum of a step function of logits over a span of target positions, as a function of the span's last step.

    `ids` are those of the target ([length]). The forward has the logits of all positions before that step.
    """

    def summed(args: Any, **arguments: Any) -> torch.Tensor:
        logits = args.forward_output.logits
        values = [
            function(
                replace(
                    args,
                    forward_output=_as_output(logits[:, position - 1]),
                    target_ids=ids[position].to(logits.device).repeat(len(logits)),
                ),
                **arguments,
            )
            for position in span
        ]
        return torch.stack(values).sum(0)

    summed.__name__ = function.__name__
    return summed


def merged_scores(steps: Sequence[dict[str, torch.Tensor]], arguments: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The step scores of several steps as one, by name; `arguments` are those of the step functions."""
    found = {}
    for name in steps[0]:
        if plain_name(name) == next_token.NAME:
            continue
        values = torch.cat([each[name].reshape(1) for each in steps])
        is_product = _traits_of(name).is_multiplied and not arguments.get("logprob")
        found[name] = values.prod(0, keepdim=True) if is_product else values.sum(0, keepdim=True)
    return found


def _traits_of(name: str) -> StepFunctionTraits:
    return traits.of_step_function(plain_name(name))


def _as_output(logits: torch.Tensor) -> SimpleNamespace:
    """Logits [rows, vocabulary] in the shape of a forward's output of one position ([rows, 1, vocabulary])."""
    return SimpleNamespace(logits=logits[:, None])
