"""A client of the attribution service: submits jobs, waits for them, and reads and draws their results.

    from attribution_client import AttributionClient, plot_attribution_heatmap

    with AttributionClient() as client:
        result = client.attribute("lookup-gpt2", "saliency", "Anna likes tea. Ben likes milk. Anna likes")
    plot_attribution_heatmap(result)

Needs neither torch nor the server. Tables and pictures need the extra `plots`; they import pandas and matplotlib at
first use. The same is available on the command line as `attribution`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from attribution_client.async_client import AsyncAttributionClient
from attribution_client.client import AttributionClient
from attribution_client.contrast import contrast_request
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
from attribution_client.extras import needs_extra
from attribution_client.results import AttributionResult, ComparisonResult, Shown
from attribution_client.traces import TraceResult
from attribution_client.webhooks import WebhookRejected, verify_webhook
from attribution_schema.estimate import Estimate
from attribution_schema.job import Job, JobEvent, JobStatus
from attribution_schema.request import AttributionRequest
from attribution_schema.share import NewShare, Share

if TYPE_CHECKING:
    from attribution_client.comparisons import MethodComparison, compare_methods
    from attribution_client.frames import to_frame
    from attribution_client.graphs import attribution_graph, plot_attribution_graph
    from attribution_client.plots import plot_attribution_heatmap, plot_step_scores, plot_top_tokens
    from attribution_client.tables import rank_correlation, top_token_overlap, top_tokens
    from attribution_client.text_plots import plot_highlighted_text
    from attribution_client.trace_plots import plot_trace

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
    "JobEvent",
    "JobStatus",
    "MethodComparison",
    "NewShare",
    "NotFound",
    "RequestFailed",
    "ResultExpired",
    "ServerFailed",
    "ServerUnreachable",
    "Share",
    "Shown",
    "TraceResult",
    "Unauthorized",
    "WaitTimedOut",
    "WebhookRejected",
    "attribution_graph",
    "compare_methods",
    "contrast_request",
    "plot_attribution_graph",
    "plot_attribution_heatmap",
    "plot_highlighted_text",
    "plot_step_scores",
    "plot_top_tokens",
    "plot_trace",
    "rank_correlation",
    "to_frame",
    "top_token_overlap",
    "top_tokens",
    "verify_webhook",
]

# The modules of the extra `plots`, in the order of their import time: pandas, matplotlib, networkx.
_PLOTS = ("frames", "tables", "plots", "text_plots", "trace_plots", "comparisons", "graphs")


def __getattr__(name: str) -> Any:
    """Import tables and pictures when they are first used. Raises `ImportError` without the extra `plots`."""
    if name in __all__:
        with needs_extra("plots"):
            for module in _PLOTS:
                members = vars(importlib.import_module(f"{__name__}.{module}"))
                if name in members:
                    return members[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
