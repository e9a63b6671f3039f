"""The parts of a running server that routes use, as one typed object on `app.state.services`."""

from __future__ import annotations

from dataclasses import dataclass, field

from fastapi import FastAPI
from starlette.requests import HTTPConnection
from starlette.types import Scope

from api.engine_protocol import AttributionEngineProtocol
from api.freed_memory import FreedMemory
from api.job_watch import JobWatch
from api.metrics import ServiceMetrics
from api.webhook_hosts import WebhookHosts
from api.webhook_sender import WebhookSender
from api.work_threads import WorkThreads
from job_manager import JobManager
from jobs.store.job_store import JobStore


@dataclass(frozen=True)
class Services:
    """Everything that exists from the start of the app to its end."""

    engine: AttributionEngineProtocol
    store: JobStore
    manager: JobManager
    watch: JobWatch
    metrics: ServiceMetrics
    freed_memory: FreedMemory
    webhook_hosts: WebhookHosts
    webhooks: WebhookSender
    share_max_seconds: float  # 0: no links for others
    # Few at a time: they compute in Python, and would take the interpreter from the event loop.
    views: WorkThreads = field(default_factory=lambda: WorkThreads(2))
    shared_views: WorkThreads = field(default_factory=lambda: WorkThreads(1))  # so that a link delays no key's views
    estimates: WorkThreads = field(default_factory=lambda: WorkThreads(2))
    submissions: WorkThreads = field(default_factory=lambda: WorkThreads(8))
    stored_views: WorkThreads = field(default_factory=lambda: WorkThreads(4))  # read and decompressed only

    def install(self, app: FastAPI) -> None:
        """Make the services available to the app's routes."""
        app.state.services = self


def services_of(connection: HTTPConnection) -> Services:
    """Return the services of the app that handles this request."""
    return services_of_scope(connection.scope)


def services_of_scope(scope: Scope) -> Services:
    """Return the services of the app that handles a request with this ASGI scope."""
    services: Services = scope["app"].state.services
    return services
