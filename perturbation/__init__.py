"""Attribution by perturbation: which parts of a text to mask, and what to make of the answers.

A method asks a function `masks -> values` and never learns who answers: this machine's forwards, or calls to a served
model. NumPy and scikit-learn only: no torch, no HTTP.
"""

from __future__ import annotations

from perturbation.banzhaf import banzhaf, banzhaf_rows
from perturbation.game import Game, Masks, Scores, Values
from perturbation.leave_one_out import leave_one_out, leave_one_out_rows
from perturbation.lime import lime, lime_rows
from perturbation.method import PerturbationMethod
from perturbation.occlusion import occlusion
from perturbation.shapley import shapley, shapley_rows

METHODS = {
    "banzhaf": PerturbationMethod(banzhaf, banzhaf_rows),
    "leave_one_out": PerturbationMethod(leave_one_out, leave_one_out_rows),
    "shapley": PerturbationMethod(shapley, shapley_rows),
}
# Those that mask single tokens elsewhere, by their own rules; here they mask larger features.
OF_SEGMENTS = {
    "lime": PerturbationMethod(lime, lime_rows),
    "occlusion": PerturbationMethod(occlusion, leave_one_out_rows),
}

__all__ = ["METHODS", "OF_SEGMENTS", "Game", "Masks", "PerturbationMethod", "Scores", "Values"]
