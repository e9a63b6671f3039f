"""One sequence's tokens and scores as plain arrays: what the server makes of Inseq's output, and the client of JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float32]
SIDES = ("source", "target")


@dataclass(frozen=True)
class Tokens:
    """The tokens of one side, by position."""

    tokens: Sequence[str]  # as in the model's vocabulary
    ids: Sequence[int]  # -1 for a merged token
    texts: Sequence[str | None] | None = None  # decoded; None where the result is without them


@dataclass(frozen=True)
class ScoredSequence:
    """The tokens and scores of one sequence; a side without scores is not among `scores`."""

    tokens: Mapping[str, Tokens]  # by side
    scores: Mapping[str, Scores]  # by side: [attributed, generated], with further dimensions if granular; may be NaN
    step_scores: Mapping[str, Scores]  # by name: [generated]
    start: int  # position in the target of the first generated token
    dimensions: Mapping[str, Sequence[str]] = field(default_factory=dict)  # by side: names of the further dimensions


def not_yet_generated(scores: Scores, side: str, start: int) -> NDArray[np.bool_]:
    """Return where the attributed token did not exist yet when the other was generated, in the shape of `scores`.

    These are the scores of the target that are NaN at or after the position of the generated token. Any other NaN is a
    score that the method could not compute. `start` is the target position of the first generated token.
    """
    if side != "target":
        return np.zeros(scores.shape, bool)
    rows, columns = scores.shape[:2]
    is_after = np.arange(rows)[:, None] >= np.arange(columns) + start
    found: NDArray[np.bool_] = np.isnan(scores) & is_after.reshape(rows, columns, *(1 for _ in scores.shape[2:]))
    return found
