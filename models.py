"""What crosses the wire, as one import for the server; the content is `attribution_schema`'s."""

from attribution_schema.estimate import Estimate, InputEstimate, SecondsEstimate
from attribution_schema.job import (
    Job,
    JobEvent,
    JobFacets,
    JobIds,
    JobList,
    JobOutcome,
    JobOutcomes,
    JobStatus,
    JobUpdate,
    Links,
    Outcome,
    Progress,
    Stage,
)
from attribution_schema.messages import ChatMessage
from attribution_schema.open_enum import TOLERANT, OpenEnum
from attribution_schema.problem import Problem, ProblemItem
from attribution_schema.request import (
    METHOD_ALIASES,
    MODEL_NAME_PATTERN,
    Arguments,
    AttributionRequest,
    Engine,
    TokenizerArguments,
)
from attribution_schema.result import (
    Agreement,
    AttributionResult,
    Candidate,
    ComparisonResult,
    JobAgreement,
    JobAgreements,
    MethodResult,
    ResultPart,
    SequenceAttribution,
    Token,
)
from attribution_schema.share import NewShare, Share, SharedJob, SharedLinks, ShareList, ShareRequest
from attribution_schema.spans import TextSelection
from attribution_schema.trace_options import TraceOptions
from attribution_schema.trace_result import (
    PlacedToken,
    SequenceTrace,
    TracedSpan,
    TraceHop,
    TracePath,
    TraceResult,
)
from attribution_schema.view_options import ViewOptions
from attribution_schema.webhook import WebhookDelivery, WebhookStatus

__all__ = [
    "METHOD_ALIASES",
    "MODEL_NAME_PATTERN",
    "TOLERANT",
    "Agreement",
    "Arguments",
    "AttributionRequest",
    "AttributionResult",
    "Candidate",
    "ChatMessage",
    "ComparisonResult",
    "Engine",
    "Estimate",
    "InputEstimate",
    "Job",
    "JobAgreement",
    "JobAgreements",
    "JobEvent",
    "JobFacets",
    "JobIds",
    "JobList",
    "JobOutcome",
    "JobOutcomes",
    "JobStatus",
    "JobUpdate",
    "Links",
    "MethodResult",
    "NewShare",
    "OpenEnum",
    "Outcome",
    "PlacedToken",
    "Problem",
    "ProblemItem",
    "Progress",
    "ResultPart",
    "SecondsEstimate",
    "SequenceAttribution",
    "SequenceTrace",
    "Share",
    "ShareList",
    "ShareRequest",
    "SharedJob",
    "SharedLinks",
    "Stage",
    "TextSelection",
    "Token",
    "TokenizerArguments",
    "TraceHop",
    "TraceOptions",
    "TracePath",
    "TraceResult",
    "TracedSpan",
    "ViewOptions",
    "WebhookDelivery",
    "WebhookStatus",
]
