"""Routes of one job for whoever has a link to it, without a key: its document, its result, and a page that shows them.

Read only, and of this job alone. No answer may be indexed by search engines: `SecurityHeadersMiddleware` says so.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse

from api.dependencies import ManagerDep, ServicesDep
from api.documents import shared_document_of
from api.problem_responses import problem_responses
from api.routes.pages import HEADERS, WEB
from api.routes.results import RESULT_RESPONSES, Method, Partial, View, result_response
from models import SharedJob, ViewOptions
from problems import InvalidRequest, ShareExpired, ShareNotFound

shared = APIRouter(
    prefix="/shared/{token}",
    tags=["sharing"],
    responses=problem_responses(ShareNotFound, ShareExpired, InvalidRequest),
)


@shared.get("", response_class=FileResponse, include_in_schema=False)
async def shared_page(token: str, manager: ManagerDep) -> Response:
    """Show the job in a browser, by the page at `/`. Without a job it says why, with the status of the problem."""
    status = 200
    try:
        await run_in_threadpool(manager.shared, token)
    except (ShareNotFound, ShareExpired) as error:
        status = int(error.status)
    return FileResponse(WEB / "index.html", status_code=status, headers=HEADERS)


@shared.get("/job", response_model=SharedJob)
def get_shared_job(token: str, manager: ManagerDep, response: Response) -> SharedJob:
    """Return the job that a link opens, without its owner's notes, tags and webhook."""
    response.headers["Cache-Control"] = "private, no-cache"
    return shared_document_of(manager.shared(token), f"/shared/{token}")


@shared.get("/results", responses=RESULT_RESPONSES, response_class=Response)
async def get_shared_results(
    token: str,
    request: Request,
    services: ServicesDep,
    options: Annotated[ViewOptions, Query()],
    view: View = None,
    method: Method = None,
    partial: Partial = False,
) -> Response:
    """Return the result of the job that a link opens, in any view, as `GET /attribution/jobs/{job_id}/results` does."""
    return await result_response(
        lambda: services.manager.shared(token), request, services, options, view, method, partial=partial
    )


@shared.get("/aggregators")
def list_shared_aggregators(token: str, services: ServicesDep) -> dict[str, Any]:
    """List the aggregators for views of the result, as `GET /attribution/aggregators` does."""
    services.manager.shared(token)
    return services.engine.aggregators()
