"""Routes of the catalogue: methods, step functions, corrections, aggregators and models."""

from __future__ import annotations

from itertools import product
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
    """List the attribution methods by family, with the cost of each beside the others, and their parameters."""
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
    """List the bundled models, those on this machine (`available`), the loaded ones, and the patterns of the names that
    the server allows.

    Of the available and the loaded models, a key sees those that the operator lists, and those that it used itself.
    """

    def is_shown(model: dict[str, Any]) -> bool:
        if owner == ANYBODY or engine.is_listed(model["name"]):
            return True
        names = _names_in_requests(model["name"], model.get("revision") or "")
        return any(manager.page(Filters(model=each, owner=owner), limit=1, before=None) for each in names)

    models = engine.models()
    return models | {part: [each for each in models[part] if is_shown(each)] for part in ("available", "loaded")}


def _names_in_requests(name: str, revision: str) -> list[str]:
    """A model's name without and with its revision; of base and adapter, `+` joins the names and the revisions."""
    # The revision of an adapter without its base in the name is the last one.
    parts = zip(reversed(name.split("+")), reversed(revision.split("+")), strict=False)
    return ["+".join(reversed(each)) for each in product(*((part, f"{part}@{of}") for part, of in parts))]
