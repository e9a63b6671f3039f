"""Routes beside the jobs: what can be asked for, and the state of the service itself."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from dependencies import Manager, Store, TheEngine, owner_of
from http_errors import problem_responses
from problems import InvalidRequest, JobNotFound, ShuttingDown, Unauthorized, all_errors

catalogue = APIRouter(
    prefix="/attribution",
    tags=["attribution"],
    dependencies=[Depends(owner_of)],
    responses=problem_responses(InvalidRequest, Unauthorized),
)
meta = APIRouter(tags=["service"], responses=problem_responses(InvalidRequest))


# What can be asked for


@catalogue.get("/methods")
def list_methods(engine: TheEngine) -> dict[str, list[dict[str, Any]]]:
    """The attribution methods, with their parameters."""
    return {"methods": engine.methods()}


@catalogue.get("/step_functions")
def list_step_functions(engine: TheEngine) -> dict[str, list[dict[str, Any]]]:
    """The step functions: for `step_scores`, and for `attributed_fn`."""
    return {"step_functions": engine.step_functions()}


@catalogue.get("/corrections")
def list_corrections(engine: TheEngine) -> list[dict[str, str]]:
    """Where Inseq is wrong or fails, and what is done instead; `info.corrections` names those applied to a result."""
    return engine.corrections()  # type: ignore[no-any-return]


@catalogue.get("/aggregators")
def list_aggregators(engine: TheEngine) -> dict[str, Any]:
    """The aggregators and aggregation functions of a result's views."""
    return engine.aggregators()  # type: ignore[no-any-return]


@catalogue.get("/models")
def list_models(engine: TheEngine) -> dict[str, Any]:
    """The bundled models, those in memory, and which others the server allows."""
    return engine.models()  # type: ignore[no-any-return]


# The service itself


@meta.get("/health/live")
def live() -> dict[str, str]:
    """Whether the process answers."""
    return {"status": "ok"}


@meta.get("/health/ready", responses=problem_responses(ShuttingDown))
def ready(manager: Manager, store: Store) -> dict[str, str]:
    """Whether jobs are accepted and run: the store is writable and every worker alive."""
    if not manager.is_alive or not store.is_writable():
        raise ShuttingDown("The workers are not running or the store cannot be written.")
    return {"status": "ok"}


@meta.get(
    "/metrics",
    response_class=PlainTextResponse,
    dependencies=[Depends(owner_of)],
    responses=problem_responses(Unauthorized),
)
def tell_metrics(request: Request) -> Response:
    """Requests, queue, jobs, model cache and memory, for Prometheus."""
    return Response(request.app.state.metrics.text(), media_type=CONTENT_TYPE_LATEST)


@meta.get("/problems/{slug}", responses=problem_responses(JobNotFound))
def describe_problem(slug: str) -> dict[str, Any]:
    """What a problem's `type` means."""
    for error in all_errors():
        if error.slug == slug:
            return {"type": f"/problems/{slug}", "title": error.title(), "status": int(error.status)}
    raise JobNotFound(f"There is no problem type {slug!r}.")
