"""The commands of `attribution`; `options` declares their options.

Results go to standard output: in colour in a terminal (unless `NO_COLOR` is set), as plain text in a pipe. The progress
bar and messages go to standard error.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import click

from attribution_client.client import AttributionClient
from attribution_client.errors import ClientError, InvalidRequest, ServerUnreachable
from attribution_client.labels import readable
from attribution_client.terminal import completion, tables
from attribution_client.terminal.option_kinds import Command
from attribution_client.terminal.options import (
    detach_option,
    json_option,
    method_of_comparison,
    request_fields,
    request_options,
    tag_filter,
    trace_fields,
    trace_options,
    view_fields,
    view_options,
)
from attribution_schema.job import Job, JobStatus

PROGRAM = "attribution"
DONE, FAILED, REFUSED, INTERRUPTED = 0, 1, 2, 130
_RETRY_SECONDS = 15.0  # shorter than the library's: a person is waiting


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status."""
    try:
        status: int = commands.main(arguments, prog_name=PROGRAM, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    return status


def _status_of(error: ClientError) -> int:
    return REFUSED if isinstance(error, InvalidRequest) else FAILED


class _Commands(click.Group):
    """Turns the exceptions of the client into messages and exit statuses."""

    def invoke(self, ctx: click.Context) -> int:
        try:
            status: int = super().invoke(ctx)
        except ClientError as error:
            _say(str(error))
            return _status_of(error)
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


@commands.command(
    cls=Command,
    examples="""\
attribution attribute -m lookup-gpt2 -i "Anna likes tea. Anna likes" \\
    --step_scores probability

attribution attribute -m HuggingFaceTB/SmolLM2-135M-Instruct \\
    --system "Be brief." --user "Why is the sky blue?" \\
    -a integrated_gradients --generation_kwargs '{"max_new_tokens": 20}'

cat prompt.txt | attribution attribute -m distilgpt2 -i - \\
    --methods saliency occlusion --viz_path heatmap.html""",
)
@request_options
@detach_option
@view_options
@click.pass_obj
def attribute(client: AttributionClient, /, **given: Any) -> int:
    """Submit a job, wait for it and show its result."""
    job = client.submit(**request_fields(given))
    if given["detach"]:
        tables.console().print(job.model_dump_json() if given["as_json"] else job.job_id, markup=False)
        return DONE
    try:
        client.wait(job)
    except KeyboardInterrupt:
        cancelled = client.cancel(job)
        _say(f"Interrupted: the job {job.job_id} is {'being ' if not cancelled.has_ended else ''}cancelled.")
        return INTERRUPTED
    return _result(client, job, given)


@commands.command(
    cls=Command,
    examples="""\
attribution estimate -m lookup-gpt2 -i "Anna likes tea. Anna likes" \\
    --methods integrated_gradients lime""",
)
@request_options
@json_option
@click.pass_obj
def estimate(client: AttributionClient, /, *, as_json: bool, **given: Any) -> int:
    """Say what a job would take: tokens, passes, time and memory.

    Takes the options of `attribute`. Runs no attribution.
    """
    found = client.estimate(**request_fields(given))
    if as_json:
        _write(found.model_dump_json())
    else:
        tables.print_estimate(found)
    return DONE


@commands.command(cls=Command, examples="attribution show JOB_ID --attribution_aggregators subwords vnorm --top 5")
@click.argument("job_id", shell_complete=completion.jobs)
@method_of_comparison
@view_options
@click.pass_obj
def show(client: AttributionClient, /, job_id: str, **given: Any) -> int:
    """Show the result of a job, or its status if it has none."""
    job = client.job(job_id)
    if job.status is JobStatus.COMPLETED:
        return _result(client, job, given)
    if given["as_json"]:
        _write(job.model_dump_json())
    else:
        tables.print_jobs([job])
        if job.error:
            _print(f"{job.error.title}: {job.error.detail}")
    return FAILED if job.status is JobStatus.FAILED else DONE


@commands.command(
    cls=Command,
    examples="""\
attribution trace JOB_ID --from "after:</think>" --through "between:<think>,</think>"
attribution trace JOB_ID --from text:milk --hops 1 --viz_path trace.html""",
)
@click.argument("job_id", shell_complete=completion.jobs)
@trace_options
@click.pass_obj
def trace(client: AttributionClient, /, job_id: str, **given: Any) -> int:
    """Show which tokens of the input led to an answer through the tokens before it.

    It is worked out from the stored result of the job, and runs no model.
    """
    fields = trace_fields(given)
    if given["viz_path"]:
        Path(given["viz_path"]).write_bytes(client.view(job_id, "html", **fields))
    if given["as_json"]:
        _write(client.view(job_id, "json", **fields, decode_tokens=True).decode())
        return DONE
    from attribution_client.trace_text import print_trace  # as in `_print_result`

    print_trace(client.trace(job_id, fields.pop("trace"), **fields), tables.console(), given["top"])
    return DONE


@commands.command(cls=Command)
@click.option("--status", shell_complete=completion.statuses, help="pending, running, completed, failed or cancelled.")
@click.option("--model", shell_complete=completion.models, help="Only jobs of this model.")
@click.option("--method", shell_complete=completion.methods, help="Only jobs of this method.")
@tag_filter
@click.option("--search", metavar="TEXT", help="Words of the job, or their beginnings; all must match.")
@click.option("--limit", type=int, default=20, show_default=True, help="The largest number of jobs to show.")
@json_option
@click.pass_obj
def jobs(
    client: AttributionClient, /, tag: tuple[str, ...], limit: int, *, as_json: bool, **filters: str | None
) -> int:
    """List the newest jobs."""
    found = client.jobs(tag=list(tag) or None, page_size=min(limit, 200), **filters)
    return _show_jobs(list(islice(found, limit)), as_json=as_json)


@commands.command(cls=Command)
@click.argument("job_id", nargs=-1, required=True, shell_complete=completion.active_jobs)
@json_option
@click.pass_obj
def cancel(client: AttributionClient, /, job_id: tuple[str, ...], *, as_json: bool) -> int:
    """Cancel jobs."""
    found, status = _each(job_id, client.cancel)
    if found:
        _show_jobs(found, as_json=as_json)
    return status


@commands.command(cls=Command)
@click.argument("job_id", nargs=-1, required=True, shell_complete=completion.ended_jobs)
@click.pass_obj
def delete(client: AttributionClient, /, job_id: tuple[str, ...]) -> int:
    """Delete ended jobs and their results. Prints the ids of the deleted ones."""

    def delete_one(each: str) -> None:
        client.delete(each)
        _write(each)

    return _each(job_id, delete_one)[1]


@commands.command(cls=Command)
@json_option
@click.pass_obj
def methods(client: AttributionClient, /, *, as_json: bool) -> int:
    """List the attribution methods and their parameters. `estimate` says what one would cost."""
    found = client.methods()
    if as_json:
        _write(json.dumps(found))
    else:
        tables.print_methods(found)
    return DONE


@commands.command(cls=Command)
@json_option
@click.pass_obj
def models(client: AttributionClient, /, *, as_json: bool) -> int:
    """List the server's models, and which of them are loaded."""
    found = client.models()
    if as_json:
        _write(json.dumps(found))
    else:
        tables.print_models(found)
    return DONE


@commands.command(
    "completion",
    cls=Command,
    short_help="Print the script that completes names in a shell.",
    examples="""\
eval "$(attribution completion bash)"    # in ~/.bashrc
eval "$(attribution completion zsh)"     # in ~/.zshrc
attribution completion fish > ~/.config/fish/completions/attribution.fish""",
)
@click.argument("shell", type=click.Choice(completion.SHELLS))
def print_completion(shell: str) -> int:
    """Print the script with which a shell completes options, models, methods and job ids.

    The names come from the server of INSEQ_API_URL, as long as it answers within a second or two.
    """
    _write(completion.script(commands, PROGRAM, shell).rstrip("\n"))
    return DONE


def _each(job_ids: Sequence[str], change: Callable[[str], Any]) -> tuple[list[Any], int]:
    """Change each job. One that fails is told and keeps no other; the exit status is that of the first failure."""
    done, statuses = [], []
    for job_id in dict.fromkeys(job_ids):
        try:
            done.append(change(job_id))
        except ServerUnreachable:
            raise
        except ClientError as error:
            _say(f"{job_id}: {error}")
            statuses.append(_status_of(error))
    return done, next(iter(statuses), DONE)


def _result(client: AttributionClient, job: Job, given: dict[str, Any]) -> int:
    """Save and print the result of a completed job, as the options say."""
    view = view_fields(given)
    names = job.request.method_names if job.request else []
    is_comparison = len(names) > 1 and "method" not in view
    # Inseq's file is raw unless aggregators are given.
    for_inseq = view if "aggregator" in view else {name: view[name] for name in view.keys() & {"method"}}
    for path, view_format, fields in ((given["save_path"], "inseq", for_inseq), (given["viz_path"], "html", view)):
        if path and is_comparison:
            for method in names:
                _path_of(path, method).write_bytes(client.view(job, view_format, **fields, method=method))
        elif path:
            Path(path).write_bytes(client.view(job, view_format, **fields))
    if given["as_json"]:
        _write(client.view(job, "json", **view).decode())
    elif not given["hide_attributions"]:
        _print_result(client, job, view, given["top"], is_comparison=is_comparison)
    _say(f"job {job.job_id}")
    return DONE


def _print_result(
    client: AttributionClient, job: Job, view: dict[str, Any], top: int | None, *, is_comparison: bool
) -> None:
    # Imported here: its colours take a tenth of a second, which completion in a shell does not have.
    from attribution_client.heatmap_text import print_comparison, print_result

    if is_comparison:
        print_comparison(client.comparison(job, **view), tables.console(), top)
    else:
        print_result(client.results(job, **view), tables.console(), top)


def _path_of(path: str, method: str) -> Path:
    """The file of one method of a comparison: `scores.saliency.html` for `scores.html`."""
    whole = Path(path)
    return whole.with_name(f"{whole.stem}.{method}{whole.suffix}")


def _show_jobs(found: Sequence[Job], *, as_json: bool) -> int:
    if as_json:
        _write(json.dumps([job.model_dump(mode="json") for job in found]))
    else:
        tables.print_jobs(found)
    return DONE


def _write(text: str) -> None:
    """Write one line for other programs."""
    sys.stdout.write(text + "\n")


def _print(text: str) -> None:
    tables.console().print(readable(text), markup=False)


def _say(text: str) -> None:
    sys.stderr.write(readable(text) + "\n")
