"""ReAGent with forwards of those probes only that still run, and of equal ones once.

Inseq runs all probes until the last one stops, although a stopped one's scores no longer change, and begins with a
forward of as many copies of the text as there are probes.
"""

from __future__ import annotations

from typing import Any

import torch
from inseq.attr.feat import FeatureAttribution


def lean_reagent(method: FeatureAttribution) -> None:
    """Have a loaded `reagent` run its forwards so. Random numbers are drawn for all probes, in Inseq's order."""
    evaluator = method.method.rationalizer.importance_score_evaluator
    running = _RunningProbes(evaluator.model, evaluator)
    evaluator.model = evaluator.stopping_condition_evaluator.model = running


class _RunningProbes:
    """Stands for the network in Inseq's evaluators, which read the logits of the last position alone."""

    def __init__(self, network: torch.nn.Module, evaluator: Any) -> None:
        self._network = network
        self._evaluator = evaluator

    @torch.no_grad()
    def __call__(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """Last logits [probes, 1, vocabulary] of ids [probes, length]; zeros for a probe that has stopped."""
        (running,) = (~self._evaluator.stop_mask).nonzero(as_tuple=True)
        distinct, places = torch.unique(input_ids[running], dim=0, return_inverse=True)
        logits = self._network(distinct).logits[:, -1:]
        found = logits.new_zeros((len(input_ids), *logits.shape[1:]))
        # Inseq multiplies what follows from zeros by zero.
        found[running] = logits[places]
        return {"logits": found}
