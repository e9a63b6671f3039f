"""Routes of the catalogue: methods, step functions, corrections, aggregators and models."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends

from api.dependencies import TheEngine, owner_of
from api.problem_responses import problem_responses
from problems import InvalidRequest, Unauthorized

catalogue = APIRouter(
    prefix="/attribution",
    tags=["attribution"],
    dependencies=[Depends(owner_of)],
    responses=problem_responses(InvalidRequest, Unauthorized),
)


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
