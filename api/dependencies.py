"""What FastAPI injects into routes: the services of the app, and the owner that the API key stands for."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Header, Request

from api.engine_protocol import AttributionEngineProtocol
from api.job_watch import JobWatch
from api.metrics import ServiceMetrics
from api.services import services_of
from job_manager import JobManager
from jobs.store.api_keys import ANYBODY
from jobs.store.job_store import JobStore
from problems import Unauthorized


# Coroutines, because FastAPI would run plain functions on a thread each.
async def _manager(request: Request) -> JobManager:
    return services_of(request).manager


async def _engine(request: Request) -> AttributionEngineProtocol:
    return services_of(request).engine


async def _store(request: Request) -> JobStore:
    return services_of(request).store


async def _watch(request: Request) -> JobWatch:
    return services_of(request).watch


async def _metrics(request: Request) -> ServiceMetrics:
    return services_of(request).metrics


async def owner_of(
    store: Annotated[JobStore, Depends(_store)],
    authorization: Annotated[str | None, Header(description="`Bearer KEY`, if the server has API keys.")] = None,
) -> str:
    """Return the id of the request's API key, or `ANYBODY` if the server has no keys. Raises `Unauthorized`."""
    scheme, _, secret = (authorization or "").partition(" ")
    are_set, owner = store.keys.look_up(secret.strip() if scheme.lower() == "bearer" else "")
    if not are_set:
        return ANYBODY
    if owner is None:
        raise Unauthorized(
            "This server needs an API key: send the header Authorization: Bearer KEY. The operator makes keys with "
            "python main.py keys create NAME.",
            headers={"WWW-Authenticate": "Bearer"},
        )
    return owner


OwnerDep = Annotated[str, Depends(owner_of)]
ManagerDep = Annotated[JobManager, Depends(_manager)]
EngineDep = Annotated[AttributionEngineProtocol, Depends(_engine)]
StoreDep = Annotated[JobStore, Depends(_store)]
WatchDep = Annotated[JobWatch, Depends(_watch)]
MetricsDep = Annotated[ServiceMetrics, Depends(_metrics)]
