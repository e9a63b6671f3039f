"""The seam between jobs and whatever computes: one callable that runs one request.

Threads of this process call it today. Anything else that runs requests (remote workers, another service) is one more
implementation of `Run`; nothing else in `jobs` knows which one it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from models import AttributionRequest, Progress, ResultPart

EncodePartial = Callable[[], Sequence[ResultPart]]  # encodes the steps attributed so far; empty before the first one


class Run(Protocol):
    """Run one request on one device and return the parts of its result.

    request: as the engine checked it. device: a torch device string, such as `cuda:0`. report: takes each `Progress`.
    should_cancel: is asked between forward passes. offer_partial: takes a function that encodes the unfinished result,
    which may be called from any thread while the request runs, and after it raised.

    Raises a `JobError` if the request cannot be computed, and `Cancelled` soon after `should_cancel` returned True.
    """

    def __call__(
        self,
        request: AttributionRequest,
        *,
        device: str,
        report: Callable[[Progress], None],
        should_cancel: Callable[[], bool],
        offer_partial: Callable[[EncodePartial], None],
    ) -> list[ResultPart]: ...
