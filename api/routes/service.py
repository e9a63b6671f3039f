"""Routes about the service itself: liveness, readiness, metrics, problem types."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from api.dependencies import ManagerDep, MetricsDep, StoreDep, check_metrics_key
from api.problem_responses import problem_responses
from problems import InvalidRequest, NotFound, ShuttingDown, Unauthorized, all_errors

meta = APIRouter(tags=["service"], responses=problem_responses(InvalidRequest))


@meta.get("/health/live")
async def live() -> dict[str, str]:
    """Check that the process answers."""
    return {"status": "ok"}


@meta.get("/health/ready", responses=problem_responses(ShuttingDown))
def ready(manager: ManagerDep, store: StoreDep) -> dict[str, str]:
    """Check that jobs are accepted and run: the store can be written and every worker is alive."""
    if not manager.is_alive or not store.is_writable():
        raise ShuttingDown("The workers are not running or the store cannot be written.")
    return {"status": "ok"}


@meta.get(
    "/metrics",
    response_class=PlainTextResponse,
    dependencies=[Depends(check_metrics_key)],
    responses=problem_responses(Unauthorized),
)
def get_metrics(metrics: MetricsDep) -> Response:
    """Return metrics of requests, queue, jobs, model cache and memory in Prometheus' text format."""
    return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)


@meta.get("/problems/{slug}", responses=problem_responses(NotFound))
async def describe_problem(slug: str) -> dict[str, Any]:
    """Describe the problems of a `type`: title and status."""
    for error in all_errors():
        if error.slug == slug:
            return {"type": f"/problems/{slug}", "title": error.title(), "status": int(error.status)}
    raise NotFound(f"There is no problem type {slug!r}.")
