"""The commands of `attribution`; `options` declares their options.

Results go to standard output: in colour in a terminal (unless `NO_COLOR` is set), as plain text in a pipe. The progress
bar and messages go to standard error.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from attribution_client.client import AttributionClient
from attribution_client.errors import ClientError, InvalidRequest
from attribution_client.heatmap_text import print_comparison, print_result
from attribution_client.labels import readable
from attribution_client.options import (
    Command,
    json_option,
    request_fields,
    request_options,
    tag_filter,
    view_fields,
    view_options,
)
from attribution_schema.job import Job, JobStatus

PROGRAM = "attribution"
DONE, FAILED, REFUSED, INTERRUPTED = 0, 1, 2, 130
_RETRY_SECONDS = 15.0  # shorter than the library's: a person is waiting
_PIPE_WIDTH = 100_000  # characters: lines are not wrapped for a program that reads them
_LONGEST_TEXT = 40  # characters of a text in the table of jobs
_STYLES = {
    JobStatus.COMPLETED: "green",
    JobStatus.FAILED: "red",
    JobStatus.RUNNING: "yellow",
    JobStatus.PENDING: "cyan",
    JobStatus.CANCELLED: "dim",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status."""
    try:
        status: int = commands.main(arguments, prog_name=PROGRAM, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    return status


class _Commands(click.Group):
    """Turns the exceptions of the client into messages and exit statuses."""

    def invoke(self, ctx: click.Context) -> int:
        try:
            status: int = super().invoke(ctx)
        except InvalidRequest as error:
            _say(str(error))
            return REFUSED
        except ClientError as error:
            _say(str(error))
            return FAILED
        except KeyboardInterrupt:
            _say("Interrupted.")
            return INTERRUPTED
        except BrokenPipeError:  # the reader of the pipe has closed it, like `head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return DONE
        return status


@click.group(
    cls=_Commands,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda name: name.replace("-", "_"),
    },
    epilog="Exit status: 0 done, 1 the job or the server failed, 2 the request or an option is wrong, 130 interrupted.",
)
@click.option("--server", metavar="URL", help="The server (default: INSEQ_API_URL or http://localhost:8000).")
@click.pass_context
def commands(context: click.Context, server: str | None) -> None:
    """Run attribution jobs on a server. The API key is read from INSEQ_API_KEY."""
    context.obj = context.with_resource(AttributionClient(server, retry_seconds=_RETRY_SECONDS))


@commands.command(cls=Command)
@request_options
@view_options
@click.pass_obj
def attribute(client: AttributionClient, /, **given: Any) -> int:
    """Submit a job, wait for it and show its result."""
    job = client.submit(**request_fields(given))
    if given["detach"]:
        _console().print(job.model_dump_json() if given["as_json"] else job.job_id, markup=False)
        return DONE
    try:
        client.wait(job)
    except KeyboardInterrupt:
        cancelled = client.cancel(job)
        _say(f"Interrupted: the job {job.job_id} is {'being ' if not cancelled.has_ended else ''}cancelled.")
        return INTERRUPTED
    return _result(client, job, given)


@commands.command(cls=Command)
@click.argument("job_id")
@click.option("--method", help="Of a comparison: show only this method.")
@view_options
@click.pass_obj
def show(client: AttributionClient, /, job_id: str, **given: Any) -> int:
    """Show the result of a job, or its status if it has none."""
    job = client.job(job_id)
    if job.status is JobStatus.COMPLETED:
        return _result(client, job, given)
    if given["as_json"]:
        _console().print(job.model_dump_json(), markup=False)
    else:
        _print_jobs([job])
        if job.error:
            _console().print(readable(f"{job.error.title}: {job.error.detail}"), markup=False)
    return FAILED if job.status is JobStatus.FAILED else DONE


@commands.command
@click.option("--status", help="pending, running, completed, failed or cancelled.")
@click.option("--model", help="Only jobs of this model.")
@click.option("--method", help="Only jobs of this method.")
@tag_filter
@click.option("--limit", type=int, default=20, show_default=True, help="The largest number of jobs to show.")
@json_option
@click.pass_obj
def jobs(
    client: AttributionClient, /, tag: tuple[str, ...], limit: int, *, as_json: bool, **filters: str | None
) -> int:
    """List the newest jobs."""
    found = client.jobs(tag=list(tag) or None, page_size=min(limit, 200), **filters)
    return _show_jobs(list(islice(found, limit)), as_json=as_json)


