"""Sends the requests: connections, retries and server-sent events, blocking and asynchronous.

A request is retried if the connection fails or the server is busy (429, 502, 503, 504). tenacity does that, because
httpx itself retries only failures to connect. The pauses grow exponentially with random jitter, so that many clients
do not return at the same moment, and each is at least `Retry-After` long.
"""

from __future__ import annotations

import os
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

SERVER = "http://localhost:8000"
SERVER_VARIABLE, KEY_VARIABLE = "INSEQ_API_URL", "INSEQ_API_KEY"
RETRY_SECONDS = 60.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 10.0  # seconds
_TIMEOUT = httpx.Timeout(60.0, connect=5.0, read=90.0)  # seconds; the server delays an answer by up to 60
_SILENCE = 45.0  # seconds without data after which a stream counts as broken; the server sends some every 15
_EVENTS = {"status", "progress"}  # events whose data is the job


def http_options(server: str | None, api_key: str | None) -> dict[str, Any]:
    """Arguments for `httpx.Client` and `httpx.AsyncClient`; None means the environment's server or key."""
    server = server or os.environ.get(SERVER_VARIABLE) or SERVER
    api_key = api_key or os.environ.get(KEY_VARIABLE)
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    return {"base_url": server, "headers": headers, "timeout": _TIMEOUT}


def _policy(retry_seconds: float) -> dict[str, Any]:
    return {
        "retry": tenacity.retry_if_exception(_is_temporary),
        "wait": tenacity.wait_exception(_retry_after)
        + tenacity.wait_random_exponential(multiplier=_FIRST_PAUSE, max=_LONGEST_PAUSE),
        # `stop_before_delay`: a pause that would end after the deadline is not started.
        "stop": tenacity.stop_before_delay(retry_seconds),
        "reraise": True,
    }


def _is_temporary(error: BaseException) -> bool:
    if isinstance(error, RequestFailed):
        return error.is_worth_another_try
    return isinstance(error, httpx.TransportError) and not isinstance(error, httpx.UnsupportedProtocol)


def _retry_after(error: BaseException) -> float:
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
    """Sends calls and runs operations with a blocking httpx client."""

    def __init__(self, http: httpx.Client, retry_seconds: float) -> None:
        self._http = http
        self._policy = _policy(retry_seconds)

    def run(self, operation: Operation[Outcome]) -> Outcome:
        """Send each step of the operation and return its outcome."""
        try:
            step = next(operation)
            while True:
                try:
                    answer = self.send(step) if isinstance(step, Call) else self._follow(step)
                except BaseException as error:  # the operation may handle it, and must close its progress bar
                    step = operation.throw(error)
                else:
                    step = operation.send(answer)
        except StopIteration as end:
            outcome: Outcome = end.value
            return outcome

    def send(self, call: Call) -> Any:
        """Send the call, with retries, and return its answer. Raises `RequestFailed` or `ServerUnreachable`."""
        retrying = tenacity.Retrying(**self._policy)

        def attempt() -> Any:
            response = self._http.request(**_request(call))
            return _answer(call, response, retrying.statistics["attempt_number"])

        try:
            return retrying(attempt)
        except httpx.TransportError as error:
            raise _unreachable(error, self._http.base_url) from error

    def _follow(self, step: Follow) -> Job:
        job = step.job
        timeout = httpx.Timeout(_TIMEOUT.connect, read=_read_timeout(step))
        with suppress(httpx.TransportError), connect_sse(self._http, "GET", step.path, timeout=timeout) as source:
            if not source.response.is_success:
                source.response.read()
                _raise_unless_temporary(source.response)
                return job
            for event in source.iter_sse():
                job = _job_after(event, job, step.report)
                if job.has_ended or _is_over(step):
                    break
        return job


class AsyncSender:
    """Sends calls and runs operations with an asynchronous httpx client."""

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
        """Send the call, with retries, and return its answer. Raises `RequestFailed` or `ServerUnreachable`."""
        retrying = tenacity.AsyncRetrying(**self._policy)

        async def attempt() -> Any:
            response = await self._http.request(**_request(call))
            return _answer(call, response, retrying.statistics["attempt_number"])

        try:
            return await retrying(attempt)
        except httpx.TransportError as error:
            raise _unreachable(error, self._http.base_url) from error

    async def _follow(self, step: Follow) -> Job:
        job = step.job
        timeout = httpx.Timeout(_TIMEOUT.connect, read=_read_timeout(step))
        with suppress(httpx.TransportError):
            async with aconnect_sse(self._http, "GET", step.path, timeout=timeout) as source:
                if not source.response.is_success:
                    await source.response.aread()
                    _raise_unless_temporary(source.response)
                    return job
                async for event in source.aiter_sse():
                    job = _job_after(event, job, step.report)
                    if job.has_ended or _is_over(step):
                        break
        return job


def _read_timeout(step: Follow) -> float:
    """Seconds to wait for data. Short with a deadline, because httpx restarts its timeout with all data that comes."""
    return _SILENCE if step.deadline is None else LONG_POLL


def _is_over(step: Follow) -> bool:
    return step.deadline is not None and time.monotonic() >= step.deadline


def _job_after(event: ServerSentEvent, job: Job, report: Callable[[Job], None]) -> Job:
    # An event without data sets the reconnection time, and a newer server may send other kinds of events.
    if event.data and event.event in _EVENTS:
        job = read_as(Job, event.data)
        report(job)
    return job


def _raise_unless_temporary(response: httpx.Response) -> None:
    try:
        raise_for_problem(response)
    except RequestFailed as error:
        if not error.is_worth_another_try:
            raise
