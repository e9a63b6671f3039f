"""The seam between a method and who answers it: a function of the subsets of some features, asked in batches.

The word is that of cooperative game theory: the features are players, and the value of a set of them is what the model
makes of a text in which the others are masked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Masks: TypeAlias = NDArray[np.bool_]  # [rows, features]; True for a feature that is kept
Values: TypeAlias = NDArray[np.float64]  # [rows, targets]

MOST_EXACT = 10  # features up to which all subsets are asked: 1,024


@dataclass(frozen=True)
class Game:
    """A function v of the subsets of `features` features, with one value for each target.

    `answer` maps masks [rows, features] to values [rows, targets], and may raise to cancel; it is called with at most
    `rows_at_once` rows. `on_progress` is called after each of these batches, with the rows that are done and those that
    there are in all.
    """

    answer: Callable[[Masks], Values]
    features: int
    rows_at_once: int = 256
    on_progress: Callable[[int, int], None] = field(default=lambda _done, _total: None)
    sizes: Sequence[int] | None = None  # how large each feature is, for methods that weigh a text by what is left of it
    rest: int = 0  # and what is never masked

    def __post_init__(self) -> None:
        if self.features < 1:
            raise ValueError("A game needs at least one feature.")

    def ask(self, masks: Iterable[Masks], total: int) -> Iterator[Values]:
        """The values of each element of `masks` ([rows, features] to [rows, targets]), `total` rows in all.

        Elements share batches, so that they may be small, and are made only as they are needed.
        """
        done, held, waiting = 0, list[Values](), list[Masks]()
        sizes: list[int] = []
        for each in masks:
            waiting.append(each)
            sizes.append(len(each))
            while sum(map(len, waiting)) >= self.rows_at_once:
                joined = np.concatenate(waiting)
                waiting = [joined[self.rows_at_once :]]
                held.append(self.answer(joined[: self.rows_at_once]))
                done += self.rows_at_once
                self.on_progress(done, total)
            yield from _taken(held, sizes)
        rest = np.concatenate(waiting) if waiting else np.empty((0, self.features), bool)
        if len(rest):
            held.append(self.answer(rest))
            self.on_progress(done + len(rest), total)
        yield from _taken(held, sizes)

    def ask_once(self, masks: Masks) -> Values:
        """The values of a table of masks: [rows, targets]."""
        return np.concatenate(list(self.ask((row[None] for row in masks), len(masks))))


@dataclass(frozen=True)
class Scores:
    """What a method found: a score of each feature for each target."""

    scores: Values  # [features, targets]
    standard_errors: Values | None = None  # in the same shape, of scores that are estimated from samples
    at_all: Values | None = None  # v of all features: [targets]; None where the method did not ask it
    at_none: Values | None = None  # v of none of them
    is_exact: bool = True  # False where they depend on random draws


def all_subsets(features: int) -> Masks:
    """Every subset of the features, the empty one first and the full one last: [2 ** features, features]."""
    numbers = np.arange(2**features)[:, None]
    found: Masks = (numbers >> np.arange(features)) & 1 == 1
    return found


def _taken(held: list[Values], sizes: list[int]) -> Iterator[Values]:
    """Take from `held`, and from `sizes`, the elements whose rows are all there."""
    while sizes and sum(map(len, held)) >= sizes[0]:
        joined = np.concatenate(held) if len(held) > 1 else held[0]
        size = sizes.pop(0)
        held[:] = [joined[size:]]
        yield joined[:size]
