"""Occlusion of features: the size of what is lost when one of them is masked."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from perturbation.game import Game, Scores
from perturbation.leave_one_out import leave_one_out


def occlusion(game: Game, *, seed: int = 0) -> Scores:
    """|v(all) - v(all but j)| of each feature j (Zeiler and Fergus, 2014, https://arxiv.org/abs/1311.2901), without a
    sign, as Inseq's occlusion of tokens. Draws nothing.
    """
    found = leave_one_out(game, seed=seed)
    return replace(found, scores=np.abs(found.scores))
