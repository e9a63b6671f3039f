"""What crosses the wire, as one import for the server; the content is `attribution_schema`'s."""

from attribution_schema.estimate import Estimate, InputEstimate, SecondsEstimate
from attribution_schema.job import Job, JobList, JobStatus, Links, Progress, Stage
from attribution_schema.messages import ChatMessage
from attribution_schema.open_enum import TOLERANT, OpenEnum
from attribution_schema.problem import Problem, ProblemItem
from attribution_schema.request import (
    METHOD_ALIASES,
    MODEL_NAME_PATTERN,
    Arguments,
    AttributionRequest,
    Engine,
)
from attribution_schema.result import (
    Agreement,
    AttributionResult,
    Candidate,
    ComparisonResult,
    MethodResult,
    ResultPart,
    SequenceAttribution,
    Token,
)
from attribution_schema.view_options import ViewOptions

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
    "JobList",
    "JobStatus",
    "Links",
    "MethodResult",
    "OpenEnum",
    "Problem",
    "ProblemItem",
    "Progress",
    "ResultPart",
    "SecondsEstimate",
    "SequenceAttribution",
    "Stage",
    "Token",
    "ViewOptions",
]
