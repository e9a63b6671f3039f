"""Banzhaf values: each feature's mean marginal value over all subsets of the others."""

from __future__ import annotations

import numpy as np

from perturbation.game import MOST_EXACT, Game, Scores, Values, all_subsets


def banzhaf(game: Game, *, n_samples: int = 256, seed: int = 0) -> Scores:
    """Banzhaf values (Banzhaf, 1965; for data and models: Wang and Jia, 2023, https://arxiv.org/abs/2205.15466).

    They are the coefficients of the linear function that is nearest to v over all subsets (Hammer and Holzman, 1992,
    https://doi.org/10.1007/BF01415726), and need not sum to v(all) - v(none). Up to 10 features they are exact, from
    all subsets. Beyond, `n_samples` subsets are drawn, and every one serves each feature (the maximum sample reuse of
    Wang and Jia): the mean of v with the feature minus the mean without it, with standard errors. A score is NaN where
    no subset, or every subset, has the feature.
    """
    if game.features <= MOST_EXACT:
        subsets = all_subsets(game.features)
        values = game.ask_once(subsets)
        signed = np.where(subsets, 1.0, -1.0) / 2 ** (game.features - 1)
        return Scores(signed.T @ values, at_all=values[-1], at_none=values[0])
    subsets = np.random.default_rng(seed).random((n_samples, game.features)) < 0.5  # noqa: PLR2004 - a fair coin
    values = game.ask_once(subsets)
    # About their mean, so that the differences of large values are not lost in their sum.
    centred = values - values.mean(0)
    (with_it, its_error), (without, error) = (_means(kept.astype(np.float64), centred) for kept in (subsets, ~subsets))
    return Scores(with_it - without, np.sqrt(its_error + error), is_exact=False)


def banzhaf_rows(features: int, *, n_samples: int = 256) -> int:
    """The rows that `banzhaf` asks."""
    return 2**features if features <= MOST_EXACT else n_samples


def _means(chosen: Values, values: Values) -> tuple[Values, Values]:
    """The mean of the values in the rows that each feature chooses, and the squared standard error of this mean.

    `chosen` is [rows, features] of zeros and ones, `values` [rows, targets]; both results are [features, targets].
    """
    counts = chosen.sum(0)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):  # 0 / 0 is NaN: no such row
        means = chosen.T @ values / counts
        variances = (chosen.T @ values**2 - counts * means**2) / (counts - 1)
        return means, np.maximum(variances, 0) / counts
