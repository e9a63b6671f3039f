"""Prometheus metrics of one app: requests, queue, jobs, model cache, memory. `GET /metrics` tells them as text.

Counters are kept as things happen; the queue and the cache are looked at when somebody asks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from models import JobStatus

_JOB_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)


class Metrics:
    """What one app counts, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)  # memory, CPU time, open files
        self._requests = Counter(
            "inseq_api_http_requests", "Requests answered.", ["method", "route", "status"], registry=self._registry
        )
        self._request_seconds = Histogram(
            "inseq_api_http_request_seconds", "Seconds to the start of an answer.", ["route"], registry=self._registry
        )
        self._jobs = Histogram(
            "inseq_api_job_seconds",
            "Seconds that jobs ran, by how they ended.",
            ["method", "model", "status"],
            buckets=_JOB_SECONDS,
            registry=self._registry,
        )
        self._watchers = Gauge(
            "inseq_api_watchers", "Clients that wait for a job or watch it.", registry=self._registry
        )

    def job_ended(self, *, method: str, model: str, status: JobStatus, seconds: float) -> None:
        self._jobs.labels(method, model, status.value).observe(seconds)

    def request_answered(self, *, method: str, route: str, status: int, seconds: float) -> None:
        self._requests.labels(method, route, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)

    def look_at(
        self,
        jobs: Callable[[], dict[JobStatus, int]],
        models: Callable[[], dict[str, float]],
        watchers: Callable[[], int],
    ) -> None:
        """What is asked at each scrape: active jobs by status, numbers of the model cache, watching clients."""
        self._registry.register(_Looked(jobs, models))
        self._watchers.set_function(watchers)

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self._registry)


class _Looked(Collector):
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


class RequestMetrics:
    """Counts every request under its route's template, so that ids do not multiply the series."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.request_answered(
                    method=scope["method"],
                    route=getattr(scope.get("route"), "path", "unmatched"),
                    status=message["status"],
                    seconds=time.perf_counter() - began,
                )
            await send(message)

        await self._app(scope, receive, counted)
