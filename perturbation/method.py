"""What a perturbation method is: a function of a game, and the rows that it will ask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from perturbation.game import Scores


@dataclass(frozen=True)
class PerturbationMethod:
    """`run(game, seed=..., **arguments)` gives the scores; `rows(features, **arguments)` is how many rows it asks."""

    run: Callable[..., Scores]
    rows: Callable[..., int]
