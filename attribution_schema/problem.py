"""Errors as RFC 9457 problem documents."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer


class _WithoutNulls(BaseModel):
    """A document that leaves out members without a value, as in RFC 9457."""

    @model_serializer(mode="wrap")
    def _leave_out_nulls(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items() if value is not None}


class ProblemItem(_WithoutNulls):
    """One of several errors in a request, and its place: a JSON pointer into the body, or a parameter."""

    model_config = ConfigDict(frozen=True)

    pointer: str | None = Field(None, description="JSON pointer into the body (RFC 6901).", examples=["/method"])
    parameter: str | None = Field(None, description="Query or path parameter.")
    detail: str


class Problem(_WithoutNulls):
    """An error, as RFC 9457 `application/problem+json`."""

    model_config = ConfigDict(frozen=True)

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    instance: str | None = None
    errors: list[ProblemItem] | None = None
    cause: Problem | None = Field(None, description="The problem that caused this one, e.g. why a job failed.")
