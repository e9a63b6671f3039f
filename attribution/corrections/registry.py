"""What every correction says of itself, and the ledger in which a job notes those that it met.

A correction is declared beside its code, in the modules of this package: with its reason, the Inseq version that it is
for, and the test that proves it. When Inseq no longer differs that test fails, and the correction can go.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

INSEQ_VERSION = "0.7.1"


@dataclass(frozen=True)
class Correction:
    """Where Inseq is wrong or fails: `reason`; what is done instead: `remedy`; the test that shows both: `proof`."""

    name: str
    reason: str
    remedy: str
    proof: str
    inseq: str


_DECLARED: dict[str, Correction] = {}


def declare(name: str, *, reason: str, remedy: str, proof: str, inseq: str = INSEQ_VERSION) -> Correction:
    """Add a correction to the list that `info.corrections`, the API and the docs name it from."""
    if name in _DECLARED:
        raise ValueError(f"two corrections are named {name!r}")
    correction = Correction(name, reason, remedy, f"tests/{proof}", inseq)
    _DECLARED[name] = correction
    return correction


def describe() -> list[dict[str, str]]:
    """All corrections as plain data, by name."""
    return [asdict(_DECLARED[name]) for name in sorted(_DECLARED)]


class Ledger:
    """The corrections that a job met: applied, or withheld because it asked for Inseq's own numbers."""

    def __init__(self, *, enabled: bool) -> None:
        self._enabled = enabled
        self._met: dict[str, Correction] = {}

    def apply(self, correction: Correction) -> bool:
        """Note that the job meets this correction; whether it is to be applied."""
        self._met[correction.name] = correction
        return self._enabled

    @property
    def met(self) -> list[Correction]:
        """All that the job met, applied or not."""
        return list(self._met.values())

    @property
    def applied(self) -> list[str]:
        return sorted(self._met) if self._enabled else []

    @property
    def withheld(self) -> list[str]:
        return [] if self._enabled else sorted(self._met)
