"""Corrected versions of step functions that fail or are wrong in Inseq, registered under names of ours."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import inseq
import torch
from inseq.attr.step_functions import STEP_SCORES_MAP, is_contrastive_step_function
from inseq.utils import filter_logits
from inseq.utils.contrast_utils import _get_contrast_inputs

from attribution import network_state
from attribution.corrections.registry import Correction, Ledger, declare
from problems import UnsupportedByModel

StepFunction = Callable[..., torch.Tensor]
_PREFIX = "corrected:"
NO_DROPOUT = (
    "mc_dropout_prob_avg compares forwards with dropout, and this model has none: its value would be rounding noise. "
    "Leave it out."
)

CROSSENTROPY = declare(
    "crossentropy_single_sequence",
    reason="crossentropy and perplexity fail for a single sequence, because its target has no batch dimension.",
    remedy="The batch dimension is restored.",
    proof="test_corrections.py::test_crossentropy_of_one_sequence",
)
PERPLEXITY = declare(
    "perplexity_of_nats",
    reason="perplexity is 2 to the power of a cross-entropy in nats, so it is too small.",
    remedy="It is e to the power of the cross-entropy: 1 / probability.",
    proof="test_step_functions.py::test_perplexity",
)
KEPT_TOKENS = declare(
    "kl_divergence_of_kept_tokens",
    reason="With top_k or top_p, kl_divergence is NaN: it adds 0 * (inf - inf) for each token that they leave out.",
    remedy="Tokens that are left out add nothing.",
    proof="test_step_functions.py::test_kl_divergence_of_kept_tokens",
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
        model = args.attribution_model
        try:
            with _logits_of_forwards(model) as samples:
                found = function(args, **kwargs)
        finally:
            network_state.end(model.model)  # a cancelled forward did not set this mode
            model.eval()
        if all(torch.equal(samples[0], each) for each in samples):
            raise UnsupportedByModel(NO_DROPOUT)
        return found

    return corrected


@contextmanager
def _logits_of_forwards(model: Any) -> Iterator[list[torch.Tensor]]:
    """Yield a list to which each forward within the block adds its last position's logits ([rows, vocabulary])."""
    run, is_own = model.get_forward_output, "get_forward_output" in vars(model)
    logits: list[torch.Tensor] = []

    def get_forward_output(*arguments: Any, **more: Any) -> Any:
        output = run(*arguments, **more)
        logits.append(model.output2logits(output).detach())
        return output

    model.get_forward_output = get_forward_output
    try:
        yield logits
    finally:
        if is_own:
            model.get_forward_output = run
        else:
            del model.get_forward_output


def _as_many_contrasts_as_rows(function: StepFunction) -> StepFunction:
    @functools.wraps(function)
    def corrected(args: Any, **kwargs: Any) -> torch.Tensor:
        rows = args.decoder_input_ids.shape[0]
        for name in ("contrast_sources", "contrast_targets"):
            if rows > 1 and isinstance(kwargs.get(name), str):
                kwargs[name] = [kwargs[name]] * rows
        return function(args, **kwargs)

    return corrected


def _power_of_e(function: StepFunction) -> StepFunction:
    crossentropy = _one_target_per_row(STEP_SCORES_MAP["crossentropy"])

    @functools.wraps(function)
    def corrected(args: Any, **kwargs: Any) -> torch.Tensor:
        return crossentropy(args, **kwargs).exp()

    return corrected


def _of_kept_tokens(function: StepFunction) -> StepFunction:
    @functools.wraps(function)
    def corrected(
        args: Any, *, top_k: int = 0, top_p: float = 1.0, min_tokens_to_keep: int = 1, **kwargs: Any
    ) -> torch.Tensor:
        if not _leaves_tokens_out({"top_k": top_k, "top_p": top_p}):
            return function(args, **kwargs)
        model = args.attribution_model
        logits = model.output2logits(args.forward_output)
        kwargs.pop("contrast_force_inputs", None)
        batch = _get_contrast_inputs(args, return_contrastive_batch=True, **kwargs).batch
        output = model.get_forward_output(batch, use_embeddings=model.is_encoder_decoder)
        found = filter_logits(
            logits,
            model.output2logits(output).to(logits.device),
            top_p=top_p,
            top_k=top_k,
            min_tokens_to_keep=min_tokens_to_keep,
        )
        ours, others = (each.log_softmax(-1) for each in found)
        # The same tokens are left out of both.
        terms = torch.where(ours.isinf(), torch.zeros_like(ours), ours.exp() * (ours - others))
        return terms.sum(-1)

    return corrected


def _leaves_tokens_out(arguments: Mapping[str, Any]) -> bool:
    return bool(arguments.get("top_k")) or (arguments.get("top_p") or 1.0) < 1


@dataclass(frozen=True)
class _Corrected:
    """A function's corrections, and whether they concern a call with these arguments."""

    corrections: tuple[Correction, ...]
    correct: Callable[[StepFunction], StepFunction]
    concerns: Callable[[Mapping[str, Any]], bool] = lambda _: True


_CORRECTED = {
    "crossentropy": _Corrected((CROSSENTROPY,), _one_target_per_row),
    "perplexity": _Corrected((CROSSENTROPY, PERPLEXITY), _power_of_e),
    "kl_divergence": _Corrected((KEPT_TOKENS,), _of_kept_tokens, _leaves_tokens_out),
    "mc_dropout_prob_avg": _Corrected((DROPOUT,), _back_to_eval),
}
_CONTRASTIVE = [name for name in STEP_SCORES_MAP if is_contrastive_step_function(name)]
# Inseq looks step functions up by name in a table that is global to the process. We add corrected copies once, at
# import, under names with our prefix. Inseq's own entries are not replaced: `corrections: false` still finds them.
for _name in dict.fromkeys([*_CORRECTED, *_CONTRASTIVE]):
    _function = STEP_SCORES_MAP[_name]
    if _name in _CORRECTED:
        _function = _CORRECTED[_name].correct(_function)
    if _name in _CONTRASTIVE:
        _function = _as_many_contrasts_as_rows(_function)
    inseq.register_step_function(_function, _PREFIX + _name, overwrite=True)


def is_corrected_name(name: str) -> bool:
    """Whether a name in Inseq's table of step functions is one of ours; requests use Inseq's own names."""
    return name.startswith(_PREFIX)


def corrected_step_function(
    name: str, ledger: Ledger, arguments: Mapping[str, Any], *, repeats_rows: bool = False
) -> str:
    """The name of the function to use in Inseq's table: a corrected one if this function needs it.

    `arguments` are those that the request gives it. `repeats_rows`: the method that attributes the function repeats its
    input along the batch.
    """
    met: list[Correction] = []
    if name in _CORRECTED and _CORRECTED[name].concerns(arguments):
        met += _CORRECTED[name].corrections
    if repeats_rows and name in _CONTRASTIVE:
        met.append(CONTRAST_ROWS)
    applied = [ledger.apply(each) for each in met]
    return _PREFIX + name if any(applied) else name


def plain_name(name: str) -> str:
    """Inseq's own name of a function, without our prefix."""
    return name.removeprefix(_PREFIX)


def repeating_contrast(name: str) -> StepFunction:
    """The corrected contrastive function of this name, which accepts several rows."""
    function: StepFunction = STEP_SCORES_MAP[_PREFIX + name]
    return function