@commands.command
@click.argument("job_id", nargs=-1, required=True)
@json_option
@click.pass_obj
def cancel(client: AttributionClient, /, job_id: tuple[str, ...], *, as_json: bool) -> int:
    """Cancel jobs."""
    return _show_jobs([client.cancel(each) for each in job_id], as_json=as_json)


@commands.command
@json_option
@click.pass_obj
def methods(client: AttributionClient, /, *, as_json: bool) -> int:
    """List the attribution methods and their parameters."""
    found = client.methods()
    if as_json:
        sys.stdout.write(json.dumps(found) + "\n")
        return DONE
    table = _table("method", "parameters", "what it does")
    for method in found:
        parameters = ", ".join(_parameter(each) for each in method["parameters"])
        table.add_row(Text(method["name"], "bold"), parameters, Text(str(method.get("description", ""))))
    _console().print(table)
    return DONE


def _result(client: AttributionClient, job: Job, given: dict[str, Any]) -> int:
    """Save and print the result of a completed job, as the options say."""
    view = view_fields(given)
    methods = job.request.method_names if job.request else []
    is_comparison = len(methods) > 1 and "method" not in view
    # Inseq's file is raw unless aggregators are given.
    for_inseq = view if "aggregator" in view else {name: view[name] for name in view.keys() & {"method"}}
    for path, view_format, fields in ((given["save_path"], "inseq", for_inseq), (given["viz_path"], "html", view)):
        if path and is_comparison:
            for method in methods:
                _path_of(path, method).write_bytes(client.view(job, view_format, **fields, method=method))
        elif path:
            Path(path).write_bytes(client.view(job, view_format, **fields))
    if given["as_json"]:
        sys.stdout.write(client.view(job, "json", **view).decode() + "\n")
    elif not given["hide_attributions"] and is_comparison:
        print_comparison(client.comparison(job, decode_tokens=True, **view), _console())
    elif not given["hide_attributions"]:
        print_result(client.results(job, decode_tokens=True, **view), _console())
    _say(f"job {job.job_id}")
    return DONE


def _path_of(path: str, method: str) -> Path:
    """The file of one method of a comparison: `scores.saliency.html` for `scores.html`."""
    whole = Path(path)
    return whole.with_name(f"{whole.stem}.{method}{whole.suffix}")


def _show_jobs(found: Sequence[Job], *, as_json: bool) -> int:
    if as_json:
        sys.stdout.write(json.dumps([job.model_dump(mode="json") for job in found]) + "\n")
    else:
        _print_jobs(found)
    return DONE


def _console() -> Console:
    return Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)


def _print_jobs(found: Sequence[Job]) -> None:
    table = _table("job", "status", "", "model", "method", "text", "created")
    for job in found:
        request = job.request
        text = readable(" | ".join(request.inputs)).replace("\n", " ") if request else "(unreadable)"
        done = f"{job.progress.fraction:.0%}" if job.status is JobStatus.RUNNING else ""
        table.add_row(
            job.job_id,
            Text("cancelling" if job.cancel_requested and done else job.status, _STYLES.get(job.status, "")),
            done,
            Text(request.model if request else ""),
            Text(", ".join(request.method_names) if request else ""),
            Text(text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 1] + "…"),
            f"{job.created_at:%Y-%m-%d %H:%M:%S}",
        )
    _console().print(table)


def _table(*names: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD if sys.stdout.isatty() else None, pad_edge=False, header_style="bold")
    for name in names:
        table.add_column(name, no_wrap=name in {"job", "status", "method", "created"})
    return table


def _parameter(parameter: dict[str, Any]) -> str:
    return parameter["name"] if parameter.get("required") else f"{parameter['name']}={parameter.get('default')}"


def _say(text: str) -> None:
    sys.stderr.write(readable(text) + "\n")
