"""The blocking client. Each method sends one call or runs one operation of `attribution_client.calls`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, Self, Unpack

import httpx

from attribution_client import calls
from attribution_client.calls import UNCHANGED, Unchanged
from attribution_client.errors import naming
from attribution_client.extras import needs_extra
from attribution_client.keywords import (
    FileFields,
    MoreFields,
    RequestFields,
    SpanOf,
    ViewFields,
    check_view,
    listed,
)
from attribution_client.progress import bar, no_bar
from attribution_client.results import AttributionResult, ComparisonResult
from attribution_client.traces import TraceResult
from attribution_client.transport import RETRY_SECONDS, Sender, http_options
from attribution_schema.estimate import Estimate
from attribution_schema.job import Job, JobOutcome, JobStatus
from attribution_schema.request import AttributionRequest
from attribution_schema.result import JobAgreement
from attribution_schema.share import NewShare, Share

if TYPE_CHECKING:
    import pandas as pd
    from inseq import FeatureAttributionOutput


class AttributionClient:
    """Client with blocking calls. Threads may share it. Call `close`, or use it in a `with` statement.

    `server` is the server's URL (by default `INSEQ_API_URL`, else http://localhost:8000), `api_key` its key (by default
    `INSEQ_API_KEY`). If the connection fails or the server is busy, a call is retried for `retry_seconds`; 0 means no
    retries. `progress` shows a progress bar while waiting in a terminal or notebook. `more` are further arguments of
    `httpx.Client`, such as proxies or certificates.

    Every method raises `RequestFailed` with the server's problem document, or `ServerUnreachable`. Where a method takes
    a `job`, pass a `Job` or its id.
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
        self._http = httpx.Client(**http_options(server, api_key) | more)
        self._sender = Sender(self._http, retry_seconds)
        self._show = bar if progress else no_bar

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    @listed(MoreFields)
    def attribute(
        self,
        model: str,
        method: str,
        input_text: str | list[str] | None = None,
        *,
        timeout: float | None = None,
        view: ViewFields | None = None,
        **fields: Unpack[MoreFields],
    ) -> AttributionResult:
        """Submit a job, wait for it and return its result.

        `fields` are further fields of the request, `view` the options of `results`, `timeout` is in seconds. Raises
        what `wait` raises, and `TypeError` before anything is sent if a field or an option does not exist. If this call
        is interrupted or loses the server, the job continues; the exception's note contains the job's id.
        """
        check_view(view or {})
        job = self.submit(**calls.fields_of(model, method, input_text, fields))
        with naming(job):
            self.wait(job, timeout=timeout)
            return self.results(job, **(view or {}))

    @listed(MoreFields)
    def compare(
        self,
        model: str,
        methods: list[str],
        input_text: str | list[str] | None = None,
        *,
        timeout: float | None = None,
        view: ViewFields | None = None,
        **fields: Unpack[MoreFields],
    ) -> ComparisonResult:
        """Attribute with several methods in one job, which generates the target once. Otherwise as `attribute`.

        `attribution_args` maps each method to its arguments. `compare_methods` draws the result.
        """
        check_view(view or {})
        job = self.submit(**calls.fields_of(model, methods, input_text, fields))
        with naming(job):
            self.wait(job, timeout=timeout)
            return self.comparison(job, **(view or {}))

    @listed(RequestFields)
    def submit(
        self,
        request: AttributionRequest | None = None,
        /,
        *,
        idempotency_key: str | None = None,
        **fields: Unpack[RequestFields],
    ) -> Job:
        """Submit a job and return it. Give a request object, fields, or an object and fields that replace its own.

        The returned job is durable. Retries never create a second job; with your own `idempotency_key`, neither does
        a second run of your program.
        """
        job: Job = self._sender.send(calls.submit(request, fields, idempotency_key))
        return job

    def wait(self, job: Job | str, *, timeout: float | None = None) -> Job:
        """Wait until the job has completed and return it.

        Raises `AttributionFailed` with the job's problem, `AttributionCancelled`, or `WaitTimedOut` after `timeout`
        seconds; the job then continues, and `wait` may be called again.
        """
        return self._sender.run(calls.wait(job, timeout, self._show))

    def job(self, job: Job | str) -> Job:
        """The current state of the job."""
        found: Job = self._sender.send(calls.read_job(job))
        return found

    def jobs(
        self,
        *,
        status: JobStatus | str | None = None,
        model: str | None = None,
        method: str | None = None,
        tag: str | list[str] | None = None,
        search: str | None = None,
        page_size: int = 50,
    ) -> Iterator[Job]:
        """All jobs that match the filters, newest first. Reads the next page when the iteration reaches it.

        A `tag` is `name` or `name:value`; a job must match all of a list. `search` is words, or their beginnings: a
        job must have all of them, in its texts, name, notes, tags, model, methods or id.
        """
        cursor = None
        filters = {"status": status, "model": model, "method": method, "tag": tag, "search": search, "limit": page_size}
        while True:
            page = self._sender.send(calls.page(cursor, filters))
            yield from page.jobs
            if (cursor := page.next_cursor) is None:
                return

    def update(
        self,
        job: Job | str,
        *,
        name: str | Unchanged | None = UNCHANGED,
        notes: str | Unchanged | None = UNCHANGED,
        tags: Mapping[str, str | None] | Unchanged | None = UNCHANGED,
    ) -> Job:
        """Change the name, notes or tags of a job in any status, and return it. None removes what was there.

        `tags` are added to those of the job or replace their values; one whose value is None is removed.
        """
        changed: Job = self._sender.send(calls.update(job, {"name": name, "notes": notes, "tags": tags}))
        return changed

    def cancel(self, job: Job | str) -> Job:
        """Cancel the job and return it. Raises `Conflict` if it has ended.

        A running job becomes `cancelled` once it has freed its device.
        """
        return self._sender.run(calls.cancel(job))

    def delete(self, job: Job | str) -> None:
        """Delete an ended job and its result. Raises `Conflict` if it has not ended."""
        self._sender.send(calls.delete(job))

    def cancel_many(self, jobs: Iterable[Job | str]) -> list[JobOutcome]:
        """Cancel several jobs, and return what became of each: done, not found, or a conflict with its reason."""
        return self._sender.run(calls.on_many("cancel", jobs))

    def delete_many(self, jobs: Iterable[Job | str]) -> list[JobOutcome]:
        """Delete several ended jobs and their results, and return what became of each, as `cancel_many` does."""
        return self._sender.run(calls.on_many("delete", jobs))

    @listed(ViewFields)
    def results(self, job: Job | str, **view: Unpack[ViewFields]) -> AttributionResult:
        """The result of a completed job. `view`: `aggregator="subwords,vnorm"` (or a list), `normalize`, ...

        Tokens have their decoded `text` beside the raw `token`, unless `decode_tokens=False`. Of a comparison,
        `method` chooses one method.
        """
        result: AttributionResult = self._sender.send(calls.results(job, view))
        return result

    @listed(ViewFields)
    def comparison(self, job: Job | str, **view: Unpack[ViewFields]) -> ComparisonResult:
        """The result of a comparison: the result of each method, and the agreement of each pair."""
        result: ComparisonResult = self._sender.send(calls.comparison(job, view))
        return result

    def agreement(self, jobs: Iterable[Job | str]) -> list[JobAgreement]:
        """How far the results of completed jobs agree, each two of them, where they have the same tokens."""
        found: list[JobAgreement] = self._sender.send(calls.agreement(jobs))
        return found

    @listed(ViewFields)
    def trace(
        self,
        job: Job | str,
        from_: SpanOf,
        *,
        through: SpanOf | None = None,
        hops: int | Literal["all"] = "all",
        without_template: bool = False,
        sequence: int | None = None,
        **view: Unpack[ViewFields],
    ) -> TraceResult:
        """Which tokens of the input led to a span of the generated text, through the tokens generated before it.

        `from_` and `through` are spans: positions as a pair or `"19:20"`, `"text:milk"`, `"after:</think>"`,
        `"between:<think>,</think>"`, or a dictionary of `TextSelection`'s fields; without `through`, all that was
        generated before. `without_template` gives no share to special tokens and those of a chat template. `sequence`
        is the number of one text; by default all are traced. `view` says how scores are aggregated first; of a
        comparison, `method` chooses one method.
        """
        asked: FileFields = {
            "trace": from_,
            "through": through,
            "hops": hops,
            "without_template": without_template,
            "sequence": sequence,
        }
        found: TraceResult = self._sender.send(calls.trace(job, asked, view))
        return found

    @listed(FileFields)
    def view(self, job: Job | str, view_format: str, **view: Unpack[FileFields]) -> bytes:
        """The result as the content of a file. `view_format`: `json`, `html`, `csv`, `parquet` or `inseq`."""
        content: bytes = self._sender.send(calls.view(job, view_format, view))
        return content

    @listed(ViewFields)
    def to_frame(self, job: Job | str, **view: Unpack[ViewFields]) -> pd.DataFrame:
        """The result as a pandas table: one row for each pair of an attributed and a generated token.

        `table="step_scores"` has one row for each generated token and step score. Columns that end in `_text` have the
        decoded tokens, unless `decode_tokens=False`. Raises `ImportError` without the extra `plots`.
        """
        with needs_extra("plots"):
            from attribution_client.frames import read_parquet
        return read_parquet(self.view(job, "parquet", **calls.with_texts(view)))

    @listed(ViewFields)
    def to_inseq(self, job: Job | str, **view: Unpack[ViewFields]) -> FeatureAttributionOutput:
        """The result as Inseq's `FeatureAttributionOutput`, not aggregated unless `aggregator` is given.

        Inseq's loader imports the classes that a file names: use it only with a server that you trust. Raises
        `ImportError` without the extra `server`, which contains Inseq.
        """
        with needs_extra("server"):
            from attribution_client.inseq_output import load_inseq
        return load_inseq(self.view(job, "inseq", **view))

    def share(self, job: Job | str, *, expires_in: float | timedelta | None = None) -> NewShare:
        """Make a link (`url`) through which anybody can read this job and its result, without a key, until it expires.

        expires_in: seconds or a `timedelta`; 7 days by default. The server does not tell the link again.
        """
        made: NewShare = self._sender.send(calls.share(job, expires_in, self._http.base_url))
        return made

    def shares(self, job: Job | str) -> list[Share]:
        """The links of a job that have not expired, without their URLs."""
        found: list[Share] = self._sender.send(calls.shares(job))
        return found

    def revoke_share(self, job: Job | str, share: Share | str) -> None:
        """Revoke a link, given as a `Share` or its id: it opens nothing from now on."""
        self._sender.send(calls.revoke_share(job, share))

    @listed(RequestFields)
    def estimate(self, request: AttributionRequest | None = None, /, **fields: Unpack[RequestFields]) -> Estimate:
        """The cost of a request: tokens, passes, seconds and memory. Runs no attribution."""
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

    def aggregators(self) -> dict[str, Any]:
        """The aggregators and the aggregation functions, for views of a result."""
        found: dict[str, Any] = self._sender.send(calls.listing("aggregators"))
        return found

    def models(self) -> dict[str, Any]:
        """The bundled and the loaded models, and the model names that the server allows."""
        found: dict[str, Any] = self._sender.send(calls.listing("models"))
        return found
