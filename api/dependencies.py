"""What FastAPI injects into routes: the services of the app, and the owner that the API key stands for."""

from __future__ import annotations

import secrets
from typing import Annotated

from fastapi import Depends, Request, Security

from api.engine_protocol import AttributionEngineProtocol
from api.job_watch import JobWatch, MayContinue
from api.metrics import ServiceMetrics
from api.security_schemes import API_KEY
from api.services import Services, services_of
from job_manager import JobManager
from jobs.store.api_keys import ANYBODY
from jobs.store.job_store import JobStore
from problems import StorageFailed, Unauthorized


# Coroutines, because FastAPI would run plain functions on a thread each.
async def _services(request: Request) -> Services:
    return services_of(request)


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
    request: Request, store: Annotated[JobStore, Depends(_store)], _: Annotated[object, Security(API_KEY)]
) -> str:
    """Return the id of the request's API key, or `ANYBODY` if the server has no keys. Raises `Unauthorized`."""
    return owner_of_header(store, request.headers.get("Authorization"))


def owner_of_header(store: JobStore, authorization: str | None) -> str:
    """Return the owner that an `Authorization` header stands for, as `owner_of` does."""
    are_set, owner = store.keys.look_up(bearer(authorization))
    if not are_set:
        return ANYBODY
    if owner is None:
        raise Unauthorized(
            "This server needs an API key: send the header Authorization: Bearer KEY. The operator makes keys with "
            "python main.py keys create NAME.",
            headers={"WWW-Authenticate": "Bearer"},
        )
    return owner


async def check_metrics_key(
    request: Request, store: Annotated[JobStore, Depends(_store)], _: Annotated[object, Security(API_KEY)]
) -> None:
    """Raise `Unauthorized` unless the request has the key of the metrics, or any API key if there is no such key."""
    authorization = request.headers.get("Authorization")
    key = services_of(request).metrics.key
    if key is None:
        owner_of_header(store, authorization)
    elif not secrets.compare_digest(bearer(authorization).encode(), key.encode()):
        raise Unauthorized(
            "The metrics of this server have a key of their own (INSEQ_API_METRICS_KEY): send it as "
            "Authorization: Bearer KEY.",
            headers={"WWW-Authenticate": "Bearer"},
        )


def bearer(authorization: str | None) -> str:
    """Return the key of an `Authorization: Bearer KEY` header; empty without one."""
    scheme, _, secret = (authorization or "").partition(" ")
    return secret.strip() if scheme.lower() == "bearer" else ""


async def may_continue(
    request: Request, store: Annotated[JobStore, Depends(_store)], owner: Annotated[str, Depends(owner_of)]
) -> MayContinue:
    """Return a function that says whether the request's key still stands for the same owner."""
    authorization = request.headers.get("Authorization")

    def check() -> bool:
        try:
            return owner_of_header(store, authorization) == owner
        except (Unauthorized, StorageFailed):
            return False

    return check


OwnerDep = Annotated[str, Depends(owner_of)]
ManagerDep = Annotated[JobManager, Depends(_manager)]
EngineDep = Annotated[AttributionEngineProtocol, Depends(_engine)]
StoreDep = Annotated[JobStore, Depends(_store)]
WatchDep = Annotated[JobWatch, Depends(_watch)]
MayContinueDep = Annotated[MayContinue, Depends(may_continue)]
ServicesDep = Annotated[Services, Depends(_services)]
MetricsDep = Annotated[ServiceMetrics, Depends(_metrics)]
