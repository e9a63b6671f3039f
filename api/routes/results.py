"""The routes of results: one in a view, with format, compression, and 304 for a client that has the current version;
and how far several agree.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from api.dependencies import OwnerDep, ServicesDep
from api.documents import missing_result_error
from api.engine_protocol import AttributionEngineProtocol
from api.job_agreement import MOST_JOBS, job_agreements
from api.problem_responses import problem_responses
from api.result_formats import NEGOTIABLE, SENT, Format, accepted_format, accepts_gzip, check_fits, is_current
from api.result_parts import Contents, contents
from api.services import Services
from jobs.store.records import JobRecord
from models import AttributionResult, ComparisonResult, JobAgreements, JobStatus, ViewOptions
from problems import (
    InvalidRequest,
    JobNotFound,
    NoResult,
    NotAcceptable,
    ResultDamaged,
    ResultExpired,
    ResultNotReady,
    ServiceError,
    Unauthorized,
)

results = APIRouter(
    prefix="/attribution", tags=["attribution"], responses=problem_responses(InvalidRequest, Unauthorized)
)


RESULT_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "model": AttributionResult | ComparisonResult,
        "description": "The result in the asked view",
        "content": {media_type: {} for media_type in NEGOTIABLE},
    },
    304: {"description": "Not modified"},
    **problem_responses(NotAcceptable, ResultNotReady, NoResult, ResultExpired, ResultDamaged, InvalidRequest),
}
View = Annotated[
    Format | None,
    Query(
        alias="format",
        description="`json` (default), `html`: a heatmap, `csv` or `parquet`: a tidy table, `inseq`: a file for "
        "`inseq.FeatureAttributionOutput.load`. Without it, the `Accept` header decides.",
    ),
]
Method = Annotated[str | None, Query(description="For a comparison: the method whose result to return.")]
Partial = Annotated[
    bool, Query(description="Return the tokens attributed so far by a running, failed or cancelled job.")
]


@results.get(
    "/jobs/{job_id}/results",
    responses={**problem_responses(JobNotFound), **RESULT_RESPONSES},
    response_class=Response,
)
async def get_results(
    job_id: str,
    request: Request,
    services: ServicesDep,
    owner: OwnerDep,
    options: Annotated[ViewOptions, Query()],
    view: View = None,
    method: Method = None,
    partial: Partial = False,
) -> Response:
    """Return the result of a completed job, in the view that `format` or the `Accept` header asks for.

    With `partial`, also what a running, failed or cancelled job has attributed so far.
    """
    return await result_response(
        lambda: services.manager.get(job_id, owner), request, services, options, view, method, partial=partial
    )


async def result_response(
    find_job: Callable[[], JobRecord],
    request: Request,
    services: Services,
    options: ViewOptions,
    view: Format | None,
    method: str | None,
    *,
    partial: bool,
) -> Response:
    """Return a job's result in a view. find_job: returns the job, on a thread, or raises what the client gets."""
    engine, manager, store = services.engine, services.manager, services.store

    def find() -> tuple[JobRecord, Contents]:
        job = find_job()
        return job, contents(job, manager, store, method=method, partial=partial)

    # An unfinished result is encoded when it is found.
    job, found = await (services.views if partial else services.stored_views).run(request, find)
    view = view or _preferred(request.headers.get("Accept", "*/*"), is_joint=found.is_joint)
    check_fits(view, options)
    if found.is_joint and view != "json":
        raise InvalidRequest(f"This job compares methods: say whose {view} with method={'|'.join(found.raw)}.")
    policy = engine.page_policy(options) if view == "html" else ""
    etag = _etag(found, view, options, policy)
    headers = {"ETag": etag, "Vary": "Accept, Accept-Encoding", "Cache-Control": "private, no-cache"}
    if is_current(etag, request.headers.get("If-None-Match", "")):
        return Response(status_code=304, headers=headers)
    sent = SENT[view]
    if not sent.is_page:
        headers["Content-Disposition"] = f'attachment; filename="{job.job_id}.{sent.suffix}"'
    if policy:
        headers["Content-Security-Policy"] = policy
    is_zipped = not sent.is_compressed and accepts_gzip(request.headers.get("Accept-Encoding", ""))
    if is_zipped:
        headers["Content-Encoding"] = "gzip"
    threads = services.stored_views if _is_stored(view, options) else services.views
    content = await threads.run(request, lambda: _body(engine, found, view, options, zipped=is_zipped))
    return Response(content, media_type=sent.media_type, headers=headers)


