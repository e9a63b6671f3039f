"""The clients, blocking and asynchronous: each method is one call or operation of `attribution_client.calls`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import httpx

from attribution_client import calls
from attribution_client.errors import naming
from attribution_client.progress import bar, no_bar
from attribution_client.transport import AsyncSender, Sender, options
from attribution_schema.estimate import Estimate
from attribution_schema.job import Job, JobStatus
from attribution_schema.request import AttributionRequest
from attribution_schema.result import AttributionResult, ComparisonResult

if TYPE_CHECKING:
    import pandas as pd
    from inseq import FeatureAttributionOutput

SERVER = "http://localhost:8000"
SERVER_VARIABLE, KEY_VARIABLE = "INSEQ_API_URL", "INSEQ_API_KEY"
RETRY_SECONDS = 60.0


class AttributionClient:
    """Blocking calls. May be shared by threads; `close` it, or use it in a `with`.

    `server` and `api_key` are those of the environment (`INSEQ_API_URL`, `INSEQ_API_KEY`) if not given. For
    `retry_seconds` a call is tried again where the server does not answer or is busy; 0 for never. Every call raises
    `RequestFailed` with the server's problem document, or `ServerUnreachable`. Bars appear where somebody looks, unless
    `progress` is false. `more` is what `httpx.Client` is to know besides, of proxies or certificates.
    """

    def __init__(
        self,
        server: str | None = None,
        api_key: str | None = None,
        *,
        retry_seconds: float = RETRY_SECONDS,
        progress: bool = True,
        **more: Any,
    ) -> None:
        self._http = httpx.Client(**options(*_place(server, api_key)) | more)
        self._sender = Sender(self._http, retry_seconds)
        self._show = bar if progress else no_bar

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def attribute(
        self,
        model: str,
        method: str,
        input_text: str | list[str] | None = None,
        *,
        timeout: float | None = None,
        view: dict[str, Any] | None = None,
        **fields: Any,
    ) -> AttributionResult:
        """Submit, wait, and return the result; `fields` are the request's, `view` the options of `results`.

        Raises what `wait` raises. When interrupted, or when the server is gone, the job goes on, and the exception's
        note names it.
        """
        job = self.submit(**calls.fields_of(model, method, input_text, fields))
        with naming(job):
            self.wait(job, timeout=timeout)
            return self.results(job, **(view or {}))

    def compare(
        self,
        model: str,
        methods: list[str],
        input_text: str | list[str] | None = None,
        *,
        timeout: float | None = None,
        view: dict[str, Any] | None = None,
        **fields: Any,
    ) -> ComparisonResult:
        """`attribute` by several methods, as one job: the target is generated once. `attribution_args` has each
        method's arguments under its name. `compare_methods` draws what this returns.
        """
        job = self.submit(**calls.fields_of(model, methods, input_text, fields))
        with naming(job):
            self.wait(job, timeout=timeout)
            return self.comparison(job, **(view or {}))

    def submit(
        self, request: AttributionRequest | None = None, /, *, idempotency_key: str | None = None, **fields: Any
    ) -> Job:
        """Accept a job; what this returns is durable. A request as an object, as fields, or fields over an object.

        However often it has to be tried, there is one job; with an `idempotency_key` of your own, also across runs.
        """
        job: Job = self._sender.send(calls.submit(request, fields, idempotency_key))
        return job

    def wait(self, job: Job | str, *, timeout: float | None = None) -> Job:
        """The job, once it has completed; it may be waited for again after a `WaitTimedOut` (seconds in `timeout`).

        Raises `AttributionFailed` with the job's problem, `AttributionCancelled`, `WaitTimedOut`.
        """
        return self._sender.run(calls.wait(_id(job), timeout, self._show))

    def job(self, job: Job | str) -> Job:
        """The job as it is now."""
        found: Job = self._sender.send(calls.job(_id(job)))
        return found

    def jobs(
        self,
        *,
        status: JobStatus | str | None = None,
        model: str | None = None,
        method: str | None = None,
        tag: str | list[str] | None = None,
        page_size: int = 50,
    ) -> Iterator[Job]:
        """All jobs, newest first, page by page as they are read."""
        cursor = None
        while True:
            filters = {"status": status, "model": model, "method": method, "tag": tag, "limit": page_size}
            page = self._sender.send(calls.page(cursor, filters))
            yield from page.jobs
            if (cursor := page.next_cursor) is None:
                return

    def cancel(self, job: Job | str) -> Job:
        """Give the job up: it is `cancelled` once the device is free of it. Raises `Conflict` if it has ended."""
        return self._sender.run(calls.cancel(_id(job)))

    def delete(self, job: Job | str) -> None:
        """Forget an ended job and its result."""
        self._sender.send(calls.delete(_id(job)))

    def results(self, job: Job | str, **view: Any) -> AttributionResult:
        """The result, aggregated as asked: `aggregator="subwords,vnorm"` (or a list), `normalize`, `granular`, ..."""
        result: AttributionResult = self._sender.send(calls.results(_id(job), view))
        return result

    def comparison(self, job: Job | str, **view: Any) -> ComparisonResult:
        """The result of a comparison: each method's, and how well they agree. `results(job, method=...)` is one's."""
        result: ComparisonResult = self._sender.send(calls.comparison(_id(job), view))
        return result

    def view(self, job: Job | str, view_format: str, **view: Any) -> bytes:
        """The result in another format, as a file's content: `html`, `csv`, `parquet`, `inseq`."""
        content: bytes = self._sender.send(calls.view(_id(job), view_format, view))
        return content

    def to_frame(self, job: Job | str, **view: Any) -> pd.DataFrame:
        """The result as a tidy table, a row for each attributed and generated token; or `table="step_scores"`."""
        from attribution_client.frames import read_parquet

        return read_parquet(self.view(job, "parquet", **view))

    def to_inseq(self, job: Job | str, **view: Any) -> FeatureAttributionOutput:
        """The result as Inseq's own object, raw unless an aggregator is asked for: `.show()`, `.aggregate()`, ...

        Inseq's loader imports what a file names: use it with a server that you trust.
        """
        return _load_inseq(self.view(job, "inseq", **view))

    def estimate(self, request: AttributionRequest | None = None, /, **fields: Any) -> Estimate:
        """What a request would take: tokens, passes, seconds, memory; nothing of its method is run."""
        found: Estimate = self._sender.send(calls.estimate(request, fields))
        return found

    def methods(self) -> list[dict[str, Any]]:
        """The attribution methods and their parameters."""
        found: list[dict[str, Any]] = self._sender.send(calls.listing("methods"))
        return found

    def step_functions(self) -> list[dict[str, Any]]:
        """The step functions, for `step_scores` and `attributed_fn`."""
        found: list[dict[str, Any]] = self._sender.send(calls.listing("step_functions"))
        return found

    def models(self) -> dict[str, Any]:
        """Bundled and loaded models, and what the server allows."""
        found: dict[str, Any] = self._sender.send(calls.listing("models"))
        return found


