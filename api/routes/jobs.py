"""Routes of jobs: submit, estimate, list, get, watch, update, cancel, delete; cancel and delete several.

Each calls the manager or the engine and returns a document. Plain functions run on the threads that FastAPI shares
among routes; what may take long runs on threads of its own (`api.work_threads`); a client that waits for a job needs no
thread.
"""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

from api.dependencies import ManagerDep, MayContinueDep, OwnerDep, ServicesDep, WatchDep
from api.documents import job_document_of, outcomes_document, read_cursor, read_tag, write_cursor
from api.job_watch import event_id
from api.problem_responses import problem_responses
from api.request_body import JsonRoute
from job_manager import JobManager
from jobs.store.listing import Filters
from jobs.store.records import OwnerFilter
from models import AttributionRequest, Estimate, Job, JobFacets, JobIds, JobList, JobOutcomes, JobStatus, JobUpdate
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

_OF_MANY = problem_responses(BodyTooLarge, UnsupportedMediaType, StorageFailed)
MAX_WAIT = 60.0  # seconds for which `wait` may delay a response
jobs = APIRouter(
    prefix="/attribution",
    tags=["attribution"],
    responses=problem_responses(InvalidRequest, Unauthorized),
    route_class=JsonRoute,
)


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
async def submit_job(
    body: AttributionRequest,
    request: Request,
    response: Response,
    services: ServicesDep,
    owner: OwnerDep,
    idempotency_key: Annotated[
        str | None,
        Header(
            min_length=1,
            max_length=200,
            description="The same key and body return the first job instead of making a second.",
        ),
    ] = None,
) -> Job:
    """Accept an attribution job. It is durable when this answers: it runs even if the server crashes meanwhile."""
    engine, manager = services.engine, services.manager

    def submit() -> Job:
        services.webhook_hosts.check(body)
        checked = engine.check(body)
        reuse_key = engine.result_identity(checked)
        record = manager.submit(checked, idempotency_key=idempotency_key, owner=owner, reuse_key=reuse_key)
        return job_document_of(record)

    job = await services.submissions.run(request, submit)
    response.headers["Location"] = job.links.self
    return job


@jobs.post(
    "/estimate",
    response_model=Estimate,
    responses=problem_responses(
        InvalidRequest, ModelNotAllowed, ModelUnavailable, InputRejected, BodyTooLarge, UnsupportedMediaType
    ),
)
async def estimate_job(body: AttributionRequest, request: Request, services: ServicesDep, owner: OwnerDep) -> Estimate:
    """Estimate a job's tokens, passes, time and memory. The method does not run, and no job is made."""
    engine, manager = services.engine, services.manager

    def estimated() -> Estimate:
        services.webhook_hosts.check(body)
        estimate = engine.estimate(engine.check(body))
        queue = manager.seconds_until_run(owner, body.priority)
        return estimate.model_copy(update={"seconds": estimate.seconds.model_copy(update={"queue": queue})})

    return await services.estimates.run(request, estimated)


@jobs.get("/jobs", response_model=JobList, responses=problem_responses(InvalidRequest))
def list_jobs(
    manager: ManagerDep,
    owner: OwnerDep,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(description="`next_cursor` of the previous page.")] = None,
    status: JobStatus | None = None,
    model: str | None = None,
    method: str | None = None,
    tag: Annotated[list[str] | None, Query(description="`name` or `name:value`; a job must have all of them.")] = None,
    search: Annotated[
        str | None,
        Query(
            max_length=200,
            description="Words, whole or their beginnings, in any case: a job must have all of them, in its texts, "
            "name, notes, tags, model, methods or id.",
        ),
    ] = None,
) -> JobList:
    """List jobs, newest first. Pages neither skip nor repeat a job while new ones arrive."""
    filters = Filters(status, model, method, [read_tag(each) for each in tag or []], search, owner=owner)
    records = manager.page(filters, limit=limit + 1, before=read_cursor(cursor))
    page = records[:limit]
    following = write_cursor(page[-1].seq) if len(records) > limit else None
    return JobList(jobs=[job_document_of(record) for record in page], next_cursor=following)


@jobs.get("/jobs/facets", response_model=JobFacets)  # before /jobs/{job_id}, which has this path too
def job_facets(manager: ManagerDep, owner: OwnerDep) -> JobFacets:
    """Return the models, methods and tags of one's jobs, by which they can be filtered."""
    return manager.facets(owner)


