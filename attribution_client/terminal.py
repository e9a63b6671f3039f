"""The commands of `attribution` at a terminal; `options` declares their options.

Results go to standard output, in colour where somebody looks (and not where `NO_COLOR` is set), plain into a pipe; the
progress bar and messages go to standard error.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from attribution_client import options
from attribution_client.client import AttributionClient
from attribution_client.errors import ClientError, InvalidRequest
from attribution_client.heatmap_text import print_comparison, print_result
from attribution_client.labels import readable
from attribution_schema.job import Job, JobStatus

DONE, FAILED, REFUSED, INTERRUPTED = 0, 1, 2, 130
_RETRY_SECONDS = 15.0  # somebody waits for the answer
_PIPE_WIDTH = 100_000  # nothing is wrapped for a program that reads it
_STYLES = {
    JobStatus.COMPLETED: "green",
    JobStatus.FAILED: "red",
    JobStatus.RUNNING: "yellow",
    JobStatus.PENDING: "cyan",
    JobStatus.CANCELLED: "dim",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status."""
    given = options.parse(sys.argv[1:] if arguments is None else arguments)
    out = Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)
    try:
        with AttributionClient(given.server, retry_seconds=_RETRY_SECONDS) as client:
            return _COMMANDS[given.command](client, given, out)
    except InvalidRequest as error:
        _say(str(error))
        return REFUSED
    except ClientError as error:
        _say(str(error))
        return FAILED
    except KeyboardInterrupt:
        _say("Interrupted.")
        return INTERRUPTED
    except BrokenPipeError:  # whoever read this has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE


def _attribute(client: AttributionClient, given: argparse.Namespace, out: Console) -> int:
    job = client.submit(**options.request_fields(given))
    if given.detach:
        out.print(job.model_dump_json() if given.json else job.job_id, markup=False)
        return DONE
    try:
        client.wait(job)
    except KeyboardInterrupt:
        cancelled = client.cancel(job)
        _say(f"Interrupted: the job {job.job_id} is {'being ' if not cancelled.has_ended else ''}cancelled.")
        return INTERRUPTED
    return _result(client, job, given, out)


def _show(client: AttributionClient, given: argparse.Namespace, out: Console) -> int:
    job = client.job(given.job_id)
    if job.status is JobStatus.COMPLETED:
        return _result(client, job, given, out)
    if given.json:
        out.print(job.model_dump_json(), markup=False)
    else:
        _jobs_table([job], out)
        if job.error:
            out.print(readable(f"{job.error.title}: {job.error.detail}"), markup=False)
    return FAILED if job.status is JobStatus.FAILED else DONE


def _result(client: AttributionClient, job: Job, given: argparse.Namespace, out: Console) -> int:
    view = options.view_options(given)
    is_comparison = job.request.methods is not None and "method" not in view
    aggregated = view if "aggregator" in view else {name: view[name] for name in view.keys() & {"method"}}
    for path, view_format, asked in ((given.save_path, "inseq", aggregated), (given.viz_path, "html", view)):
        if path and is_comparison:
            for method in job.request.method_names:
                _path_of(path, method).write_bytes(client.view(job, view_format, **asked, method=method))
        elif path:
            Path(path).write_bytes(client.view(job, view_format, **asked))
    if given.json:
        sys.stdout.write(client.view(job, "json", **view).decode() + "\n")
    elif not given.hide_attributions and is_comparison:
        print_comparison(client.comparison(job, decode_tokens=True, **view), out)
    elif not given.hide_attributions:
        print_result(client.results(job, decode_tokens=True, **view), out)
    _say(f"job {job.job_id}")
    return DONE


def _path_of(path: str, method: str) -> Path:
    """A file of its own for each method of a comparison: `scores.html` is `scores.saliency.html`."""
    whole = Path(path)
    return whole.with_name(f"{whole.stem}.{method}{whole.suffix}")


def _jobs(client: AttributionClient, given: argparse.Namespace, out: Console) -> int:
    found = client.jobs(
        status=given.status, model=given.model, method=given.method, tag=given.tag, page_size=min(given.limit, 200)
    )
    return _show_jobs(list(islice(found, given.limit)), given, out)


def _cancel(client: AttributionClient, given: argparse.Namespace, out: Console) -> int:
    return _show_jobs([client.cancel(job_id) for job_id in given.job_id], given, out)


def _show_jobs(jobs: Sequence[Job], given: argparse.Namespace, out: Console) -> int:
    if given.json:
        sys.stdout.write(json.dumps([job.model_dump(mode="json") for job in jobs]) + "\n")
    else:
        _jobs_table(jobs, out)
    return DONE


def _methods(client: AttributionClient, given: argparse.Namespace, out: Console) -> int:
    methods = client.methods()
    if given.json:
        sys.stdout.write(json.dumps(methods) + "\n")
        return DONE
    table = _table("method", "parameters", "what it does")
    for method in methods:
        parameters = ", ".join(_parameter(each) for each in method["parameters"])
        table.add_row(Text(method["name"], "bold"), parameters, Text(str(method.get("description", ""))))
    out.print(table)
    return DONE


_COMMANDS: dict[str, Callable[[AttributionClient, argparse.Namespace, Console], int]] = {
    "attribute": _attribute,
    "show": _show,
    "jobs": _jobs,
    "cancel": _cancel,
    "methods": _methods,
}


def _jobs_table(jobs: Sequence[Job], out: Console) -> None:
    table = _table("job", "status", "", "model", "method", "text", "created")
    for job in jobs:
        text = readable(" | ".join(job.request.inputs)).replace("\n", " ")
        done = f"{job.progress.fraction:.0%}" if job.status is JobStatus.RUNNING else ""
        table.add_row(
            job.job_id,
            Text("cancelling" if job.cancel_requested and done else job.status, _STYLES.get(job.status, "")),
            done,
            Text(job.request.model),
            Text(", ".join(job.request.method_names)),
            Text(text if len(text) <= 40 else text[:39] + "…"),  # noqa: PLR2004
            f"{job.created_at:%Y-%m-%d %H:%M:%S}",
        )
    out.print(table)


def _table(*names: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD if sys.stdout.isatty() else None, pad_edge=False, header_style="bold")
    for name in names:
        table.add_column(name, no_wrap=name in {"job", "status", "method", "created"})
    return table


def _parameter(parameter: dict[str, Any]) -> str:
    return parameter["name"] if parameter.get("required") else f"{parameter['name']}={parameter.get('default')}"


def _say(text: str) -> None:
    sys.stderr.write(readable(text) + "\n")
