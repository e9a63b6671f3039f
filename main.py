"""The FastAPI app: `create_app(settings)` puts the parts together; `python main.py` serves it."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool
from prometheus_client import CollectorRegistry

from api.allowed_methods import HeadMiddleware, OptionsMiddleware
from api.engine_protocol import AttributionEngineProtocol
from api.freed_memory import FreedMemory
from api.job_watch import JobWatch
from api.metrics import HttpMetrics, HttpMetricsMiddleware, ServiceMetrics
from api.middleware import HostCheckMiddleware, RequestIdMiddleware, SecurityHeadersMiddleware
from api.problem_responses import install_error_handlers
from api.request_body import BodyCheckMiddleware
from api.routes.catalogue import catalogue
from api.routes.jobs import job_document, jobs
from api.routes.pages import add_pages
from api.routes.results import results
from api.routes.service import meta
from api.routes.shared import shared
from api.routes.shares import shares
from api.security_schemes import make_keys_optional
from api.services import Services
from api.webhook_hosts import WebhookHosts
from api.webhook_sender import WebhookSender
from attribution_schema import __version__
from job_manager import JobLimits, JobManager
from jobs.retention import Retention
from jobs.store.job_store import JobStore
from jobs.store.records import OwnerFilter
from models import Job
from settings import Settings

log = structlog.get_logger(__name__)


def create_app(settings: Settings | None = None, engine: AttributionEngineProtocol | None = None) -> FastAPI:
    """Return the app with these settings and this engine (default: Inseq on this machine's devices).

    The store is opened and the workers are started when the app starts, not here.
    """
    settings = settings or Settings()
    http_registry = CollectorRegistry()
    http_metrics = HttpMetrics(http_registry)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        services = _services(settings, engine or _inseq_engine(settings), http_registry)
        retention = Retention(services.store, settings)
        services.install(app)
        services.manager.start()
        services.freed_memory.start()
        services.webhooks.start()
        retention.start()
        devices = list(services.engine.devices())
        workers = len(devices) * settings.workers_per_device
        log.info("server_started", devices=devices, workers=workers, data_dir=str(settings.data_dir))
        try:
            yield
        finally:
            await run_in_threadpool(services.manager.stop, settings.shutdown_grace_seconds)
            await run_in_threadpool(services.webhooks.stop)
            retention.stop()
            services.freed_memory.stop()
            services.store.close()
            log.info("server_stopped")

    app = FastAPI(
        title="Attribution as a service",
        summary="Inseq feature attribution as durable jobs over HTTP.",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # `add_pages` serves Swagger from files of this server
        redoc_url=None,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
    )
    for router in (jobs, results, shares, shared, catalogue, meta):
        app.include_router(router)
    make_keys_optional(app)
    add_pages(app)
    install_error_handlers(app)
    # The last one added sees a request first: what refuses requests is counted, and every response has id and headers.
    app.add_middleware(OptionsMiddleware)
    app.add_middleware(BodyCheckMiddleware, max_bytes=settings.max_body_bytes)
    app.add_middleware(HostCheckMiddleware, allowed_hosts=settings.allowed_hosts)
    app.add_middleware(HttpMetricsMiddleware, metrics=http_metrics)
    app.add_middleware(HeadMiddleware)
    app.add_middleware(RequestIdMiddleware)
    app.add_middleware(SecurityHeadersMiddleware)
    app.state.http_metrics = http_metrics  # counts the connections that the server refuses before the app sees them
    return app


def _services(settings: Settings, engine: AttributionEngineProtocol, http_registry: CollectorRegistry) -> Services:
    """Open the store and make everything that works on it. Must be called on the event loop."""
    store = JobStore(settings.data_dir)
    devices = [device for device in engine.devices() for _ in range(settings.workers_per_device)]
    threads = max(1, _cores() // len(devices))

    watching = CapacityLimiter(2)  # threads of their own: many clients that watch large jobs must not delay polls

    async def read(key: tuple[str, OwnerFilter]) -> Job:
        job_id, owner = key
        return await to_thread.run_sync(job_document, manager, job_id, owner, limiter=watching)

    watch = JobWatch(asyncio.get_running_loop(), read)
    metrics = ServiceMetrics(
        http_registry,
        key=settings.metrics_key.get_secret_value() if settings.metrics_key else None,
        is_listed=engine.is_listed,
        active_jobs=store.active,
        model_cache=engine.model_cache_numbers,
        watchers=lambda: watch.watchers,
    )
    freed_memory = FreedMemory()
    webhook_hosts = WebhookHosts(settings.webhook_hosts)
    webhooks = WebhookSender(store.webhooks, webhook_hosts, settings, metrics.webhook_attempted)
    manager = JobManager(
        store,
        engine.run,
        devices=devices,
        listeners=[watch, metrics, freed_memory, webhooks],
        limits=JobLimits(
            max_attempts=settings.max_attempts,
            max_seconds=settings.max_job_seconds,
            max_pending=settings.max_pending_jobs,
            max_pending_of_owner=settings.max_pending_jobs_per_key,
        ),
        prepare_worker=lambda: engine.prepare_worker(threads),
    )
    share_max_seconds = settings.share_max_days * 86400
    return Services(engine, store, manager, watch, metrics, freed_memory, webhook_hosts, webhooks, share_max_seconds)


def _cores() -> int:
    """Return the cores for torch's intra-op threads: `OMP_NUM_THREADS` if set, else those this process may use."""
    limit = os.environ.get("OMP_NUM_THREADS", "")
    if limit.isdigit() and int(limit):
        return int(limit)
    # Linux reports the share of a container; macOS reports all cores only.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _inseq_engine(settings: Settings) -> AttributionEngineProtocol:
    # Inseq reads this once, when it is imported. Its caches belong in the data directory, not in the user's home.
    os.environ.setdefault("INSEQ_ARTIFACTS_CACHE", str(settings.data_dir.resolve() / "inseq-artifacts"))
    for name in ("torchao", "torch.utils._pytree"):  # of the extra `quantized`: kernels that this machine lacks
        logging.getLogger(name).setLevel(logging.ERROR)
    from attribution.engine import AttributionEngine

    return AttributionEngine(settings)


if __name__ == "__main__":
    from api.command_line import main

    main(create_app)
