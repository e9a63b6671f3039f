"""The FastAPI app: `create_app(settings)`, routes, lifespan. `python main.py` serves it.

Routes are thin: they check, ask the manager or the engine, and shape the answer. They are plain functions, which
FastAPI runs on threads, so that nothing ever blocks the event loop.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import hashlib
import os
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

import structlog
from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import RedirectResponse

from answers import job_answer, json_object, names, no_result, read_cursor, write_cursor
from http_errors import install_error_handlers, problem_responses
from job_manager import JobManager, Run
from job_store import JobStore
from middleware import RequestGuard, RequestIdMiddleware
from models import AttributionRequest, AttributionResult, Job, JobList, JobStatus
from problems import (
    BodyTooLarge,
    InvalidRequest,
    JobNotFound,
    ModelNotAllowed,
    NoResult,
    ResultNotReady,
    ShuttingDown,
    StorageFailed,
    UnsupportedMediaType,
    all_errors,
)
from server import configure_logging, serve
from settings import Settings
from waiting import EndOfJobs

if TYPE_CHECKING:
    from attribution.results import ViewOptions

VERSION = "0.1.0"
MAX_WAIT = 60.0  # seconds a client may have an answer held back
log = structlog.get_logger(__name__)
api = APIRouter(prefix="/attribution", tags=["attribution"], responses=problem_responses(InvalidRequest))
meta = APIRouter(tags=["service"], responses=problem_responses(InvalidRequest))


class Engine(Protocol):
    """What the service asks of whatever computes: `attribution.engine.AttributionEngine`, or a test's own."""

    def check(self, request: AttributionRequest) -> AttributionRequest: ...
    def devices(self) -> Sequence[str]: ...
    def prepare_worker(self, threads: int) -> None: ...
    @property
    def run(self) -> Run: ...
    def view(self, raw: bytes, view_format: str, options: ViewOptions) -> bytes: ...
    def methods(self) -> list[dict[str, Any]]: ...
    def step_functions(self) -> list[dict[str, Any]]: ...
    def aggregators(self) -> dict[str, Any]: ...
    def corrections(self) -> list[dict[str, str]]: ...
    def models(self) -> dict[str, Any]: ...


# Coroutines, because FastAPI would take a thread for each of them otherwise.
async def _manager(request: Request) -> JobManager:
    return request.app.state.manager  # type: ignore[no-any-return]


async def _engine(request: Request) -> Engine:
    return request.app.state.engine  # type: ignore[no-any-return]


async def _store(request: Request) -> JobStore:
    return request.app.state.store  # type: ignore[no-any-return]


Manager = Annotated[JobManager, Depends(_manager)]
TheEngine = Annotated[Any, Depends(_engine)]  # an `Engine`; FastAPI cannot read a protocol's methods
Store = Annotated[JobStore, Depends(_store)]


# Jobs


@api.post(
    "/jobs",
    status_code=202,
    response_model=Job,
    responses=problem_responses(InvalidRequest, ModelNotAllowed, BodyTooLarge, UnsupportedMediaType, ShuttingDown),
)
def submit_job(body: AttributionRequest, response: Response, manager: Manager, engine: TheEngine) -> Job:
    """Accept an attribution job. It is stored when this answers, and will run whatever happens to the server."""
    record = manager.submit(engine.check(body))
    job = job_answer(record, manager)
    response.headers["Location"] = job.links.self
    return job


@api.get("/jobs", response_model=JobList, responses=problem_responses(InvalidRequest))
def list_jobs(
    manager: Manager,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(description="`next_cursor` of the page before.")] = None,
    status: JobStatus | None = None,
    model: str | None = None,
    method: str | None = None,
) -> JobList:
    """The jobs, newest first. Pages neither skip nor repeat a job while new ones arrive."""
    records = manager.page(limit=limit + 1, before=read_cursor(cursor), status=status, model=model, method=method)
    page = records[:limit]
    following = write_cursor(page[-1].seq) if len(records) > limit else None
    return JobList(jobs=[job_answer(record, manager) for record in page], next_cursor=following)


