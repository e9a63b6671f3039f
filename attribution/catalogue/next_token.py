"""The likeliest next tokens of each step, computed where the step scores are, and from the same logits.

A step score is one number for each step. The candidates are a row of numbers, from a function in Inseq's table of step
functions under a name with a colon, which no request can give. So they take every way that step scores take, through
Inseq's loop and through the single pass, and a way that has the logits already runs no forward for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import inseq
import numpy as np
import torch

from models import AttributionRequest, Engine

NAME = "service:next_token_candidates"
LOG_PROBABILITY = "service:log_probability"  # of each token, in the same way: a span's is their sum
OWN = frozenset({NAME, LOG_PROBABILITY})
MOST = 20  # candidates that a request may ask for
_OWN = 3  # numbers about the step's own token, which precede those of the candidates


@dataclass(frozen=True)
class Candidate:
    """A token that might stand at a step."""

    token_id: int
    probability: float
    rank: int  # 1 for the likeliest; of two equally likely ones, the smaller id is first
    chosen: bool  # it is the token that stands there


def scored_names(request: AttributionRequest) -> list[str]:
    """The functions to compute at each step: the step scores, the candidates where the request wants some, and the
    log-probability for spans.

    Without corrections, nothing of ours runs.
    """
    if request.attributes_spans and request.trace is not None:
        return []  # a hop is a weighted sum of tokens
    own = ([NAME] if request.candidates and request.corrections else []) + (
        [LOG_PROBABILITY] if request.attributes_spans else []
    )
    return [*request.step_scores, *own]


def of_scores(request: AttributionRequest) -> AttributionRequest:
    """The request by whose engine step scores are computed: candidates alone are none of the numbers that a request may
    want from Inseq's own loop.
    """
    if request.step_scores or request.engine != Engine.INSEQ:
        return request
    return request.model_copy(update={"engine": Engine.AUTO})


def without_own(scores: dict[str, torch.Tensor] | None) -> dict[str, torch.Tensor]:
    """The step scores that the request names."""
    return {name: values for name, values in (scores or {}).items() if name not in OWN}


def read(row: torch.Tensor, most: int) -> list[Candidate]:
    """The candidates in a row that `_next_token_candidates` wrote, likeliest first.

    The chosen token is among them, last if it is not among the `most` likeliest. Tokens without a probability are left
    out, unless chosen.
    """
    own_id, own_probability, own_rank, *rest = row.tolist()
    chosen = Candidate(int(own_id), _shortest(own_probability), int(own_rank), chosen=True)
    found = []
    for rank, (token_id, probability) in enumerate(zip(rest[: len(rest) // 2], rest[len(rest) // 2 :], strict=True), 1):
        if token_id >= 0 and rank <= most:
            found.append(Candidate(int(token_id), _shortest(probability), rank, int(token_id) == chosen.token_id))
    return found if any(each.chosen for each in found) else [*found, chosen]


def _shortest(number: float) -> float:
    """A float32 as the shortest decimal number that is read as it, as step scores are written."""
    return float(str(np.float32(number)))


def _next_token_candidates(args: Any) -> torch.Tensor:
    """Write a row for each row of logits ([rows, 3 + 2 * MOST], float64, on the CPU).

    The target's id, probability and rank, then the ids of the likeliest tokens and their probabilities (-1 where the
    vocabulary has no more). Probabilities are Inseq's own (`probability_fn`): a softmax in the dtype of the logits.
    """
    logits = args.attribution_model.output2logits(args.forward_output).detach()
    targets = args.target_ids.reshape(-1, 1).to(logits.device)
    probabilities = logits.softmax(-1)
    # A token without a number is behind all others, and is none of the candidates.
    keys = logits.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    own = keys.gather(-1, targets)
    ids = torch.arange(keys.shape[-1], device=keys.device)
    ranks = 1 + ((keys > own) | ((keys == own) & (ids < targets))).sum(-1, keepdim=True)
    likeliest = _likeliest(keys, min(MOST, keys.shape[-1]))
    numbers = torch.full((len(keys), _OWN + 2 * MOST), -1.0, dtype=torch.float64)
    numbers[:, 0], numbers[:, 2] = targets[:, 0].cpu(), ranks[:, 0].cpu()
    numbers[:, 1] = probabilities.gather(-1, targets)[:, 0].cpu()
    count = likeliest.shape[-1]
    has_number = keys.gather(-1, likeliest).isfinite().cpu()
    numbers[:, _OWN : _OWN + count] = torch.where(has_number, likeliest.cpu(), -1).to(numbers.dtype)
    numbers[:, _OWN + MOST : _OWN + MOST + count] = probabilities.gather(-1, likeliest).cpu().to(numbers.dtype)
    return numbers


def _likeliest(keys: torch.Tensor, count: int) -> torch.Tensor:
    """The ids of the `count` largest of each row, largest first; of equal ones, the smaller id is first.

    In bfloat16 many logits are equal, and `topk` takes any of them.
    """
    least = keys.topk(count, -1).values[:, -1:]
    rows = []
    for row, at_least in zip(keys, least, strict=True):
        reached = (row >= at_least).nonzero()[:, 0]  # ids in order, a few more than `count` where some are equal
        rows.append(reached[row[reached].sort(descending=True, stable=True).indices[:count]])
    return torch.stack(rows)


def _log_probability(args: Any) -> torch.Tensor:
    """The logarithm of the target's probability, for each row of logits ([rows])."""
    logits = args.attribution_model.output2logits(args.forward_output).detach()
    targets = args.target_ids.reshape(-1, 1).to(logits.device)
    exact = torch.promote_types(logits.dtype, torch.float32)
    found: torch.Tensor = logits.to(exact).log_softmax(-1).gather(-1, targets)[:, 0]
    return found.double().cpu()


inseq.register_step_function(_log_probability, LOG_PROBABILITY, overwrite=True)
inseq.register_step_function(_next_token_candidates, NAME, overwrite=True)
