"""How far two methods agree on the tokens that matter: rank correlations, and the overlap of the largest scores.

All of it is about absolute scores, computed for each generated token over the attributed tokens for which both methods
have a finite score, and then averaged over generated tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from scipy.stats import kendalltau, spearmanr

from attribution_reading.scored_sequence import SIDES, ScoredSequence, Scores

TOP = 3  # the default `k` of `top_overlap`


def absolute_scores(sequence: ScoredSequence) -> Scores | None:
    """Return absolute scores, `[attributed, generated]`, the source's rows above the target's.

    None where there are none, or where they have further dimensions.
    """
    sides = [sequence.scores[side] for side in SIDES if side in sequence.scores]
    if not sides or any(each.ndim != 2 for each in sides):  # noqa: PLR2004 - a matrix
        return None
    return np.concatenate([np.abs(each) for each in sides])


def spearman(a: Scores, b: Scores) -> float | None:
    """Return the mean of Spearman's rank correlation of two methods' absolute scores, `[attributed, generated]`.

    A generated token counts if neither method gives all its attributed tokens the same score, which leaves no ranks to
    correlate. None where no generated token counts, and where the shapes differ.
    """
    return _mean(a, b, lambda x, y: float(spearmanr(x, y).statistic) if _has_ranks(x, y) else None)


def kendall(a: Scores, b: Scores) -> float | None:
    """Return the mean of Kendall's tau-b of two methods' absolute scores; generated tokens count as in `spearman`."""
    return _mean(a, b, lambda x, y: float(kendalltau(x, y).statistic) if _has_ranks(x, y) else None)


def top_overlap(a: Scores, b: Scores, k: int = TOP) -> float | None:
    """Return the mean share of the `k` largest absolute scores, `[attributed, generated]`, that two methods share.

    A generated token counts if it has more than `k` attributed tokens: of `k` or fewer all are in both sets, so that
    the share would be 1 whatever the methods say. Of equal scores the earlier token is in the set. None where no
    generated token counts, and where the shapes differ.
    """

    def overlap(x: Scores, y: Scores) -> float | None:
        if len(x) <= k:
            return None
        first, second = (set(np.argsort(-each, kind="stable")[:k].tolist()) for each in (x, y))
        return len(first & second) / k

    return _mean(a, b, overlap)


def _mean(a: Scores, b: Scores, measure: Callable[[Scores, Scores], float | None]) -> float | None:
    """Return the mean over generated tokens of a measure, without those for which it is None."""
    values = [value for x, y in _pairs(a, b) if (value := measure(x, y)) is not None]
    return float(np.mean(values)) if values else None


def _pairs(a: Scores, b: Scores) -> Iterator[tuple[Scores, Scores]]:
    """Yield the scores of each generated token, `[attributed]`, where both are finite; nothing for unequal shapes."""
    if a.shape == b.shape:
        for x, y in zip(a.T, b.T, strict=True):
            both = np.isfinite(x) & np.isfinite(y)
            yield x[both], y[both]


def _has_ranks(x: Scores, y: Scores) -> bool:
    return len(x) > 1 and bool(np.ptp(x) > 0 and np.ptp(y) > 0)
