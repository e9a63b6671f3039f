"""The list of corrections, and the ledger in which a job notes those that concern it.

The modules of this package declare each correction beside its code, with its reason, its Inseq version, and the test
that proves it. When a new Inseq is right, that test fails and the correction can be removed. Knows nothing of Inseq.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

INSEQ_VERSION = "0.7.1"


@dataclass(frozen=True)
class Correction:
    """How Inseq is wrong (`reason`), what is done instead (`remedy`), and the test that shows both (`proof`)."""

    name: str
    reason: str
    remedy: str
    proof: str
    inseq: str


_DECLARED: dict[str, Correction] = {}


def declare(name: str, *, reason: str, remedy: str, proof: str, inseq: str = INSEQ_VERSION) -> Correction:
    """Add a correction to the list that `info.corrections`, the API and the docs use.

    Called when the declaring module is imported; the list does not change afterwards. Raises `ValueError` for a name
    that is declared already.
    """
    if name in _DECLARED:
        raise ValueError(f"two corrections are named {name!r}")
    correction = Correction(name, reason, remedy, f"tests/{proof}", inseq)
    _DECLARED[name] = correction
    return correction


def all_corrections() -> list[dict[str, str]]:
    """All declared corrections as plain data, sorted by name."""
    return [asdict(_DECLARED[name]) for name in sorted(_DECLARED)]


class Ledger:
    """The corrections that concern a job: applied, or withheld because the request has `corrections: false`."""

    def __init__(self, *, enabled: bool) -> None:
        self.enabled = enabled
        self._met: dict[str, Correction] = {}

    def apply(self, correction: Correction) -> bool:
        """Note that this correction concerns the job, and return whether to apply it."""
        self._met[correction.name] = correction
        return self.enabled

    @property
    def met(self) -> list[Correction]:
        """All corrections that concern the job, applied or withheld."""
        return list(self._met.values())

    @property
    def applied(self) -> list[str]:
        """Names of the applied corrections, sorted."""
        return sorted(self._met) if self.enabled else []

    @property
    def withheld(self) -> list[str]:
        """Names of the withheld corrections, sorted."""
        return [] if self.enabled else sorted(self._met)
