"""The strongest single paths of a trace, from a token of the input through the reasoning to the answer."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice

import numpy as np

from attribution_reading.traces import Numbers, Shares

MOST_HOPS = 32  # of a path; one that is longer is not looked for


@dataclass(frozen=True)
class Path:
    """The columns of `Shares.rows` that a path goes through, the input's first, and the product of their shares."""

    columns: tuple[int, ...]
    mass: float


def strongest_paths(
    shares: Shares, answer: range, reasoning: range, max_hops: int | None = None, *, most: int = 5
) -> list[Path]:
    """Return the paths with the largest mass, in order; of those with at most `max_hops` and `MOST_HOPS` hops.

    It looks for them from the answer on, in the order of the mass that a path can still have (A*; Hart, Nilsson and
    Raphael, https://doi.org/10.1109/TSSC.1968.300136), so that it sees few others.
    """
    hops = min(len(reasoning), MOST_HOPS, MOST_HOPS if max_hops is None else max_hops)
    return list(islice(_Search(shares, answer, reasoning, hops, most).paths(), most))


class _Search:
    """The search for paths. A place is a generated token, and how many hops may follow."""

    def __init__(self, shares: Shares, answer: range, reasoning: range, hops: int, most: int) -> None:
        self._shares, self._answer, self._reasoning = shares, answer, reasoning
        self._hops, self._most = hops, most
        self._inputs = shares.rows[:, : shares.inputs].max(axis=1, initial=0.0)
        self._rest = self._largest_rests()

    def _largest_rests(self) -> list[Numbers]:
        """By the number of hops that may follow a token of the reasoning: the largest mass of a path from it on."""
        found = [self._inputs[self._reasoning]]
        within = self._within(self._reasoning, self._reasoning)
        for _ in range(self._hops - 1):
            found.append(np.maximum(found[0], (within * found[-1]).max(axis=1, initial=0.0)))
            if (found[-1] == found[-2]).all():
                break
        return found

    def _within(self, rows: range, columns: range) -> Numbers:
        first = self._shares.inputs
        return self._shares.rows[rows, first + columns.start : first + columns.stop]

    def _rests(self, hops: int) -> Numbers:
        """What a path can still have from each column on [inputs + generated], if `hops` may follow."""
        rests = np.zeros(self._shares.rows.shape[1])
        rests[: self._shares.inputs] = 1.0
        generated = rests[self._shares.inputs :]
        if hops:
            generated[self._reasoning] = self._rest[min(hops, len(self._rest)) - 1]
        return rests

    def paths(self) -> Iterator[Path]:
        """Yield the paths, the strongest first."""
        number, first = count(), self._shares.inputs  # a number orders what is equally strong
        rests, weight = self._rests(self._hops), 1 / len(self._answer)
        found: list[tuple[float, int, float, int, tuple[int, ...]]] = []
        for token in self._answer:
            rests[first + token] = (self._shares.rows[token] * rests).max(initial=0.0)
            found.append((-weight * float(rests[first + token]), next(number), weight, self._hops, (first + token,)))
        by_hops = {self._hops: rests}
        heapq.heapify(found)
        while found and found[0][0] < 0:
            _, _, mass, hops, columns = heapq.heappop(found)
            token = columns[0] - first
            if token < 0:
                yield Path(columns, mass)
                continue
            left = hops - (token in self._reasoning)
            if left not in by_hops:
                by_hops[left] = self._rests(left)
            shares = self._shares.rows[token]
            promise = mass * shares * by_hops[left]
            # No more can be among the strongest: each of these has a path that is at least as strong.
            for column in np.argsort(-promise, kind="stable")[: self._most].tolist():
                step = (-float(promise[column]), next(number), mass * float(shares[column]), left, (column, *columns))
                heapq.heappush(found, step)
