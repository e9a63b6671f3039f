"""The search of `n_steps: "auto"` on one text: how many points its path had, and how far off the scores were."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from attribution.catalogue import refinement
from attribution.inseq_loop import completeness

# An attempt that leaves more than this part of the best error so far has gained nothing; after two of them only
# rounding is left, which more points do not lower.
_GAIN = 0.9
_FRUITLESS = 2


@dataclass
class RefinementSearch:
    """Doubles the points until the largest relative error is within the tolerance, or nothing is gained any more."""

    tolerance: float
    most: int  # points of the last attempt at most
    n_steps: list[int] = field(default_factory=list)  # of each attempt
    errors: list[float] = field(default_factory=list)  # the largest relative error of any token in each

    def attempts(self) -> Iterator[int]:
        """The points of each attempt; the caller calls `note` after each."""
        for n_steps in refinement.attempts(self.most):
            yield n_steps
            if self.has_converged or self._is_fruitless:
                return

    def note(self, n_steps: int, steps: Sequence[completeness.Step]) -> None:
        """Record an attempt by the completeness of each token."""
        self.n_steps.append(n_steps)
        self.errors.append(max((step.relative for step in steps), default=0.0))

    @property
    def has_converged(self) -> bool:
        """Whether the scores of every token add up within the tolerance. NaN is no convergence."""
        return self.errors[-1] <= self.tolerance

    @property
    def _is_fruitless(self) -> bool:
        before, last = self.errors[:-_FRUITLESS], self.errors[-_FRUITLESS:]
        return bool(before) and not any(error < _GAIN * min(before) for error in last)

    def describe(self) -> dict[str, list[float]]:
        """What it took, as plain data: a number for each attempt."""
        return {"n_steps": list(self.n_steps), "largest_relative": list(self.errors)}

    def warning(self) -> str | None:
        """A warning if the scores still do not add up; None if they do."""
        if self.has_converged:
            return None
        reason = "more points gained nothing" if self._is_fruitless else "the server's limit of n_steps is reached"
        return (
            f'n_steps "auto" ended with {self.n_steps[-1]} points, because {reason}: the scores of a token fail to sum '
            f"to f(input) - f(baseline) by up to {self.errors[-1]:.2%} of their size, above the tolerance of "
            f"{self.tolerance:.2%} (see info.convergence)."
        )
