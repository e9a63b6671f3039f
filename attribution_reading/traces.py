"""Traces: which tokens of the input led to an answer through the tokens that were generated before it.

Each generated token divides itself among the tokens before it, by its absolute scores. So read, a text is a Markov
chain that goes back from the answer. Tokens of the input absorb it, and tokens of the reasoning pass it on, one hop
each. With e, what the answer passes to the reasoning (Q within it, B from it to the input), k hops bring the input what
the answer brings it at once, and e (I + Q + ... + Q^(k-1)) B; all hops bring e (I - Q)^-1 B (Kemeny and Snell, Finite
Markov Chains, 1960, chapter 3). Q is strictly triangular, so that this is exact and ends.

All of it is about shares of attribution scores, and not about causes. Signs are lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attribution_reading.scored_sequence import Scores

Numbers = NDArray[np.float64]
LISTED_HOPS = 64  # single hops that are kept
UNLISTED = 1e-9  # mass that is too small to keep single hops for


@dataclass(frozen=True)
class Shares:
    """The share of each generated token that falls on each token before it.

    rows: [generated, inputs + generated], the input's tokens first; each row sums to 1, or to 0 where it has no score.
    inputs: how many tokens were there before the first generated one. invalid: how many scores were no numbers.
    """

    rows: Numbers
    inputs: int
    invalid: int = 0


@dataclass(frozen=True)
class Hop:
    """What one hop brings: to the input [inputs], to other tokens [generated], and to the reasoning [reasoning]."""

    scores: Numbers
    elsewhere: Numbers
    reasoning: Numbers


@dataclass(frozen=True)
class TracedMass:
    """Where the mass 1 of an answer comes to rest: `scores`, `elsewhere` and `left` together are 1.

    scores: [inputs]. elsewhere: [generated], on tokens that are neither of the answer nor of the reasoning, and on
    those that have no scores to pass it on by. left: [reasoning], what further hops would pass on. reasoning:
    [reasoning], what reached each token of it in all hops. hops: the first of them. unlisted: what the hops that are
    not kept bring.
    """

    scores: Numbers
    elsewhere: Numbers
    left: Numbers
    reasoning: Numbers
    hops: list[Hop]
    unlisted: float


def shares_of(
    scores: Mapping[str, Scores], start: int, dropped: Mapping[str, NDArray[np.bool_]] | None = None
) -> Shares:
    """Return the shares of a sequence's scores, by side [attributed, generated].

    start: the target position of the first generated token; the input is the source, and the target before it. A
    token's score for itself, which a unit of several tokens can have, counts as none: to pass through itself is no hop.
    dropped: by side [attributed], the tokens that get no share, such as those of a chat template.
    """
    generated = next(iter(scores.values())).shape[1]
    source, target = (_all_rows(scores, side, dropped) for side in ("source", "target"))
    inputs = np.concatenate([each[:rows] for each, rows in ((source, None), (target, start)) if each is not None])
    sizes = np.zeros((len(inputs) + generated, generated))
    sizes[: len(inputs)] = inputs
    if target is not None:
        before = target[start : start + generated]
        later = np.arange(len(before))[:, None] >= np.arange(generated)
        sizes[len(inputs) : len(inputs) + len(before)] = np.where(later, 0.0, before)
    is_invalid = ~np.isfinite(sizes)
    sizes[is_invalid] = 0.0
    sums = sizes.sum(axis=0)
    return Shares((sizes / np.where(sums > 0, sums, 1.0)).T, len(inputs), int(is_invalid.sum()))


def _all_rows(
    scores: Mapping[str, Scores], side: str, dropped: Mapping[str, NDArray[np.bool_]] | None
) -> Numbers | None:
    """The absolute scores of a side, and 0 for its dropped tokens; None for a side without."""
    if side not in scores:
        return None
    found = np.abs(scores[side].astype(np.float64))
    if dropped is not None:
        found[dropped[side][: len(found)]] = 0.0
    return found


def trace(shares: Shares, answer: range, reasoning: range, max_hops: int | None = None) -> TracedMass:
    """Follow an answer back to the input, through the reasoning at most `max_hops` times; None is all times.

    `answer` and `reasoning` are indices of generated tokens, the reasoning before the answer. The mass 1 is divided
    equally among the tokens of the answer. What one of them gives to an earlier one is passed on at once and is no hop,
    so that the answer is one thing, which rests on what is outside of it.
    """
    at_once = _Step.of(shares, answer)
    onward = _Step.of(shares, reasoning)
    weights = _passed(np.full(len(answer), 1 / len(answer)), at_once.within)
    here = _columns(shares, reasoning)
    landed = weights @ shares.rows[answer]
    reached = landed[here]
    first = Hop(landed[: shares.inputs], _elsewhere(landed, weights, at_once, shares, (answer, reasoning)), reached)
    hops, passed, left = _hops(shares, onward, first, max_hops)
    if max_hops is None:
        passed, left = _passed(reached, onward.within), np.zeros(len(reasoning))
    landed = passed @ shares.rows[reasoning]
    scores = first.scores + landed[: shares.inputs]
    elsewhere = first.elsewhere + _elsewhere(landed, passed, onward, shares, (reasoning,))
    listed = sum(float(each.scores.sum() + each.elsewhere.sum()) for each in hops)
    unlisted = max(0.0, float(scores.sum() + elsewhere.sum()) - listed)
    return TracedMass(scores, elsewhere, left, passed + left, hops, unlisted if unlisted > 1e-12 else 0.0)  # noqa: PLR2004


@dataclass(frozen=True)
class _Step:
    """How tokens pass on: [tokens, tokens] among each other, and which of them pass nothing on."""

    tokens: range
    within: Numbers
    is_end: NDArray[np.bool_]

    @classmethod
    def of(cls, shares: Shares, tokens: range) -> _Step:
        rows = shares.rows[tokens]
        return cls(tokens, rows[:, _columns(shares, tokens)], rows.sum(axis=1) == 0)


def _columns(shares: Shares, tokens: range) -> slice:
    return slice(shares.inputs + tokens.start, shares.inputs + tokens.stop)


def _passed(arriving: Numbers, within: Numbers) -> Numbers:
    """Return arriving (I - within)^-1, by substitution: what comes to each token directly and by way of later ones."""
    passed = arriving.copy()
    for token in range(len(passed) - 1, 0, -1):
        passed[:token] += passed[token] * within[token, :token]
    return passed


def _elsewhere(landed: Numbers, weights: Numbers, step: _Step, shares: Shares, passing: tuple[range, ...]) -> Numbers:
    """The part of what landed that no token of `passing` passes on, and what is held by tokens without scores."""
    found = landed[shares.inputs :].copy()
    for tokens in passing:
        found[tokens] = 0.0
    found[step.tokens] += np.where(step.is_end, weights, 0.0)
    return found


def _hops(shares: Shares, onward: _Step, first: Hop, max_hops: int | None) -> tuple[list[Hop], Numbers, Numbers]:
    """The first hops one by one; what reached each token of the reasoning before the last hop, and what is left there.

    Without a limit it ends where no more hops are kept.
    """
    hops, passed, left = [first], np.zeros(len(onward.tokens)), first.reasoning
    for hop in range(1, min(len(onward.tokens), LISTED_HOPS if max_hops is None else max_hops) + 1):
        is_kept = hop < LISTED_HOPS and left.sum() > UNLISTED
        if not is_kept and (max_hops is None or not left.any()):
            break
        passed = passed + left
        if is_kept:
            landed = left @ shares.rows[onward.tokens]
            elsewhere = _elsewhere(landed, left, onward, shares, (onward.tokens,))
            hops.append(Hop(landed[: shares.inputs], elsewhere, landed[_columns(shares, onward.tokens)]))
        left = left @ onward.within
    return hops, passed, left
