"""The FastAPI app: `create_app(settings)`, routes, lifespan. `python main.py` serves it.

Routes are thin: they check, ask the manager or the engine, and shape the answer. They are plain functions, which
FastAPI runs on threads, so that nothing ever blocks the event loop; those that wait for a job are coroutines.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import structlog
from fastapi import APIRouter, FastAPI, Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

from answers import job_answer, read_cursor, read_tag, write_cursor
from dependencies import Engine, Manager, Owner, TheEngine
from events import JobWatch, event_id
from http_errors import install_error_handlers, problem_responses
from job_listing import Filters
from job_manager import JobManager
from job_store import JobStore
from metrics import Metrics, RequestMetrics
from middleware import RequestGuard, RequestIdMiddleware
from models import AttributionRequest, Estimate, Job, JobList, JobStatus
from page_routes import add_pages
from problems import (
    BodyTooLarge,
    InputRejected,
    InvalidRequest,
    JobActive,
    JobEnded,
    JobNotFound,
    KeyReused,
    ModelNotAllowed,
    ModelUnavailable,
    QueueFull,
    ShuttingDown,
    StorageFailed,
    Unauthorized,
    UnsupportedMediaType,
)
from result_routes import results
from retention import Retention
from service_routes import catalogue, meta
from settings import Settings

VERSION = "0.1.0"
MAX_WAIT = 60.0  # seconds a client may have an answer held back
log = structlog.get_logger(__name__)
api = APIRouter(prefix="/attribution", tags=["attribution"], responses=problem_responses(InvalidRequest, Unauthorized))


# Jobs


@api.post(
    "/jobs",
    status_code=202,
    response_model=Job,
    responses=problem_responses(
        InvalidRequest,
        ModelNotAllowed,
        KeyReused,
        BodyTooLarge,
        UnsupportedMediaType,
        QueueFull,
        ShuttingDown,
        StorageFailed,
    ),
)
def submit_job(
    body: AttributionRequest,
    response: Response,
    manager: Manager,
    engine: TheEngine,
    owner: Owner,
    idempotency_key: Annotated[
        str | None,
        Header(min_length=1, max_length=200, description="The same key and body give the first job, not a second."),
    ] = None,
) -> Job:
    """Accept an attribution job. It is stored when this answers, and will run whatever happens to the server."""
    request = engine.check(body)
    reuse_key = engine.result_identity(request)
    record = manager.submit(request, idempotency_key=idempotency_key, owner=owner, reuse_key=reuse_key)
    job = job_answer(record)
    response.headers["Location"] = job.links.self
    return job


@api.post(
    "/estimate",
    response_model=Estimate,
    responses=problem_responses(
        InvalidRequest, ModelNotAllowed, ModelUnavailable, InputRejected, BodyTooLarge, UnsupportedMediaType
    ),
)
def estimate_job(body: AttributionRequest, engine: TheEngine, manager: Manager, owner: Owner) -> Estimate:
    """What the job would take: tokens, passes, time, memory. Its method is not run, and nothing is queued."""
    estimate: Estimate = engine.estimate(engine.check(body))
    queue = manager.seconds_until_run(owner, body.priority)
    return estimate.model_copy(update={"seconds": estimate.seconds.model_copy(update={"queue": queue})})


@api.get("/jobs", response_model=JobList, responses=problem_responses(InvalidRequest))
def list_jobs(
    manager: Manager,
    owner: Owner,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(description="`next_cursor` of the page before.")] = None,
    status: JobStatus | None = None,
    model: str | None = None,
    method: str | None = None,
    tag: Annotated[list[str] | None, Query(description="`name` or `name:value`; several must all hold.")] = None,
) -> JobList:
    """The jobs, newest first. Pages neither skip nor repeat a job while new ones arrive."""
    filters = Filters(status, model, method, [read_tag(each) for each in tag or []], owner)
    records = manager.page(filters, limit=limit + 1, before=read_cursor(cursor))
    page = records[:limit]
    following = write_cursor(page[-1].seq) if len(records) > limit else None
    return JobList(jobs=[job_answer(record) for record in page], next_cursor=following)


@api.get("/jobs/{job_id}", response_model=Job, responses=problem_responses(JobNotFound))
async def get_job(
    job_id: str,
    request: Request,
    response: Response,
    manager: Manager,
    owner: Owner,
    wait: Annotated[float, Query(ge=0, le=MAX_WAIT, description="Seconds to wait for the job's end.")] = 0,
) -> Job:
    """The job: its status, progress and, if it failed, why. With `wait` (or `Prefer: wait`), once it has ended."""
    job: Job = await run_in_threadpool(_current_job, job_id, manager, owner)
    patience = wait or _preferred_wait(request)
    if patience and not job.status.is_terminal:
        job = await request.app.state.watch.ended(job_id, patience)
    if not job.status.is_terminal:
        response.headers["Retry-After"] = "1"
    return job


@api.get(
    "/jobs/{job_id}/events",
    response_class=StreamingResponse,
    responses={204: {"description": "The job has ended, and the client has seen it"}, **problem_responses(JobNotFound)},
)
async def watch_job(
    job_id: str,
    request: Request,
    manager: Manager,
    owner: Owner,
    last_event_id: Annotated[
        str | None, Header(description="The last event that was seen: what follows it comes.")
    ] = None,
) -> Response:
    """Server-sent events: the job's document (`status` or `progress`) at every change, until it ends."""
    job = await run_in_threadpool(_current_job, job_id, manager, owner)
    if job.status.is_terminal and last_event_id == event_id(job):
        return Response(status_code=204)  # which tells an EventSource not to connect again
    return StreamingResponse(
        request.app.state.watch.stream(job_id, last_event_id),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


@api.post(
    "/jobs/{job_id}/cancel",
    status_code=202,
    response_model=Job,
    responses=problem_responses(JobNotFound, JobEnded),
)
def cancel_job(job_id: str, manager: Manager, owner: Owner) -> Job:
    """Give a job up: at once if it waits, within a forward pass if it runs. `cancelled` once the device is free."""
    return job_answer(manager.cancel(job_id, owner))


@api.delete("/jobs/{job_id}", status_code=204, responses=problem_responses(JobNotFound, JobActive))
def delete_job(job_id: str, manager: Manager, owner: Owner) -> Response:
    """Forget an ended job and its result."""
    manager.delete(job_id, owner)
    return Response(status_code=204)


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
            asyncio.get_running_loop(), lambda job_id: run_in_threadpool(_current_job, job_id, manager)
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
        version=VERSION,
        lifespan=lifespan,
        docs_url=None,  # Swagger is served by `page_routes`, from here
        redoc_url=None,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
    )
    for router in (api, results, catalogue, meta):
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


def _current_job(job_id: str, manager: JobManager, owner: str | None = None) -> Job:
    return job_answer(manager.get(job_id, owner))


def _preferred_wait(request: Request) -> float:
    """Seconds of a `Prefer: wait=N` header (RFC 7240), which is a wish: what is not understood is not an error."""
    found = re.search(r"\bwait=(\d{1,6})\b", request.headers.get("Prefer", ""))
    return min(float(found.group(1)), MAX_WAIT) if found else 0.0


if __name__ == "__main__":
    from command_line import main

    main()
