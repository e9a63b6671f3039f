"""What the service requires of an engine, so that requests are type-checked from the route to the result.

`attribution.engine.AttributionEngine` implements it, and tests have smaller ones. Knows nothing of torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from jobs.run import Run
from models import AttributionRequest, Estimate, TraceOptions, ViewOptions


class AttributionEngineProtocol(Protocol):
    """Checks, estimates and runs requests, and makes views of results. Methods may be called from any thread."""

    def check(self, request: AttributionRequest) -> AttributionRequest:
        """Return the request with its defaults filled in. Raises `InvalidRequest` and `ModelNotAllowed`."""
        ...

    def estimate(self, request: AttributionRequest) -> Estimate:
        """Return what a checked request would cost. Raises `ModelUnavailable` and `InputRejected`."""
        ...

    def result_identity(self, request: AttributionRequest) -> str | None:
        """Return a key that is equal for checked requests whose results are equal; None if that is unknown."""
        ...

    def devices(self) -> Sequence[str]:
        """Return the torch devices to run jobs on."""
        ...

    def prepare_worker(self, threads: int) -> None:
        """Give the calling worker thread this many intra-op threads."""
        ...

    @property
    def run(self) -> Run:
        """The callable that runs one checked request."""
        ...

    def view(self, raw: bytes, view_format: str, options: ViewOptions) -> bytes:
        """Return one method's stored result in a view. Raises `InvalidRequest` for options that do not fit it."""
        ...

    def trace(self, raw: bytes, view_format: str, options: ViewOptions, asked: TraceOptions) -> bytes:
        """Return a trace through one method's stored result in a view; its spans are selections, not names.

        Raises `InvalidRequest` for spans and options that do not fit the result.
        """
        ...

    def page_policy(self, options: ViewOptions) -> str:
        """Return the Content-Security-Policy of an HTML view."""
        ...

    def comparison(self, raw: Mapping[str, bytes], options: ViewOptions) -> bytes:
        """Return the stored results of several methods, by name, as one JSON view."""
        ...

    def methods(self) -> list[dict[str, Any]]:
        """Return the attribution methods with their parameters."""
        ...

    def step_functions(self) -> list[dict[str, Any]]:
        """Return the step functions with their parameters."""
        ...

    def aggregators(self) -> dict[str, Any]:
        """Return the aggregators and the aggregation functions."""
        ...

    def corrections(self) -> list[dict[str, str]]:
        """Return the corrections of Inseq: name, reason, remedy, proof."""
        ...

    def models(self) -> dict[str, Any]:
        """Return the bundled, available and loaded models, and the patterns of allowed names."""
        ...

    def is_listed(self, model: str) -> bool:
        """Return whether the operator made this name known: bundled, in a model directory, or allowed by its name."""
        ...

    def model_cache_numbers(self) -> dict[str, float]:
        """Return metrics of the model cache by name."""
        ...
