"""Routes of jobs: submit, estimate, list, get, watch, cancel, delete.

They check, ask the manager or the engine, and shape the answer. They are plain functions, which FastAPI runs on
threads, so that nothing blocks the event loop; those that wait for a job are coroutines.
"""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

from api.dependencies import Manager, Owner, TheEngine
from api.documents import job_answer, read_cursor, read_tag, write_cursor
from api.job_watch import event_id
from api.problem_responses import problem_responses
from job_manager import JobManager
from jobs.store.listing import Filters
from models import AttributionRequest, Estimate, Job, JobList, JobStatus
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

MAX_WAIT = 60.0  # seconds a client may have an answer held back
jobs = APIRouter(prefix="/attribution", tags=["attribution"], responses=problem_responses(InvalidRequest, Unauthorized))


@jobs.post(
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


@jobs.post(
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


@jobs.get("/jobs", response_model=JobList, responses=problem_responses(InvalidRequest))
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


@jobs.get("/jobs/{job_id}", response_model=Job, responses=problem_responses(JobNotFound))
async def get_job(
    job_id: str,
    request: Request,
    response: Response,
    manager: Manager,
    owner: Owner,
    wait: Annotated[float, Query(ge=0, le=MAX_WAIT, description="Seconds to wait for the job's end.")] = 0,
) -> Job:
    """The job: its status, progress and, if it failed, why. With `wait` (or `Prefer: wait`), once it has ended."""
    job: Job = await run_in_threadpool(current_job, job_id, manager, owner)
    patience = wait or _preferred_wait(request)
    if patience and not job.status.is_terminal:
        job = await request.app.state.watch.ended(job_id, patience)
    if not job.status.is_terminal:
        response.headers["Retry-After"] = "1"
    return job


@jobs.get(
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
    job = await run_in_threadpool(current_job, job_id, manager, owner)
    if job.status.is_terminal and last_event_id == event_id(job):
        return Response(status_code=204)  # which tells an EventSource not to connect again
    return StreamingResponse(
        request.app.state.watch.stream(job_id, last_event_id),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


@jobs.post(
    "/jobs/{job_id}/cancel",
    status_code=202,
    response_model=Job,
    responses=problem_responses(JobNotFound, JobEnded),
)
def cancel_job(job_id: str, manager: Manager, owner: Owner) -> Job:
    """Give a job up: at once if it waits, within a forward pass if it runs. `cancelled` once the device is free."""
    return job_answer(manager.cancel(job_id, owner))


@jobs.delete("/jobs/{job_id}", status_code=204, responses=problem_responses(JobNotFound, JobActive))
def delete_job(job_id: str, manager: Manager, owner: Owner) -> Response:
    """Forget an ended job and its result."""
    manager.delete(job_id, owner)
    return Response(status_code=204)


def current_job(job_id: str, manager: JobManager, owner: str | None = None) -> Job:
    return job_answer(manager.get(job_id, owner))


def _preferred_wait(request: Request) -> float:
    """Seconds of a `Prefer: wait=N` header (RFC 7240), which is a wish: what is not understood is not an error."""
    found = re.search(r"\bwait=(\d{1,6})\b", request.headers.get("Prefer", ""))
    return min(float(found.group(1)), MAX_WAIT) if found else 0.0
