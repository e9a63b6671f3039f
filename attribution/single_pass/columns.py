"""What a text's scores are for: each column is the attributed function of a step, or a sum of it over several steps.

A sum has the gradient of the sum: one backward pass, however many steps it adds up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch


@dataclass(frozen=True)
class Columns:
    """Sums over steps: F of a column is the sum of its weights times the attributed function of the steps."""

    weights: torch.Tensor  # [columns, steps], float64, on the CPU
    ends: tuple[int, ...]  # of each column, the target position behind its last step

    @classmethod
    def of_spans(cls, spans: Sequence[range], steps: range) -> Self:
        """A column for each span of target positions, with equal weights for all of its steps."""
        weights = torch.zeros((len(spans), len(steps)), dtype=torch.float64)
        for column, span in enumerate(spans):
            weights[column, span.start - steps.start : span.stop - steps.start] = 1
        return cls(weights, tuple(span.stop for span in spans))

    def __len__(self) -> int:
        return len(self.ends)

    def summed(self, values: torch.Tensor) -> torch.Tensor:
        """Values of the steps ([..., steps]) as those of the columns ([..., columns])."""
        return values @ self.weights.to(values).T

    def cotangents(self, gradients: torch.Tensor, chosen: range, first: int = 0) -> torch.Tensor:
        """The gradients of some columns ([chosen, rows, steps, width]), from those of the steps ([rows, steps, width]);
        `first` is the number of the first of these steps.
        """
        weights = self.weights[chosen.start : chosen.stop, first : first + gradients.shape[1]].to(gradients)
        return weights[:, None, :, None] * gradients
