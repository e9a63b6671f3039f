"""Leave-one-out: what is lost when one feature is masked and all others are kept."""

from __future__ import annotations

import numpy as np

from perturbation.game import Game, Scores


def leave_one_out(game: Game, *, seed: int = 0) -> Scores:
    """v(all) - v(all but j) of each feature j (Li et al., 2016, https://arxiv.org/abs/1612.08220). Draws nothing.

    A feature that another one repeats has a score near 0: the copy stays.
    """
    del seed
    kept = np.concatenate([np.ones((1, game.features), bool), ~np.eye(game.features, dtype=bool)])
    values = game.ask_once(kept)
    return Scores(values[0] - values[1:], at_all=values[0])


def leave_one_out_rows(features: int) -> int:
    """The rows that `leave_one_out` asks."""
    return features + 1