@api.get("/jobs/{job_id}", response_model=Job, responses=problem_responses(JobNotFound))
async def get_job(
    job_id: str,
    request: Request,
    response: Response,
    manager: Manager,
    wait: Annotated[float, Query(ge=0, le=MAX_WAIT, description="Seconds to wait for the job's end.")] = 0,
) -> Job:
    """The job: its status, progress and, if it failed, why. With `wait` (or `Prefer: wait`), once it has ended."""
    ended = request.app.state.ends.expect(job_id)
    try:
        job = await run_in_threadpool(_current_job, job_id, manager)
        patience = wait or _preferred_wait(request)
        if patience and not job.status.is_terminal:
            await asyncio.wait([ended], timeout=patience)
            job = await run_in_threadpool(_current_job, job_id, manager)
    finally:
        ended.cancel()
    if not job.status.is_terminal:
        response.headers["Retry-After"] = "1"
    return job


@api.get(
    "/jobs/{job_id}/results",
    responses={
        200: {"model": AttributionResult, "description": "The result in the asked view"},
        304: {"description": "Not modified"},
        **problem_responses(JobNotFound, ResultNotReady, NoResult, InvalidRequest),
    },
    response_class=Response,
)
def get_results(
    job_id: str,
    request: Request,
    manager: Manager,
    engine: TheEngine,
    store: Store,
    view: Annotated[
        Literal["json", "inseq"],
        Query(alias="format", description="`inseq`: a file for `inseq.FeatureAttributionOutput.load`."),
    ] = "json",
    aggregator: Annotated[
        str | None, Query(description="Inseq's aggregators in order, e.g. `subwords,scores`.")
    ] = None,
    aggregate_fn: Annotated[
        str | None, Query(description="A function for each aggregator, e.g. `absmax,vnorm`; empty for its default.")
    ] = None,
    aggregator_args: Annotated[str | None, Query(description="Arguments of the aggregators, as a JSON object.")] = None,
    normalize: Annotated[bool | None, Query(description="Whether scores sum to 1 over the attributed tokens.")] = None,
    granular: Annotated[bool, Query(description="The scores as they were computed, not aggregated.")] = False,
    decode_tokens: Annotated[
        bool, Query(description="Each token as people read it (`text`) beside the raw one.")
    ] = False,
) -> Response:
    """The result of a completed job."""
    record = manager.get(job_id)
    if record.status is not JobStatus.COMPLETED:
        raise no_result(record)
    from attribution.results import ViewOptions

    options = ViewOptions(
        aggregators=names(aggregator),
        aggregate_fn=tuple(name or None for name in aggregate_fn.split(",")) if aggregate_fn is not None else (),
        aggregator_args=json_object(aggregator_args),
        normalize=normalize,
        granular=granular,
        decode_tokens=decode_tokens,
    )
    options.check()
    files = store.files(record.job_id)
    stored = options.is_default and view == "json"
    basis = files["summary" if stored else "raw"].sha256
    etag = f'W/"{hashlib.sha256(f"{basis} {view} {options}".encode()).hexdigest()[:32]}"'
    headers = {"ETag": etag, "Vary": "Accept-Encoding", "Cache-Control": "private, no-cache"}
    if etag in {each.strip() for each in request.headers.get("If-None-Match", "").split(",")}:
        return Response(status_code=304, headers=headers)
    if view == "inseq":
        headers["Content-Disposition"] = f'attachment; filename="{record.job_id}.json"'
    zipped = store.read(files["summary"]) if stored else None
    content = None if zipped is not None else engine.view(store.read(files["raw"]), view, options)
    if "gzip" in request.headers.get("Accept-Encoding", ""):
        headers["Content-Encoding"] = "gzip"
        body = zipped if zipped is not None else gzip.compress(content or b"", 5, mtime=0)
    else:
        body = gzip.decompress(zipped) if zipped is not None else content or b""
    return Response(body, media_type="application/json", headers=headers)


# What can be asked for


@api.get("/methods")
def list_methods(engine: TheEngine) -> dict[str, list[dict[str, Any]]]:
    """The attribution methods, with their parameters."""
    return {"methods": engine.methods()}


@api.get("/step_functions")
def list_step_functions(engine: TheEngine) -> dict[str, list[dict[str, Any]]]:
    """The step functions: for `step_scores`, and for `attributed_fn`."""
    return {"step_functions": engine.step_functions()}


