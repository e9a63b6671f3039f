"""What routes ask for: the manager, the store and the engine of the app that they are part of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Protocol

from fastapi import Depends, Header, Request

from job_manager import JobManager, Run
from jobs.store.api_keys import ANYBODY
from jobs.store.job_store import JobStore
from models import AttributionRequest, Estimate, ViewOptions
from problems import Unauthorized


class Engine(Protocol):
    """What the service asks of whatever computes: `attribution.engine.AttributionEngine`, or a test's own."""

    def check(self, request: AttributionRequest) -> AttributionRequest: ...
    def estimate(self, request: AttributionRequest) -> Estimate: ...
    def result_identity(self, request: AttributionRequest) -> str | None: ...
    def devices(self) -> Sequence[str]: ...
    def prepare_worker(self, threads: int) -> None: ...
    @property
    def run(self) -> Run: ...
    def view(self, raw: bytes, view_format: str, options: ViewOptions) -> bytes: ...
    def page_policy(self, options: ViewOptions) -> str: ...
    def comparison(self, raw: Mapping[str, bytes], options: ViewOptions) -> bytes: ...
    def methods(self) -> list[dict[str, Any]]: ...
    def step_functions(self) -> list[dict[str, Any]]: ...
    def aggregators(self) -> dict[str, Any]: ...
    def corrections(self) -> list[dict[str, str]]: ...
    def models(self) -> dict[str, Any]: ...
    def model_cache_numbers(self) -> dict[str, float]: ...


# Coroutines, because FastAPI would take a thread for each of them otherwise.
async def _manager(request: Request) -> JobManager:
    return request.app.state.manager  # type: ignore[no-any-return]


async def _engine(request: Request) -> Engine:
    return request.app.state.engine  # type: ignore[no-any-return]


async def _store(request: Request) -> JobStore:
    return request.app.state.store  # type: ignore[no-any-return]


async def owner_of(
    store: Annotated[JobStore, Depends(_store)],
    authorization: Annotated[str | None, Header(description="`Bearer KEY`, where the server has API keys.")] = None,
) -> str:
    """Whose request this is. Raises `Unauthorized`."""
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


Owner = Annotated[str, Depends(owner_of)]
Manager = Annotated[JobManager, Depends(_manager)]
TheEngine = Annotated[Any, Depends(_engine)]  # an `Engine`; FastAPI cannot read a protocol's methods
Store = Annotated[JobStore, Depends(_store)]