class AsyncAttributionClient:
    """The calls of `AttributionClient`, to be awaited: many jobs at once from one script."""

    def __init__(
        self,
        server: str | None = None,
        api_key: str | None = None,
        *,
        retry_seconds: float = RETRY_SECONDS,
        progress: bool = False,
        **more: Any,
    ) -> None:
        self._http = httpx.AsyncClient(**options(*_place(server, api_key)) | more)
        self._sender = AsyncSender(self._http, retry_seconds)
        self._show = bar if progress else no_bar

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def attribute(
        self,
        model: str,
        method: str,
        input_text: str | list[str] | None = None,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - the job goes on after it, which cancelling would not say
        view: dict[str, Any] | None = None,
        **fields: Any,
    ) -> AttributionResult:
        job = await self.submit(**calls.fields_of(model, method, input_text, fields))
        with naming(job):
            await self.wait(job, timeout=timeout)
            return await self.results(job, **(view or {}))

    async def compare(
        self,
        model: str,
        methods: list[str],
        input_text: str | list[str] | None = None,
        *,
        timeout: float | None = None,  # noqa: ASYNC109
        view: dict[str, Any] | None = None,
        **fields: Any,
    ) -> ComparisonResult:
        job = await self.submit(**calls.fields_of(model, methods, input_text, fields))
        with naming(job):
            await self.wait(job, timeout=timeout)
            return await self.comparison(job, **(view or {}))

    async def submit(
        self, request: AttributionRequest | None = None, /, *, idempotency_key: str | None = None, **fields: Any
    ) -> Job:
        job: Job = await self._sender.send(calls.submit(request, fields, idempotency_key))
        return job

    async def wait(self, job: Job | str, *, timeout: float | None = None) -> Job:  # noqa: ASYNC109
        return await self._sender.run(calls.wait(_id(job), timeout, self._show))

    async def job(self, job: Job | str) -> Job:
        found: Job = await self._sender.send(calls.job(_id(job)))
        return found

    async def jobs(self, *, page_size: int = 50, **filters: Any) -> AsyncIterator[Job]:
        """`status`, `model`, `method`, `tag`, as for `AttributionClient.jobs`."""
        cursor = None
        while True:
            page = await self._sender.send(calls.page(cursor, filters | {"limit": page_size}))
            for job in page.jobs:
                yield job
            if (cursor := page.next_cursor) is None:
                return

    async def cancel(self, job: Job | str) -> Job:
        return await self._sender.run(calls.cancel(_id(job)))

    async def delete(self, job: Job | str) -> None:
        await self._sender.send(calls.delete(_id(job)))

    async def results(self, job: Job | str, **view: Any) -> AttributionResult:
        result: AttributionResult = await self._sender.send(calls.results(_id(job), view))
        return result

    async def comparison(self, job: Job | str, **view: Any) -> ComparisonResult:
        result: ComparisonResult = await self._sender.send(calls.comparison(_id(job), view))
        return result

    async def view(self, job: Job | str, view_format: str, **view: Any) -> bytes:
        content: bytes = await self._sender.send(calls.view(_id(job), view_format, view))
        return content

    async def to_frame(self, job: Job | str, **view: Any) -> pd.DataFrame:
        from attribution_client.frames import read_parquet

        return read_parquet(await self.view(job, "parquet", **view))

    async def to_inseq(self, job: Job | str, **view: Any) -> FeatureAttributionOutput:
        return _load_inseq(await self.view(job, "inseq", **view))

    async def estimate(self, request: AttributionRequest | None = None, /, **fields: Any) -> Estimate:
        found: Estimate = await self._sender.send(calls.estimate(request, fields))
        return found

    async def methods(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = await self._sender.send(calls.listing("methods"))
        return found

    async def step_functions(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = await self._sender.send(calls.listing("step_functions"))
        return found

    async def models(self) -> dict[str, Any]:
        found: dict[str, Any] = await self._sender.send(calls.listing("models"))
        return found


def _place(server: str | None, api_key: str | None) -> tuple[str, str | None]:
    return server or os.environ.get(SERVER_VARIABLE) or SERVER, api_key or os.environ.get(KEY_VARIABLE) or None


def _id(job: Job | str) -> str:
    return job if isinstance(job, str) else job.job_id


def _load_inseq(content: bytes) -> FeatureAttributionOutput:
    from inseq import FeatureAttributionOutput

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "result.json"
        file.write_bytes(content)
        return FeatureAttributionOutput.load(file)
