"""Completion in a shell: names and ids as the server has them, and nothing where it does not answer at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import click
from click.shell_completion import CompletionItem, get_completion_class

from attribution_client.client import AttributionClient
from attribution_client.labels import readable
from attribution_client.terminal.tables import input_of
from attribution_schema.job import Job, JobStatus

SHELLS = ("bash", "zsh", "fish")
_PATIENCE = 1.5  # seconds: a person has pressed the tab key
_JOBS = 50  # the newest jobs
_LONGEST = 50  # letters of a text beside a job's id

Found = Iterable[tuple[str, str]]  # a name and what it is
Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def script(command: click.Command, program: str, shell: str) -> str:
    """The script that makes a shell complete the command, for its start file or `eval`."""
    kind = get_completion_class(shell)
    assert kind is not None, shell
    return kind(command, {}, program, f"_{program}_COMPLETE".upper()).source()


def _completer(read: Callable[[AttributionClient, click.Context], Found]) -> Completer:
    """Complete what the server has. Whatever fails is silent: an error message would end up in the command line."""

    def complete(context: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
        server = context.find_root().params.get("server")
        try:
            with AttributionClient(server, retry_seconds=0, timeout=_PATIENCE) as client:
                found = list(read(client, context))
        except Exception:
            return []
        return [
            CompletionItem(name, help=readable(about).replace("\n", " ") or None)
            for name, about in found
            if name.startswith(incomplete)
        ]

    return complete


def _models(client: AttributionClient, _: click.Context) -> Found:
    return ((each["name"], each.get("class") or "") for each in client.models().get("available", []))


def _listed(entries: list[dict[str, Any]]) -> Found:
    return ((each["name"], str(each.get("description") or "")) for each in entries)


def _jobs(*statuses: JobStatus) -> Callable[[AttributionClient, click.Context], Found]:
    def read(client: AttributionClient, context: click.Context) -> Found:
        written = context.params.get("job_id") or ()
        chosen = client.jobs(page_size=_JOBS) if not statuses else _of(client, statuses)
        return ((each.job_id, _about(each)) for each in islice(chosen, _JOBS) if each.job_id not in written)

    return read


def _of(client: AttributionClient, statuses: tuple[JobStatus, ...]) -> Iterable[Job]:
    return (job for status in statuses for job in client.jobs(status=status, page_size=_JOBS))


def _about(job: Job) -> str:
    if job.request is None:
        return str(job.status)
    return f"{job.status}, {', '.join(job.request.method_names)} of {job.request.model}: {input_of(job)[:_LONGEST]}"


models = _completer(_models)
methods = _completer(lambda client, _: _listed(client.methods()))
step_functions = _completer(lambda client, _: _listed(client.step_functions()))
aggregators = _completer(lambda client, _: _listed(client.aggregators()["aggregators"]))
statuses = _completer(lambda *_: ((status, "") for status in JobStatus))
jobs = _completer(_jobs())
active_jobs = _completer(_jobs(JobStatus.RUNNING, JobStatus.PENDING))
ended_jobs = _completer(_jobs(JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED))
