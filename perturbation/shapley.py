"""Shapley values: each feature's mean marginal value over all orders in which the features may be added."""

from __future__ import annotations

from collections.abc import Iterator
from math import comb
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from perturbation.game import MOST_EXACT, Game, Masks, Scores, Values, all_subsets

Sampling = Literal["antithetic", "plain"]


def shapley(game: Game, *, n_samples: int = 32, sampling: Sampling = "antithetic", seed: int = 0) -> Scores:
    """Shapley values (Shapley, 1953, https://doi.org/10.1515/9781400881970-018): they sum to v(all) - v(none).

    Up to 10 features they are exact, from all subsets. Beyond, they are means over `n_samples` random orders of the
    features (Castro, Gomez and Tejada, 2009, https://doi.org/10.1016/j.cor.2008.04.004), with standard errors. Each
    order's values sum to v(all) - v(none), and so do their means. `sampling`: "antithetic" takes each order and its
    reverse (Mitchell et al., 2022, https://arxiv.org/abs/2104.12199), and rounds an odd number of them up; "plain"
    draws each by itself. With a single sample, or a single pair, the standard errors are NaN.
    """
    if game.features <= MOST_EXACT:
        return _exact(game)
    ends = np.stack([np.ones(game.features, bool), np.zeros(game.features, bool)])
    count = _orders(n_samples, sampling)
    orders = _drawn(game.features, count, sampling, seed)
    total = shapley_rows(game.features, n_samples=n_samples, sampling=sampling)
    answers = game.ask(_rows_of(ends, orders), total)
    at_all, at_none = next(answers)
    means = _RunningMeans()
    pair: Values | None = None
    for order, inner in zip(orders, answers, strict=True):
        path = np.concatenate([at_none[None], inner, at_all[None]])  # [features + 1, targets]
        marginal = np.empty((game.features, len(at_all)))
        marginal[order] = np.diff(path, axis=0)
        if sampling == "plain":
            means.add(marginal)
        elif pair is None:
            pair = marginal
        else:
            means.add((pair + marginal) / 2)
            pair = None
    return Scores(means.mean, means.standard_error(), at_all, at_none, is_exact=False)


def shapley_rows(features: int, *, n_samples: int = 32, sampling: Sampling = "antithetic") -> int:
    """The rows that `shapley` asks."""
    return 2**features if features <= MOST_EXACT else 2 + _orders(n_samples, sampling) * (features - 1)


def _exact(game: Game) -> Scores:
    subsets, features = all_subsets(game.features), game.features
    values = game.ask_once(subsets)
    sizes = subsets.sum(1)
    # The weight of v(S + j) - v(S) where S has so many features; a row is such an S + j, or such an S.
    weights = np.array([1 / (features * comb(features - 1, size)) for size in range(features)])
    signed = np.where(subsets, weights[sizes - 1][:, None], -weights[np.minimum(sizes, features - 1)][:, None])
    return Scores(signed.T @ values, at_all=values[-1], at_none=values[0])


def _orders(n_samples: int, sampling: Sampling) -> int:
    return n_samples if sampling == "plain" else n_samples + n_samples % 2


def _drawn(features: int, count: int, sampling: Sampling, seed: int) -> list[NDArray[np.int64]]:
    """Orders of the features, the one that is added first at the front."""
    rng = np.random.default_rng(seed)
    if sampling == "plain":
        return [rng.permutation(features) for _ in range(count)]
    drawn = [rng.permutation(features) for _ in range(count // 2)]
    return [each for order in drawn for each in (order, order[::-1])]


def _rows_of(ends: Masks, orders: list[NDArray[np.int64]]) -> Iterator[Masks]:
    """The two ends, and for each order the sets of its first features, without the empty and the full one."""
    yield ends
    for order in orders:
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order))
        yield rank < np.arange(1, len(order))[:, None]


class _RunningMeans:
    """Mean and variance of arrays that come one after another (Welford, 1962)."""

    def __init__(self) -> None:
        self._count = 0
        self.mean: Values = np.zeros(())
        self._squares: Values = np.zeros(())

    def add(self, sample: Values) -> None:
        self._count += 1
        difference = sample - self.mean
        self.mean = self.mean + difference / self._count
        self._squares = self._squares + difference * (sample - self.mean)

    def standard_error(self) -> Values:
        """Of the mean; NaN for a single sample."""
        if self._count == 1:
            return np.full_like(self.mean, np.nan)
        return np.sqrt(self._squares / (self._count - 1) / self._count)
