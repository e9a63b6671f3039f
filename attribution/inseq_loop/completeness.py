"""Completeness: the scores of a step must sum to f(input) - f(baseline), for the methods that promise it.

Sundararajan et al. 2017 (https://arxiv.org/abs/1703.01365, completeness), Shrikumar et al. 2017
(https://arxiv.org/abs/1704.02685, summation to delta). The difference is Captum's convergence delta. It is measured
with two more forwards of the attributed function for each step.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from inseq.attr.feat import FeatureAttribution
from inseq.models import HuggingfaceModel

from attribution.catalogue import refinement
from attribution.catalogue.inseq_catalogue import Method
from attribution.corrections.convergence import correct_delta
from attribution.corrections.registry import Ledger

# Relative to the size of the scores: above it, a result carries a warning.
LARGE = refinement.TOLERANCE


@dataclass(frozen=True)
class Step:
    """Both sides of the completeness identity for one generated token."""

    total: float  # sum of all scores
    size: float  # sum over tokens of the absolute sum of each one's scores
    at_input: float  # the attributed function of the input
    at_baseline: float

    @property
    def delta(self) -> float:
        """Captum's convergence delta: sum of scores - (f(input) - f(baseline))."""
        return self.total - (self.at_input - self.at_baseline)

    @property
    def relative(self) -> float:
        """The delta relative to the size of the scores, because near f = 0 any rounding would be a multiple of f."""
        return abs(self.delta) / max(self.size, abs(self.at_input - self.at_baseline), 1e-12)


def watch(loaded_method: FeatureAttribution, model: HuggingfaceModel, ledger: Ledger) -> list[Step]:
    """Have a loaded method measure the identity at each of its steps; returns the list that grows with them."""
    steps: list[Step] = []
    attribute_step, method_name = loaded_method.attribute_step, loaded_method.method_name
    function = getattr(loaded_method.method, "forward_func", model)

    def value(inputs: tuple[torch.Tensor, ...], arguments: tuple[Any, ...]) -> float:
        if loaded_method.forward_batch_embeds and loaded_method.attribute_batch_ids:
            inputs = tuple(model.embed_ids(ids, as_targets=index == 1) for index, ids in enumerate(inputs))
        with torch.no_grad():
            return float(function(*inputs, *arguments).float().sum())

    def measured(main: dict[str, Any], arguments: dict[str, Any]) -> Any:
        output = attribute_step(main, arguments)
        scores = [each for each in (output.source_attributions, output.target_attributions) if each is not None]
        at_input, at_baseline = (value(main[name], main["additional_forward_args"]) for name in ("inputs", "baselines"))
        step = step_of(scores, at_input, at_baseline)
        steps.append(step)
        correct_delta(method_name, output, step.delta, ledger)
        return output

    loaded_method.attribute_step = measured
    return steps


def step_of(scores: Iterable[torch.Tensor], at_input: float, at_baseline: float) -> Step:
    """The identity of one step from its scores, each [1, length, width]."""
    by_token = torch.cat([each.detach().double().sum(-1).flatten() for each in scores])
    return Step(float(by_token.sum()), float(by_token.abs().sum()), at_input, at_baseline)


def describe(steps: list[Step]) -> dict[str, list[float]]:
    """One text's identity as plain data: a number for each generated token."""
    return {
        "delta": [step.delta for step in steps],
        "at_input": [step.at_input for step in steps],
        "at_baseline": [step.at_baseline for step in steps],
        "relative": [step.relative for step in steps],
    }


def warning(method: Method, steps: list[Step]) -> str | None:
    """A warning if the scores of some steps do not add up; None if all do."""
    large = [step.relative for step in steps if step.relative > LARGE]
    if not large:
        return None
    return (
        f"The scores of {len(large)} of {len(steps)} tokens do not sum to f(input) - f(baseline): off by up to "
        f"{max(large):.0%} of their size (see info.convergence). {method.traits.completeness_advice}"
    )
