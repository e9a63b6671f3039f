"""Step functions that Inseq computes wrongly, or that fail: registered beside its own, under names of ours."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import inseq
import torch
from inseq.attr.step_functions import STEP_SCORES_MAP, is_contrastive_step_function

from attribution.corrections.registry import Correction, Ledger, declare

StepFunction = Callable[..., torch.Tensor]
_PREFIX = "corrected:"

CROSSENTROPY = declare(
    "crossentropy_single_sequence",
    reason="crossentropy and perplexity fail for a single sequence: its target has lost the batch dimension.",
    remedy="The target gets its dimension back.",
    proof="test_corrections.py::test_crossentropy_of_one_sequence",
)
DROPOUT = declare(
    "mc_dropout_restores_eval",
    reason="mc_dropout_prob_avg leaves the model in train mode: every later probability is random.",
    remedy="The model goes back to eval mode.",
    proof="test_corrections.py::test_dropout_scores_leave_the_next_step_alone",
)
CONTRAST_ROWS = declare(
    "contrast_expanded_rows",
    reason="Contrastive functions fail with methods that repeat the input along the batch, as integrated gradients "
    "does: the contrast stays one row.",
    remedy="The contrast is repeated as the input is.",
    proof="test_corrections.py::test_contrastive_function_with_integrated_gradients",
)


def _one_target_per_row(function: StepFunction) -> StepFunction:
    @functools.wraps(function)
    def corrected(args: Any, **kwargs: Any) -> torch.Tensor:
        args.target_ids = args.target_ids.reshape(-1)
        return function(args, **kwargs).reshape(-1)

    return corrected


def _back_to_eval(function: StepFunction) -> StepFunction:
    @functools.wraps(function)
    def corrected(args: Any, **kwargs: Any) -> torch.Tensor:
        try:
            return function(args, **kwargs)
        finally:
            args.attribution_model.eval()

    return corrected


def _as_many_contrasts_as_rows(function: StepFunction) -> StepFunction:
    @functools.wraps(function)
    def corrected(args: Any, **kwargs: Any) -> torch.Tensor:
        rows = args.decoder_input_ids.shape[0]
        for name in ("contrast_sources", "contrast_targets"):
            if rows > 1 and isinstance(kwargs.get(name), str):
                kwargs[name] = [kwargs[name]] * rows
        return function(args, **kwargs)

    return corrected


_CORRECTED: dict[str, tuple[Correction, Callable[[StepFunction], StepFunction]]] = {
    "crossentropy": (CROSSENTROPY, _one_target_per_row),
    "perplexity": (CROSSENTROPY, _one_target_per_row),
    "mc_dropout_prob_avg": (DROPOUT, _back_to_eval),
}
_CONTRASTIVE = [name for name in STEP_SCORES_MAP if is_contrastive_step_function(name)]
for _name, (_, _correct) in _CORRECTED.items():
    # Under a name of ours, so that Inseq's own stays what it is.
    inseq.register_step_function(_correct(STEP_SCORES_MAP[_name]), _PREFIX + _name, overwrite=True)
for _name in _CONTRASTIVE:
    inseq.register_step_function(_as_many_contrasts_as_rows(STEP_SCORES_MAP[_name]), _PREFIX + _name, overwrite=True)


def is_ours(name: str) -> bool:
    """Whether a name in Inseq's table of step functions is a corrected one, which nobody asks for by that name."""
    return name.startswith(_PREFIX)


def corrected_step_function(name: str, ledger: Ledger, *, repeats_rows: bool = False) -> str:
    """The name under which Inseq finds the function as it should be. `repeats_rows`: the method that attributes it
    repeats its input along the batch.
    """
    if name in _CORRECTED and ledger.apply(_CORRECTED[name][0]):
        return _PREFIX + name
    if repeats_rows and name in _CONTRASTIVE and ledger.apply(CONTRAST_ROWS):
        return _PREFIX + name
    return name


def plain_name(name: str) -> str:
    """Inseq's own name of a function that may be a corrected one."""
    return name.removeprefix(_PREFIX)


def repeating_contrast(name: str) -> StepFunction:
    """A contrastive function that takes several rows at once."""
    function: StepFunction = STEP_SCORES_MAP[_PREFIX + name]
    return function
