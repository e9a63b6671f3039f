"""The parts of a running server that routes use, as one typed object on `app.state.services`."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import FastAPI
from starlette.requests import HTTPConnection

from api.engine_protocol import AttributionEngineProtocol
from api.job_watch import JobWatch
from api.metrics import ServiceMetrics
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

    def install(self, app: FastAPI) -> None:
        """Make the services available to the app's routes."""
        app.state.services = self


def services_of(connection: HTTPConnection) -> Services:
    """Return the services of the app that handles this request."""
    services: Services = connection.app.state.services
    return services
