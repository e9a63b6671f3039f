"""A client of the attribution service: submit, wait, look. `attribution attribute ...` does it at a terminal.

    from attribution_client import AttributionClient, plot_attribution_heatmap

    with AttributionClient() as client:
        result = client.attribute("lookup-gpt2", "saliency", "Anna likes tea. Ben likes milk. Anna likes")
    plot_attribution_heatmap(result)

Needs no torch, and of the server only `attribution_schema`. What is slow to import (pandas,
matplotlib) loads when it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from attribution_client.client import AsyncAttributionClient, AttributionClient
from attribution_client.errors import (
    AttributionCancelled,
    AttributionFailed,
    Busy,
    ClientError,
    Conflict,
    InvalidRequest,
    JobEndedWithoutResult,
    NotFound,
    RequestFailed,
    ResultExpired,
    ServerFailed,
    ServerUnreachable,
    Unauthorized,
    WaitTimedOut,
)
from attribution_schema.estimate import Estimate
from attribution_schema.job import Job, JobStatus
from attribution_schema.request import AttributionRequest
from attribution_schema.result import AttributionResult, ComparisonResult

if TYPE_CHECKING:
    from attribution_client.comparisons import MethodComparison, compare_methods
    from attribution_client.frames import to_frame
    from attribution_client.graphs import attribution_graph, plot_attribution_graph
    from attribution_client.plots import plot_attribution_heatmap, plot_step_scores, plot_top_tokens
    from attribution_client.tables import rank_correlation, top_token_overlap, top_tokens

__all__ = [
    "AsyncAttributionClient",
    "AttributionCancelled",
    "AttributionClient",
    "AttributionFailed",
    "AttributionRequest",
    "AttributionResult",
    "Busy",
    "ClientError",
    "ComparisonResult",
    "Conflict",
    "Estimate",
    "InvalidRequest",
    "Job",
    "JobEndedWithoutResult",
    "JobStatus",
    "MethodComparison",
    "NotFound",
    "RequestFailed",
    "ResultExpired",
    "ServerFailed",
    "ServerUnreachable",
    "Unauthorized",
    "WaitTimedOut",
    "attribution_graph",
    "compare_methods",
    "plot_attribution_graph",
    "plot_attribution_heatmap",
    "plot_step_scores",
    "plot_top_tokens",
    "rank_correlation",
    "to_frame",
    "top_token_overlap",
    "top_tokens",
]

_LAZY = {
    "MethodComparison": "comparisons",
    "compare_methods": "comparisons",
    "to_frame": "frames",
    "attribution_graph": "graphs",
    "plot_attribution_graph": "graphs",
    "plot_attribution_heatmap": "plots",
    "plot_step_scores": "plots",
    "plot_top_tokens": "plots",
    "rank_correlation": "tables",
    "top_token_overlap": "tables",
    "top_tokens": "tables",
}


def __getattr__(name: str) -> Any:
    """Plots and frames, whose libraries take longer to import than the rest."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"attribution_client.{_LAZY[name]}"), name)