@jobs.post("/jobs/cancel", response_model=JobOutcomes, responses=_OF_MANY)
def cancel_jobs(body: JobIds, manager: ManagerDep, owner: OwnerDep) -> JobOutcomes:
    """Cancel several jobs, each as a call of its own would. Says of each what became of it."""
    return outcomes_document(manager.cancel_many(body.job_ids, owner))


@jobs.post("/jobs/delete", response_model=JobOutcomes, responses=_OF_MANY)
def delete_jobs(body: JobIds, manager: ManagerDep, owner: OwnerDep) -> JobOutcomes:
    """Delete several ended jobs and their results, each as a call of its own would. Says of each what became of it."""
    return outcomes_document(manager.delete_many(body.job_ids, owner))


@jobs.get("/jobs/{job_id}", response_model=Job, responses=problem_responses(JobNotFound))
async def get_job(
    job_id: str,
    request: Request,
    response: Response,
    manager: ManagerDep,
    watch: WatchDep,
    owner: OwnerDep,
    may_continue: MayContinueDep,
    wait: Annotated[float, Query(ge=0, le=MAX_WAIT, description="Seconds to wait for the job's end.")] = 0,
) -> Job:
    """Return the job: status, progress, and the error if it failed.

    With `wait` (or the header `Prefer: wait`), the response comes when the job has ended or the time is up.
    """
    job = await run_in_threadpool(job_document, manager, job_id, owner)
    seconds = wait or _preferred_wait(request)
    if seconds and not job.status.is_terminal:
        job = await watch.wait_for_end(job_id, seconds, may_continue)
    if not job.status.is_terminal:
        response.headers["Retry-After"] = "1"
    return job


@jobs.get(
    "/jobs/{job_id}/events",
    response_class=StreamingResponse,
    responses={
        204: {"description": "The job has ended, and the client has seen its last event"},
        **problem_responses(JobNotFound),
    },
)
async def watch_job(
    job_id: str,
    watch: WatchDep,
    owner: OwnerDep,
    may_continue: MayContinueDep,
    last_event_id: Annotated[
        str | None, Header(description="The id of the last event received; the stream continues after it.")
    ] = None,
) -> Response:
    """Stream server-sent events: the job's document (event `status` or `progress`) at every change, until it ends."""
    job = await watch.job(job_id, owner)
    if job.status.is_terminal and last_event_id == event_id(job):
        return Response(status_code=204)  # an EventSource does not reconnect after 204
    return StreamingResponse(
        watch.stream(job_id, last_event_id, may_continue),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


@jobs.post(
    "/jobs/{job_id}/cancel",
    status_code=202,
    response_model=Job,
    responses=problem_responses(JobNotFound, JobEnded),
)
def cancel_job(job_id: str, manager: ManagerDep, owner: OwnerDep) -> Job:
    """Cancel a job: a waiting one at once, a running one within a forward pass.

    A running job shows `cancel_requested`, and becomes `cancelled` when it has left the device.
    """
    return job_document_of(manager.cancel(job_id, owner))


@jobs.patch(
    "/jobs/{job_id}",
    response_model=Job,
    responses=problem_responses(JobNotFound, BodyTooLarge, UnsupportedMediaType, StorageFailed),
)
def update_job(job_id: str, body: JobUpdate, manager: ManagerDep, owner: OwnerDep) -> Job:
    """Change a job's name, notes or tags, whatever its status, by a JSON Merge Patch (RFC 7396).

    What the body leaves out stays as it is; null removes. Nothing else of a job can be changed.
    """
    return job_document_of(manager.update(job_id, owner, body))


@jobs.delete("/jobs/{job_id}", status_code=204, responses=problem_responses(JobNotFound, JobActive))
def delete_job(job_id: str, manager: ManagerDep, owner: OwnerDep) -> Response:
    """Delete an ended job and its result."""
    manager.delete(job_id, owner)
    return Response(status_code=204)


def job_document(manager: JobManager, job_id: str, owner: OwnerFilter) -> Job:
    """Return the job's document with its latest progress. Reads the store, so not for the event loop."""
    return job_document_of(manager.get(job_id, owner))


def _preferred_wait(request: Request) -> float:
    """Return the seconds of a `Prefer: wait=N` header; 0 if it is not understood, as RFC 7240 (section 2) asks."""
    found = re.search(r"\bwait=(\d{1,6})\b", request.headers.get("Prefer", ""))
    return min(float(found.group(1)), MAX_WAIT) if found else 0.0
