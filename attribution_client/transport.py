"""Sending: connections, retries and server-sent events, blocking and asynchronous.

A request is tried again where the connection fails and where the server says that it is busy (429, 502, 503, 504):
with tenacity, because httpx's own retries see failures to connect only. Pauses grow exponentially and at random, so
that many clients do not come back at once, and are at least as long as `Retry-After` says.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import httpx
import tenacity
from httpx_sse import ServerSentEvent, aconnect_sse, connect_sse

from attribution_client.calls import LONG_POLL, Call, Follow, Operation, Outcome, read_as
from attribution_client.errors import RequestFailed, ServerUnreachable, raise_for_problem
from attribution_schema.job import Job

_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 10.0  # seconds
_TIMEOUT = httpx.Timeout(60.0, connect=5.0, read=90.0)  # a held answer takes up to 60 seconds
_SILENCE = 45.0  # seconds without a sign of life after which a stream is taken to be cut; one comes every 15
_EVENTS = {"status", "progress"}  # whose data is the job


def options(server: str, api_key: str | None) -> dict[str, Any]:
    """What both kinds of httpx client are made with."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    return {"base_url": server, "headers": headers, "timeout": _TIMEOUT}


def _policy(retry_seconds: float) -> dict[str, Any]:
    return {
        "retry": tenacity.retry_if_exception(_is_passing),
        "wait": tenacity.wait_exception(_asked_pause)
        + tenacity.wait_random_exponential(multiplier=_FIRST_PAUSE, max=_LONGEST_PAUSE),
        # Before, not after: a pause that the time left does not hold is not slept through for nothing.
        "stop": tenacity.stop_before_delay(retry_seconds),
        "reraise": True,
    }


def _is_passing(error: BaseException) -> bool:
    if isinstance(error, RequestFailed):
        return error.is_worth_another_try
    return isinstance(error, httpx.TransportError) and not isinstance(error, httpx.UnsupportedProtocol)


def _asked_pause(error: BaseException) -> float:
    return (error.retry_after if isinstance(error, RequestFailed) else None) or 0.0


def _request(call: Call) -> dict[str, Any]:
    return {
        "method": call.method,
        "url": call.path,
        "params": call.params,
        "headers": call.headers,
        **({} if call.body is None else {"json": call.body}),
    }


def _answer(call: Call, response: httpx.Response, attempt: int) -> Any:
    if attempt == 1 or response.status_code != call.done_if_repeated:
        raise_for_problem(response)
    return call.read(response)


def _unreachable(error: httpx.TransportError, url: httpx.URL) -> ServerUnreachable:
    return ServerUnreachable(f"{url} does not answer ({error or type(error).__name__}). Is the server running there?")


class Sender:
    """Sends what operations yield, blocking."""

    def __init__(self, http: httpx.Client, retry_seconds: float) -> None:
        self._http = http
        self._policy = _policy(retry_seconds)

    def run(self, operation: Operation[Outcome]) -> Outcome:
        try:
            step = next(operation)
            while True:
                try:
                    answer = self.send(step) if isinstance(step, Call) else self._follow(step)
                except BaseException as error:  # the operation's to handle, and its progress bar's to close
                    step = operation.throw(error)
                else:
                    step = operation.send(answer)
        except StopIteration as end:
            outcome: Outcome = end.value
            return outcome

    def send(self, call: Call) -> Any:
        try:
            for attempt in tenacity.Retrying(**self._policy):
                with attempt:
                    response = self._http.request(**_request(call))
                    return _answer(call, response, attempt.retry_state.attempt_number)
        except httpx.TransportError as error:
            raise _unreachable(error, self._http.base_url) from error
        raise AssertionError("unreachable")

    def _follow(self, step: Follow) -> Job:
        job = step.job
        timeout = httpx.Timeout(_TIMEOUT.connect, read=_patience(step))
        with suppress(httpx.TransportError), connect_sse(self._http, "GET", step.path, timeout=timeout) as source:
            if not source.response.is_success:
                source.response.read()
                _raise_unless_passing(source.response)
                return job
            for event in source.iter_sse():
                job = _told(event, job, step.report)
                if job.has_ended or _is_over(step):
                    break
        return job


class AsyncSender:
    """Sends what operations yield, on the event loop."""

    def __init__(self, http: httpx.AsyncClient, retry_seconds: float) -> None:
        self._http = http
        self._policy = _policy(retry_seconds)

    async def run(self, operation: Operation[Outcome]) -> Outcome:
        try:
            step = next(operation)
            while True:
                try:
                    answer = await (self.send(step) if isinstance(step, Call) else self._follow(step))
                except BaseException as error:
                    step = operation.throw(error)
                else:
                    step = operation.send(answer)
        except StopIteration as end:
            outcome: Outcome = end.value
            return outcome

    async def send(self, call: Call) -> Any:
        try:
            async for attempt in tenacity.AsyncRetrying(**self._policy):
                with attempt:
                    response = await self._http.request(**_request(call))
                    return _answer(call, response, attempt.retry_state.attempt_number)
        except httpx.TransportError as error:
            raise _unreachable(error, self._http.base_url) from error
        raise AssertionError("unreachable")

    async def _follow(self, step: Follow) -> Job:
        job = step.job
        timeout = httpx.Timeout(_TIMEOUT.connect, read=_patience(step))
        with suppress(httpx.TransportError):
            async with aconnect_sse(self._http, "GET", step.path, timeout=timeout) as source:
                if not source.response.is_success:
                    await source.response.aread()
                    _raise_unless_passing(source.response)
                    return job
                async for event in source.aiter_sse():
                    job = _told(event, job, step.report)
                    if job.has_ended or _is_over(step):
                        break
        return job


def _patience(step: Follow) -> float:
    """Seconds of silence to bear: few with a deadline, because each sign of life starts httpx's clock again."""
    return _SILENCE if step.deadline is None else LONG_POLL


def _is_over(step: Follow) -> bool:
    return step.deadline is not None and time.monotonic() >= step.deadline


def _told(event: ServerSentEvent, job: Job, report: Callable[[Job], None]) -> Job:
    # Without data it says when to connect again; and a newer server may tell of other things.
    if event.data and event.event in _EVENTS:
        job = read_as(Job, event.data)
        report(job)
    return job


def _raise_unless_passing(response: httpx.Response) -> None:
    try:
        raise_for_problem(response)
    except RequestFailed as error:
        if not error.is_worth_another_try:
            raise
