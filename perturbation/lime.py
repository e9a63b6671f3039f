"""LIME: the weights of a linear model that is fitted to texts in which random features are masked."""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import Ridge

from perturbation.game import Game, Scores


def lime(game: Game, *, n_samples: int = 50, mask_prob: float = 0.3, seed: int = 0) -> Scores:
    """Coefficients of a ridge regression on the masks (Ribeiro et al., 2016, https://arxiv.org/abs/1602.04938).

    Each of `n_samples` texts masks each feature with probability `mask_prob`. As in Inseq's LIME of tokens, a text
    counts by how much of it is unmasked (`game.sizes` and `game.rest`), and the penalty of the regression is 1. They
    are no means of samples, and have no standard errors.
    """
    kept = np.random.default_rng(seed).random((n_samples, game.features)) >= mask_prob
    values = game.ask_once(kept)
    sizes = np.ones(game.features) if game.sizes is None else np.asarray(game.sizes, np.float64)
    fitted = Ridge().fit(kept.astype(np.float64), values, sample_weight=kept @ sizes + game.rest)
    return Scores(fitted.coef_.reshape(values.shape[1], game.features).T, is_exact=False)


def lime_rows(_features: int, *, n_samples: int = 50, mask_prob: float = 0.3) -> int:
    """The rows that `lime` asks."""
    del mask_prob
    return n_samples
