"""Group commit: concurrent calls share one transaction and its one fsync; the first of them commits for all.

Knows nothing of the items. After DeWitt et al. 1984, Implementation Techniques for Main Memory Database Systems,
section 5.2; here a group forms while the previous one commits, and no call waits for a timer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class GroupCommit(Generic[T, R]):
    """A callable that commits one item and returns the item's outcome, or raises it if it is an exception.

    commit: takes up to `at_most` waiting items, in the order of their calls, and returns an outcome for each; it is
    called by one thread at a time. If it raises, it is called again with each item alone, so that a bad item fails no
    other.
    """

    def __init__(self, commit: Callable[[Sequence[T]], Sequence[R | Exception]], *, at_most: int = 256) -> None:
        self._commit = commit
        self._at_most = at_most
        self._guard = threading.Lock()
        self._waiting: list[_Member[T, R]] = []
        self._is_led = False

    def __call__(self, item: T) -> R:
        member = _Member[T, R](item)
        with self._guard:
            self._waiting.append(member)
            leads, self._is_led = not self._is_led, True
        if not leads:
            member.woken.wait()
        if member.outcome is None:  # woken to lead the next group
            self._lead()
        assert member.outcome is not None
        if isinstance(member.outcome, Exception):
            raise member.outcome
        return member.outcome

    def _lead(self) -> None:
        """Commit all waiting items. Items that arrive meanwhile are the next group, which its first member leads."""
        with self._guard:
            group, self._waiting = self._waiting[: self._at_most], self._waiting[self._at_most :]
        try:
            outcomes = self._outcomes([member.item for member in group])
            for member, outcome in zip(group, outcomes, strict=True):
                member.outcome = outcome
        finally:
            with self._guard:
                if self._waiting:
                    self._waiting[0].woken.set()
                else:
                    self._is_led = False
            for member in group:
                member.woken.set()

    def _outcomes(self, items: Sequence[T]) -> Sequence[R | Exception]:
        try:
            return self._commit(items)
        except Exception as error:
            return [error] if len(items) == 1 else [self._outcomes([item])[0] for item in items]


class _Member(Generic[T, R]):
    def __init__(self, item: T) -> None:
        self.item = item
        self.outcome: R | Exception | None = None
        self.woken = threading.Event()
