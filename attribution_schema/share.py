"""Links through which others read one job and its result without a key, and the job as they see it."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

from attribution_schema.job import JobStatus, Progress
from attribution_schema.problem import Problem
from attribution_schema.request import AttributionRequest


class ShareRequest(BaseModel):
    """A link to make."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    expires_in_seconds: int | None = Field(
        None,
        ge=1,
        le=10**10,
        strict=True,
        description="Seconds until the link expires: 7 days by default, and at most what the operator allows.",
    )


class Share(BaseModel):
    """A link that exists; times are UTC, ISO 8601. The link itself is told once, when it is made."""

    model_config = ConfigDict(frozen=True)

    share_id: str
    created_at: datetime
    expires_at: datetime


class NewShare(Share):
    """A link that was just made."""

    url: str = Field(
        description="The link: a path of this server. Who has it can read the job. The server does not tell it again.",
        examples=["/shared/6eHxQ0mBh3m7oWJ2jv0zvKnq0sJ1q7f6q2nB7xQ4Xk8"],
    )


class ShareList(BaseModel):
    """The links of a job that have not expired, oldest first."""

    shares: list[Share]


class SharedLinks(BaseModel):
    """Paths that need no key."""

    self: str
    results: str
    aggregators: str


class SharedJob(BaseModel):
    """A job as the reader of a link sees it: without its owner's notes, tags and webhook."""

    model_config = ConfigDict(frozen=True)

    job_id: str
    status: JobStatus
    progress: Progress
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    expired_at: datetime | None = Field(None, description="When retention removed its result.")
    request: AttributionRequest | None
    error: Problem | None = None
    links: SharedLinks
