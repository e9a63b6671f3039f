"""Turns errors into `application/problem+json` responses, and describes them for the OpenAPI document."""

from __future__ import annotations

import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from api.allowed_methods import methods_of
from attribution_schema.did_you_mean import did_you_mean
from attribution_schema.messages import ChatMessage, TextPart, ToolCall, ToolFunction
from attribution_schema.spans import Segment, Span
from models import MODEL_NAME_PATTERN, AttributionRequest, Problem, ProblemItem, TokenizerArguments
from problems import (
    PROBLEM_MEDIA_TYPE,
    InvalidRequest,
    MalformedBody,
    MalformedRequest,
    MethodNotAllowed,
    NotFound,
    ServiceError,
)

log = structlog.get_logger(__name__)


def install_error_handlers(app: FastAPI) -> None:
    """Have expected errors answered with problem documents; `RequestIdMiddleware` answers unexpected ones."""
    app.add_exception_handler(ServiceError, _service_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)


def problem_responses(*errors: type[ServiceError]) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` argument of a route that may raise these errors, for the OpenAPI document."""
    responses: dict[int | str, dict[str, Any]] = {}
    for error in errors:
        entry = responses.setdefault(
            int(error.status),
            {"description": error.title(), "content": {PROBLEM_MEDIA_TYPE: {"schema": {"$ref": _PROBLEM_SCHEMA}}}},
        )
        if error.title() not in entry["description"]:
            entry["description"] += f". {error.title()}"
    return responses


_PROBLEM_SCHEMA = "#/components/schemas/Problem"


def loggable_path(path: str) -> str:
    """Return a path without the token of a link for others, which must not be in a log."""
    return re.sub(r"^/shared/[^/]*", "/shared/…", path)


def problem_response(problem: Problem, headers: dict[str, str] | None = None) -> JSONResponse:
    """Return the problem as a response."""
    return JSONResponse(
        problem.model_dump(mode="json"),
        status_code=problem.status,
        headers=headers,
        media_type=PROBLEM_MEDIA_TYPE,
    )


async def _service_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ServiceError)
    if error.status >= 500:  # noqa: PLR2004
        log.error("request_failed", path=loggable_path(request.url.path), problem=error.slug, detail=error.detail)
    return problem_response(error.to_problem(request.url.path), error.headers)


async def _validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    body = _body_of(request)
    items = _one_per_place(_item(each, body) for each in error.errors())
    if any(each["type"] == "json_invalid" for each in error.errors()):
        found: ServiceError = MalformedBody(items[0].detail, errors=items)
    else:
        where = items[0].pointer or items[0].parameter or "the request"
        more = f" (and {len(items) - 1} more)" if len(items) > 1 else ""
        found = InvalidRequest(f"{where}: {items[0].detail}{more}", errors=items)
    return problem_response(found.to_problem(request.url.path))


def _one_per_place(items: Iterable[ProblemItem]) -> list[ProblemItem]:
    """Merge errors at the same place: they are those of a union's members, one of which would be enough."""
    merged: dict[tuple[str | None, str | None], ProblemItem] = {}
    for item in items:
        place = (item.pointer, item.parameter)
        before = merged.get(place)
        detail = f"{before.detail}, or: {item.detail}" if before else item.detail
        merged[place] = item.model_copy(update={"detail": detail})
    return list(merged.values())


def _body_of(request: Request) -> type[BaseModel] | None:
    """The model of the body that the request's route takes; None if it takes none."""
    field = getattr(request.scope.get("route"), "body_field", None)
    found = field and field.field_info.annotation
    return found if isinstance(found, type) and issubclass(found, BaseModel) else None


def _item(error: Any, body: type[BaseModel] | None) -> ProblemItem:
    place, *path = error["loc"]
    detail = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "json_invalid":
        (position,), reason = path, error["ctx"]["error"]
        where = f": {reason.rstrip('.')} at character {position}." if position else f". {reason}"
        return ProblemItem(pointer="", detail=f"The body is not valid JSON{where}")
    if error.get("ctx", {}).get("pattern") == MODEL_NAME_PATTERN:
        detail = (
            "This is no model name: write name or org/name, optionally followed by @revision; base+adapter; or "
            "folder/file.gguf."
        )
    if place == "body":
        # Pydantic's path also contains the tried members of a union (`str`, `list[...]`); a JSON pointer must not.
        keys = [str(each) for each in path if isinstance(each, int) or _is_key(str(each))]
        if error["type"] == "extra_forbidden":
            detail = _no_such_field(path, body)
        return ProblemItem(pointer="".join(f"/{each}" for each in keys), detail=detail)
    return ProblemItem(parameter=".".join(map(str, path)), detail=detail)


# The fields that an object in the body of a new job may have, by the fields that lead to it.
_OBJECTS: dict[tuple[str, ...], type[BaseModel]] = {
    ("tokenizer_args",): TokenizerArguments,
    ("segments",): Segment,
    ("spans",): Span,
    ("messages",): ChatMessage,
    ("messages", "content"): TextPart,
    ("messages", "tool_calls"): ToolCall,
    ("messages", "tool_calls", "function"): ToolFunction,
}


def _no_such_field(path: list[str | int], body: type[BaseModel] | None) -> str:
    name, parents = str(path[-1]), tuple(each for each in path[:-1] if isinstance(each, str) and _is_key(each))
    model = (_OBJECTS.get(parents) if body is AttributionRequest else None) if parents else body
    known = model.model_fields if model else {}
    near = did_you_mean(name, known)
    return f"There is no field {name!r}{near}." + (f" There are: {', '.join(known)}." if known and not near else "")


# As Pydantic names them; no field of a request has such a name.
_UNION_MEMBERS = {"str", "constrained-str", "int", "constrained-int"}


def _is_key(part: str) -> bool:
    return part not in _UNION_MEMBERS and not part.startswith(("list[", "dict[", "function-", "literal["))


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    """Answer what the router and the file server refuse."""
    assert isinstance(error, HTTPException)
    path, headers = request.url.path, dict(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = methods_of(request.app, path)
        found: ServiceError = MethodNotAllowed(f"This path has the methods {', '.join(allowed)}.")
        headers["Allow"] = ", ".join(allowed)
    elif error.status_code == HTTPStatus.NOT_FOUND:
        found = NotFound("Nothing is at this path. GET /openapi.json lists the paths.")
    elif error.status_code == HTTPStatus.BAD_REQUEST:
        found = MalformedRequest(error.detail)
    else:
        log.error("request_failed", path=loggable_path(path), status=error.status_code, detail=error.detail)
        found = ServiceError()
    return problem_response(found.to_problem(path), headers)