@api.get("/corrections")
def list_corrections(engine: TheEngine) -> list[dict[str, str]]:
    """Where Inseq is wrong or fails, and what is done instead; `info.corrections` names those applied to a result."""
    return engine.corrections()  # type: ignore[no-any-return]


@api.get("/aggregators")
def list_aggregators(engine: TheEngine) -> dict[str, Any]:
    """The aggregators and aggregation functions of a result's views."""
    return engine.aggregators()  # type: ignore[no-any-return]


@api.get("/models")
def list_models(engine: TheEngine) -> dict[str, Any]:
    """The bundled models, those in memory, and which others the server allows."""
    return engine.models()  # type: ignore[no-any-return]


# The service itself


@meta.get("/", include_in_schema=False)
def index() -> RedirectResponse:
    return RedirectResponse("/docs")


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


@meta.get("/problems/{slug}", responses=problem_responses(JobNotFound))
def describe_problem(slug: str) -> dict[str, Any]:
    """What a problem's `type` means."""
    for error in all_errors():
        if error.slug == slug:
            return {"type": f"/problems/{slug}", "title": error.title(), "status": int(error.status)}
    raise JobNotFound(f"There is no problem type {slug!r}.")


# Putting it together


def create_app(settings: Settings | None = None, engine: Engine | None = None) -> FastAPI:
    """The app, with the given settings and engine (Inseq on this machine's devices, if none is given).

    Opening the store and starting the workers happens when the app starts, so that making one costs nothing.
    """
    settings = settings or Settings()

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
            prepare_worker=lambda: chosen.prepare_worker(threads),
        )
        app.state.engine, app.state.store, app.state.manager = chosen, store, manager
        app.state.ends = EndOfJobs(asyncio.get_running_loop())
        manager.tell_of_ends(app.state.ends.tell)
        manager.start()
        log.info("server_started", devices=list(devices), workers=workers, data_dir=str(settings.data_dir))
        try:
            yield
        finally:
            await run_in_threadpool(manager.stop, settings.shutdown_grace_seconds)
            store.close()
            log.info("server_stopped")

    app = FastAPI(
        title="Attribution as a service",
        summary="Inseq feature attribution as durable jobs over HTTP.",
        version=VERSION,
        lifespan=lifespan,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
    )
    app.include_router(api)
    app.include_router(meta)
    install_error_handlers(app)
    app.add_middleware(RequestGuard, max_bytes=settings.max_body_bytes, allowed_hosts=settings.allowed_hosts)
    app.add_middleware(RequestIdMiddleware)
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


def _current_job(job_id: str, manager: JobManager) -> Job:
    return job_answer(manager.get(job_id), manager)


def _preferred_wait(request: Request) -> float:
    """Seconds of a `Prefer: wait=N` header (RFC 7240), which is a wish: what is not understood is not an error."""
    found = re.search(r"\bwait=(\d{1,6})\b", request.headers.get("Prefer", ""))
    return min(float(found.group(1)), MAX_WAIT) if found else 0.0


# The command line


def main(arguments: list[str] | None = None) -> None:
    """`python main.py [--host HOST] [--port PORT] [--data-dir DIR]`."""
    parser = argparse.ArgumentParser(description="Serve feature attribution jobs over HTTP.")
    parser.add_argument("--host", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, help="port to listen on (default: 8000)")
    parser.add_argument("--data-dir", type=Path, help="where jobs and results are stored (default: data/)")
    given = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
    settings = Settings(**given)
    if not settings.is_loopback and not settings.allow_public:
        parser.error(
            f"{settings.host} can be reached by other machines, and there is no authentication yet. Set "
            "INSEQ_API_ALLOW_PUBLIC=true (and INSEQ_API_ALLOWED_HOSTS) if that is what you want."
        )
    try:
        JobStore(settings.data_dir).close()
    except StorageFailed as error:  # told here on a line of its own, and not in a traceback of the app's start
        parser.exit(1, f"{error.detail}\n")
    configure_logging()
    serve(create_app(settings), settings.host, settings.port)


if __name__ == "__main__":
    main()
