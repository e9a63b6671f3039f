"""A perturbation method on the parts of one text, and its scores at the tokens of these parts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from attribution.catalogue import masked_methods, traits
from attribution.masking.masked_forwards import MaskedForwards
from attribution.single_pass.text_task import StepResult, Task
from attribution.text.segments import Features
from perturbation import Game, Scores, Values

_DIGITS = 6  # of a number in a result's `info`


@dataclass(frozen=True)
class MaskedAttribution:
    """What a method found for the features of one text."""

    task: Task
    features: Features
    forwards: MaskedForwards
    found: Scores

    def results(self) -> Iterator[StepResult]:
        """Each step's scores at the tokens ([1, length]), zero for a token of no feature."""
        scores = _at_tokens(self.features.positions, self.found.scores, self.task.inputs[0].shape[1])
        for index in range(self.task.count):
            yield self.task.result(index, (scores[:, index][None],), self.forwards.unmasked, None)

    def describe(self, steps: int) -> dict[str, Any]:
        """For a result's `info`: what was masked, how often, the values, and how sure the scores are.

        Numbers are by step, those of features [features][steps]; of the first `steps` steps.
        """
        features, found, segments = self.features, self.found, self.features.names is not None

        def numbers(values: Values | None) -> Any:
            return None if values is None else _numbers(values[..., :steps])

        return {
            "features": features.kind,
            **({"names": features.names} if segments else {"positions": [at for (at,) in features.positions]}),
            "rows": self.forwards.rows,
            "is_exact": found.is_exact,
            "at_all": numbers(self.forwards.at_all),
            "at_none": numbers(found.at_none),
            **({"scores": numbers(found.scores)} if segments else {}),
            "standard_errors": numbers(found.standard_errors),
        }


def attribute(name: str, task: Task, features: Features, arguments: dict[str, Any], seed: int) -> MaskedAttribution:
    """Run the perturbation method of this name on a text's features. Raises what `task.report_progress` raises."""
    if task.is_signed:
        name = traits.of_method(name).with_sign or name
    forwards = MaskedForwards(task, features.positions)
    width = task.inputs[0].shape[-1]  # Inseq's LIME counts the entries of embeddings
    sizes = [width * len(each) for each in features.positions]
    game = Game(
        forwards,
        len(features.positions),
        forwards.rows_at_once,
        on_progress=lambda done, total: task.report_progress(done / total),
        sizes=sizes,
        rest=width * task.rows_length - sum(sizes),
    )
    return MaskedAttribution(
        task, features, forwards, masked_methods.implementation(name).run(game, seed=seed, **arguments)
    )


def _at_tokens(features: Sequence[Sequence[int]], scores: Values, length: int) -> torch.Tensor:
    """The score of each feature ([features, steps]) divided equally among its tokens: [length, steps]."""
    divided: Values = np.zeros((length, scores.shape[1]))
    for positions, row in zip(features, scores, strict=True):
        divided[list(positions)] = row / len(positions)
    return torch.from_numpy(divided).float()


def _numbers(values: Values) -> Any:
    """Nested lists of numbers with six digits, None for NaN."""
    if values.ndim > 1:
        return [_numbers(each) for each in values]
    return [None if math.isnan(each) else float(f"{each:.{_DIGITS}g}") for each in values]
