"""The FastAPI app: `create_app(settings)`, routes, lifespan. `python main.py` serves it.

Routes are thin: they check, ask the manager or the engine, and shape the answer. They are plain functions, which
FastAPI runs on threads, so that nothing ever blocks the event loop; those that wait for a job are coroutines.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool

from api.dependencies import Engine
from api.job_watch import JobWatch
from api.metrics import Metrics, RequestMetrics
from api.middleware import RequestGuard, RequestIdMiddleware
from api.problem_responses import install_error_handlers
from api.routes.catalogue import catalogue
from api.routes.jobs import current_job, jobs
from api.routes.pages import add_pages
from api.routes.results import results
from api.routes.service import meta
from attribution_schema import __version__
from job_manager import JobManager
from jobs.retention import Retention
from jobs.store.job_store import JobStore
from settings import Settings

log = structlog.get_logger(__name__)


# Putting it together


def create_app(settings: Settings | None = None, engine: Engine | None = None) -> FastAPI:
    """The app, with the given settings and engine (Inseq on this machine's devices, if none is given).

    Opening the store and starting the workers happens when the app starts, so that making one costs nothing.
    """
    settings = settings or Settings()
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        chosen = engine or _inseq_engine(settings)
        store = JobStore(settings.data_dir)
        devices = chosen.devices()
        workers = len(devices) * settings.workers_per_device
        threads = max(1, _cores() // workers)
        manager = JobManager(
            store,
            chosen.run,
            devices=devices,
            workers_per_device=settings.workers_per_device,
            max_attempts=settings.max_attempts,
            max_seconds=settings.max_job_seconds,
            max_pending=settings.max_pending_jobs,
            max_pending_of_owner=settings.max_pending_jobs_per_key,
            prepare_worker=lambda: chosen.prepare_worker(threads),
        )
        app.state.engine, app.state.store, app.state.manager = chosen, store, manager
        app.state.watch = JobWatch(
            asyncio.get_running_loop(), lambda job_id: run_in_threadpool(current_job, job_id, manager)
        )
        manager.tell_of_changes(app.state.watch.tell)
        metrics.look_at(store.active, chosen.model_cache_numbers, lambda: app.state.watch.watched)
        manager.tell_of_ends(
            lambda job, status, seconds: metrics.job_ended(
                method=job.request.method or "comparison", model=job.request.model, status=status, seconds=seconds
            )
        )
        retention = Retention(store, settings)
        manager.start()
        retention.start()
        log.info("server_started", devices=list(devices), workers=workers, data_dir=str(settings.data_dir))
        try:
            yield
        finally:
            await run_in_threadpool(manager.stop, settings.shutdown_grace_seconds)
            retention.stop()
            store.close()
            log.info("server_stopped")

    app = FastAPI(
        title="Attribution as a service",
        summary="Inseq feature attribution as durable jobs over HTTP.",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # Swagger is served by `page_routes`, from here
        redoc_url=None,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
    )
    for router in (jobs, results, catalogue, meta):
        app.include_router(router)
    add_pages(app)
    install_error_handlers(app)
    app.add_middleware(RequestGuard, max_bytes=settings.max_body_bytes, allowed_hosts=settings.allowed_hosts)
    app.add_middleware(RequestMetrics, metrics=metrics)
    app.add_middleware(RequestIdMiddleware)
    app.state.metrics = metrics
    return app


def _cores() -> int:
    """Cores that torch's own threads may use: those of this process, or as many as `OMP_NUM_THREADS` says."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked):
        return int(asked)
    # A container's share, where the system tells it (Linux); all cores elsewhere (macOS).
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _inseq_engine(settings: Settings) -> Engine:
    # Inseq reads this once, when it is imported: its caches belong to this server's data, not to the user's home.
    os.environ.setdefault("INSEQ_ARTIFACTS_CACHE", str(settings.data_dir.resolve() / "inseq-artifacts"))
    from attribution.engine import AttributionEngine

    return AttributionEngine(settings)


if __name__ == "__main__":
    from api.command_line import main

    main(create_app)
