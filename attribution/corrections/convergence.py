"""Corrects the convergence deltas of `return_convergence_delta` for the methods where Inseq computes them wrongly."""

from __future__ import annotations

from typing import Any

import torch

from attribution.corrections.registry import Ledger, declare

CONVERGENCE_DELTA = declare(
    "convergence_delta",
    reason="With return_convergence_delta, discretized_integrated_gradients swaps input and baseline, and "
    "gradient_shap returns the delta of its first random sample only.",
    remedy="The delta is the sum of the scores minus f(input) - f(baseline).",
    proof="test_corrections_methods.py::test_convergence_delta",
)
_METHODS = {"discretized_integrated_gradients", "gradient_shap"}


def correct_delta(method_name: str, step_output: Any, delta: float, ledger: Ledger) -> None:
    """Replace the convergence delta in a step's output, where the method has one that Inseq computes wrongly."""
    if method_name in _METHODS and step_output.step_scores and ledger.apply(CONVERGENCE_DELTA):
        step_output.step_scores["deltas"] = torch.tensor([delta])
