"""Routes of links for others: the owner of a job makes, lists and revokes them."""

from __future__ import annotations

from typing import Annotated

import structlog
from fastapi import APIRouter, Body, Response

from api.dependencies import OwnerDep, ServicesDep
from api.documents import share_document_of
from api.problem_responses import problem_responses
from api.request_body import JsonRoute
from models import NewShare, ShareList, ShareRequest
from problems import InvalidRequest, JobNotFound, ShareNotFound, StorageFailed, Unauthorized, UnsupportedMediaType

log = structlog.get_logger(__name__)
_DEFAULT = ShareRequest()
_DEFAULT_SECONDS = 7 * 86400
shares = APIRouter(
    prefix="/attribution",
    tags=["sharing"],
    responses=problem_responses(InvalidRequest, Unauthorized, JobNotFound),
    route_class=JsonRoute,
)


@shares.post(
    "/jobs/{job_id}/shares",
    status_code=201,
    response_model=NewShare,
    responses=problem_responses(StorageFailed, UnsupportedMediaType),
)
def share_job(
    job_id: str,
    response: Response,
    services: ServicesDep,
    owner: OwnerDep,
    body: Annotated[ShareRequest, Body()] = _DEFAULT,
) -> NewShare:
    """Make a link through which anybody can read this job and its result, without a key, until it expires.

    The link is told once. It shows neither the job's tags nor its webhook, and no other job.
    """
    job = services.manager.get(job_id, owner)
    longest = services.share_max_seconds
    if not longest:
        raise InvalidRequest("The operator of this server has switched links off (INSEQ_API_SHARE_MAX_DAYS).")
    seconds = body.expires_in_seconds or min(_DEFAULT_SECONDS, longest)
    if seconds > longest:
        raise InvalidRequest.at(
            "/expires_in_seconds",
            f"A link of this server lasts at most {longest:.0f} seconds (INSEQ_API_SHARE_MAX_DAYS). Give fewer.",
        )
    share, token = services.store.shares.create(job, seconds)
    log.info("share_created", job_id=job_id, share_id=share.share_id)
    response.headers["Cache-Control"] = "no-store"
    return NewShare(**share_document_of(share).model_dump(), url=f"/shared/{token}")


@shares.get("/jobs/{job_id}/shares", response_model=ShareList)
def list_shares(job_id: str, services: ServicesDep, owner: OwnerDep) -> ShareList:
    """List the links of a job that have not expired, without the links themselves."""
    job = services.manager.get(job_id, owner)
    return ShareList(shares=[share_document_of(each) for each in services.store.shares.of_job(job)])


@shares.delete("/jobs/{job_id}/shares/{share_id}", status_code=204, responses=problem_responses(ShareNotFound))
def revoke_share(job_id: str, share_id: str, services: ServicesDep, owner: OwnerDep) -> Response:
    """Revoke a link: it opens nothing from now on."""
    services.store.shares.revoke(services.manager.get(job_id, owner), share_id)
    log.info("share_revoked", job_id=job_id, share_id=share_id)
    return Response(status_code=204)
