"""Prometheus metrics of one app: requests, queue, jobs, model cache, memory. `GET /metrics` returns them as text.

Requests and ended jobs are counted when they happen; the queue, the model cache and the watching clients are read at
each scrape.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jobs.listeners import JobListener
from jobs.store.api_keys import ANYBODY
from jobs.store.records import JobRecord
from models import JobStatus

_METHODS = {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}  # HEAD counts as GET
_OTHER = "other"  # the label of a model without one of its own
_MAX_MODELS = 100  # labels of models that the operator does not list
_JOB_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)


class HttpMetrics:
    """Requests answered and seconds to the start of the response, by route."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "inseq_api_http_requests", "Requests answered.", ["method", "route", "status"], registry=registry
        )
        self._seconds = Histogram(
            "inseq_api_http_request_seconds", "Seconds to the start of an answer.", ["route"], registry=registry
        )

        self._refused = Counter(
            "inseq_api_connections_refused",
            "Connections closed with a problem before a request was complete.",
            ["problem"],
            registry=registry,
        )

    def connection_refused(self, problem: str) -> None:
        """Count a connection that was refused. `problem`: the slug of its problem."""
        self._refused.labels(problem).inc()

    def request_answered(self, *, method: str, route: str, status: int, seconds: float) -> None:
        """Count one request. `seconds`: from its arrival to the start of the response."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)


class HttpMetricsMiddleware:
    """Counts every request when its response starts, under its route's template, so that ids make no new series.

    A request that no route handled, because it was refused before or matches none, counts as `unmatched`.
    """

    def __init__(self, app: ASGIApp, metrics: HttpMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()

        async def send_counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.request_answered(
                    method=scope["method"] if scope["method"] in _METHODS else "other",
                    route=getattr(scope.get("route"), "path", "unmatched"),
                    status=message["status"],
                    seconds=time.perf_counter() - began,
                )
            await send(message)

        await self._app(scope, receive, send_counted)


class ServiceMetrics(JobListener):
    """Metrics of the jobs, the model cache, the watching clients and the process, beside those of HTTP.

    http: the registry of the `HttpMetrics`. key: what `GET /metrics` requires; without one, any API key may read them.
    is_listed: whether the operator made a model's name known. active_jobs: returns the number of jobs by active status.
    model_cache: returns numbers by name. watchers: returns the number of watching clients. The last three are called at
    each scrape.
    """

    def __init__(
        self,
        http: CollectorRegistry,
        *,
        key: str | None,
        is_listed: Callable[[str], bool],
        active_jobs: Callable[[], dict[JobStatus, int]],
        model_cache: Callable[[], dict[str, float]],
        watchers: Callable[[], int],
    ) -> None:
        self._http = http
        self.key = key
        self._is_listed = is_listed
        self._loaded_models: set[str] = set()
        self._registry = CollectorRegistry()  # of its own: an app that starts twice counts its jobs from zero
        ProcessCollector(registry=self._registry)  # memory, CPU time, open files
        self._jobs = Histogram(
            "inseq_api_job_seconds",
            "Seconds that jobs ran, by how they ended.",
            ["method", "model", "status"],
            buckets=_JOB_SECONDS,
            registry=self._registry,
        )
        self._webhooks = Counter(
            "inseq_api_webhook_attempts", "Attempts to deliver a webhook.", ["outcome"], registry=self._registry
        )
        waiting = Gauge("inseq_api_watchers", "Clients that wait for a job or watch it.", registry=self._registry)
        waiting.set_function(watchers)
        self._registry.register(_ActiveJobsAndModelCache(active_jobs, model_cache))

    def job_ended(self, job: JobRecord, status: JobStatus, seconds: float) -> None:
        """Count a job that ran."""
        method = job.method if len(job.method_names) == 1 else "comparison"
        self._jobs.labels(method, self._model_label(job, status), status.value).observe(seconds)

    def webhook_attempted(self, outcome: str) -> None:
        """Count an attempt to deliver a webhook: `delivered`, `postponed` or `given_up`."""
        self._webhooks.labels(outcome).inc()

    def _model_label(self, job: JobRecord, status: JobStatus) -> str:
        """Return the model's name if its jobs may be counted under it: at most so many names, and none of another key.

        A model that the operator does not list has a label once a job with it has completed: made-up names have none.
        """
        name = job.model.partition("@")[0]
        if self._is_listed(name):
            return name
        if job.owner != ANYBODY and self.key is None:
            return _OTHER
        if status is JobStatus.COMPLETED and len(self._loaded_models) < _MAX_MODELS:
            self._loaded_models.add(name)
        return name if name in self._loaded_models else _OTHER

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._http) + generate_latest(self._registry)


class _ActiveJobsAndModelCache(Collector):
    def __init__(self, jobs: Callable[[], dict[JobStatus, int]], models: Callable[[], dict[str, float]]) -> None:
        self._jobs, self._models = jobs, models

    def collect(self) -> Iterator[Metric]:
        active = GaugeMetricFamily("inseq_api_jobs", "Jobs that wait or run.", labels=["status"])
        counts = self._jobs()
        for status in (JobStatus.PENDING, JobStatus.RUNNING):
            active.add_metric([status.value], counts.get(status, 0))
        yield active
        for name, value in self._models().items():
            yield GaugeMetricFamily(f"inseq_api_model_cache_{name}", f"The model cache: {name}.", value=value)