@results.get(
    "/agreement",
    response_model=JobAgreements,
    responses=problem_responses(JobNotFound, ResultNotReady, NoResult, ResultExpired, ResultDamaged, InvalidRequest),
)
async def compare_jobs(
    request: Request,
    services: ServicesDep,
    owner: OwnerDep,
    jobs: Annotated[
        str,
        Query(
            description=f"Ids of 1 to {MOST_JOBS} completed jobs, joined by commas.",
            max_length=33 * MOST_JOBS,
            json_schema_extra={"pattern": rf"^[^,]{{1,32}}(,[^,]{{1,32}}){{0,{MOST_JOBS - 1}}}$"},  # with words below
        ),
    ],
) -> JobAgreements:
    """Return how far the results of several jobs agree, each two of them, where they have the same tokens.

    The methods of a comparison count as results of their own.
    """
    manager, store = services.manager, services.store
    ids = list(dict.fromkeys(each for each in jobs.split(",") if each))
    if not 1 <= len(ids) <= MOST_JOBS:
        raise InvalidRequest(f"Give the ids of 1 to {MOST_JOBS} jobs, joined by commas; these are {len(ids)}.")

    def compare() -> JobAgreements:
        summaries, methods = {}, {}
        for job_id in ids:
            record = manager.get(job_id, owner)
            try:
                if record.status is not JobStatus.COMPLETED:  # an unfinished result cannot be asked for here
                    raise missing_result_error(record)
                found = contents(record, manager, store, method=None, partial=False)
            except ServiceError as error:
                error.detail = f"Job {job_id}: {error.detail}"
                raise
            summaries[job_id], methods[job_id] = found.summary.read(), record.method_names
        return JobAgreements(agreement=job_agreements(summaries, methods))

    return await services.views.run(request, compare)


def _preferred(accept: str, *, is_joint: bool) -> Format:
    """Return the format that an `Accept` header prefers. Raises `NotAcceptable`."""
    # Browsers accept */*; for a comparison they get JSON, the only format of all its methods together.
    return "json" if is_joint and "*/*" in accept else accepted_format(accept)


def _etag(found: Contents, view: Format, options: ViewOptions, policy: str) -> str:
    """Return a weak ETag. The policy has the hash of the page's style, so that a page in another style differs."""
    raw = "".join(each.sha256 for each in found.raw.values())
    basis = found.summary.sha256 if _is_stored(view, options) else raw
    return f'W/"{hashlib.sha256(f"{basis} {view} {options} {policy}".encode()).hexdigest()[:32]}"'


def _is_stored(view: Format, options: ViewOptions) -> bool:
    """Return whether the view is the stored one, the default JSON."""
    return view == "json" and options.is_default


def _body(
    engine: AttributionEngineProtocol, found: Contents, view: Format, options: ViewOptions, *, zipped: bool
) -> bytes:
    """Return the view, compressed by gzip if `zipped`. Raises `InvalidRequest` for options that Inseq refuses."""
    if _is_stored(view, options):
        stored = found.summary.read()
        return stored if zipped else gzip.decompress(stored)
    raw = {name: each.read() for name, each in found.raw.items()}
    if found.is_joint:
        content = engine.comparison(raw, options)
    else:
        (one,) = raw.values()
        content = engine.view(one, view, options)
    return gzip.compress(content, 5, mtime=0) if zipped else content
