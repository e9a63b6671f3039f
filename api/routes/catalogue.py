"""Routes of the catalogue: methods, step functions, corrections, aggregators and models."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends

from api.dependencies import EngineDep, ManagerDep, OwnerDep, owner_of
from api.problem_responses import problem_responses
from jobs.store.api_keys import ANYBODY
from jobs.store.listing import Filters
from problems import InvalidRequest, Unauthorized

catalogue = APIRouter(
    prefix="/attribution",
    tags=["attribution"],
    dependencies=[Depends(owner_of)],
    responses=problem_responses(InvalidRequest, Unauthorized),
)


@catalogue.get("/methods")
def list_methods(engine: EngineDep) -> dict[str, list[dict[str, Any]]]:
    """List the attribution methods with their parameters."""
    return {"methods": engine.methods()}


@catalogue.get("/step_functions")
def list_step_functions(engine: EngineDep) -> dict[str, list[dict[str, Any]]]:
    """List the step functions, for `step_scores` and `attributed_fn`, with their parameters."""
    return {"step_functions": engine.step_functions()}


@catalogue.get("/corrections")
def list_corrections(engine: EngineDep) -> list[dict[str, str]]:
    """List the corrections of Inseq: what is wrong, and what this service does instead.

    A result names those applied to it in `info.corrections`.
    """
    return engine.corrections()


@catalogue.get("/aggregators")
def list_aggregators(engine: EngineDep) -> dict[str, Any]:
    """List the aggregators and aggregation functions for views of a result."""
    return engine.aggregators()


@catalogue.get("/models")
def list_models(engine: EngineDep, manager: ManagerDep, owner: OwnerDep) -> dict[str, Any]:
    """List the bundled models, the loaded models, and the patterns of the names that the server allows.

    Of the loaded models, a key sees those that the operator lists, and those that it used itself.
    """

    def is_shown(loaded: dict[str, Any]) -> bool:
        name = loaded["name"]
        if owner == ANYBODY or engine.is_listed(name):
            return True
        names = (name, f"{name}@{loaded['revision']}")
        return any(manager.page(Filters(model=each, owner=owner), limit=1, before=None) for each in names)

    models = engine.models()
    return models | {"loaded": [each for each in models["loaded"] if is_shown(each)]}
