"""Corrected versions of step functions that fail or are wrong in Inseq, registered under names of ours."""

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
    reason="crossentropy and perplexity fail for a single sequence, because its target has no batch dimension.",
    remedy="The batch dimension is restored.",
    proof="test_corrections.py::test_crossentropy_of_one_sequence",
)
DROPOUT = declare(
    "mc_dropout_restores_eval",
    reason="mc_dropout_prob_avg leaves the model in train mode: every later probability is random.",
    remedy="The model is returned to eval mode.",
    proof="test_corrections.py::test_dropout_scores_leave_the_next_step_alone",
)
CONTRAST_ROWS = declare(
    "contrast_expanded_rows",
    reason="Contrastive functions fail with methods that repeat the input along the batch, such as integrated "
    "gradients: the contrast keeps a single row.",
    remedy="The contrast is repeated for each row of the input.",
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
# Inseq looks step functions up by name in a table that is global to the process. We add corrected copies once, at
# import, under names with our prefix. Inseq's own entries are not replaced: `corrections: false` still finds them.
for _name, (_, _correct) in _CORRECTED.items():
    inseq.register_step_function(_correct(STEP_SCORES_MAP[_name]), _PREFIX + _name, overwrite=True)
for _name in _CONTRASTIVE:
    inseq.register_step_function(_as_many_contrasts_as_rows(STEP_SCORES_MAP[_name]), _PREFIX + _name, overwrite=True)


def is_corrected_name(name: str) -> bool:
    """Whether a name in Inseq's table of step functions is one of ours; requests use Inseq's own names."""
    return name.startswith(_PREFIX)


def corrected_step_function(name: str, ledger: Ledger, *, repeats_rows: bool = False) -> str:
    """The name of the function to use in Inseq's table: a corrected one if this function needs it.

    `repeats_rows`: the method that attributes the function repeats its input along the batch.
    """
    if name in _CORRECTED and ledger.apply(_CORRECTED[name][0]):
        return _PREFIX + name
    if repeats_rows and name in _CONTRASTIVE and ledger.apply(CONTRAST_ROWS):
        return _PREFIX + name
    return name


def plain_name(name: str) -> str:
    """Inseq's own name of a function, without our prefix."""
    return name.removeprefix(_PREFIX)


def repeating_contrast(name: str) -> StepFunction:
    """The corrected contrastive function of this name, which accepts several rows."""
    function: StepFunction = STEP_SCORES_MAP[_PREFIX + name]
    return function
