"""The command line: `python main.py` serves; `keys create|list|revoke` manages API keys; `backup` and `restore`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from fastapi import FastAPI
from pydantic import ValidationError

from api.uvicorn_server import configure_logging, serve
from jobs.store import backup
from jobs.store.api_keys import ApiKeys
from jobs.store.job_store import JobStore
from problems import StorageFailed
from settings import Settings

CreateApp = Callable[[Settings], FastAPI]


@dataclass
class _Invocation:
    """What the commands share: how to make the app, and the settings that the options of `main.py` change."""

    create_app: CreateApp
    settings: Settings | None = None

    @property
    def data_dir(self) -> Path:
        assert self.settings is not None
        return self.settings.data_dir

    def keys(self) -> ApiKeys:
        return ApiKeys.of(self.data_dir)


def main(create_app: CreateApp, arguments: list[str] | None = None) -> None:
    """Run the command line and exit. `arguments`: those of this process by default.

    Exit status: 0 after success, 1 if the data directory or a backup cannot be used or there is no such key, 2 for
    wrong usage.
    """
    try:
        _serve.main(arguments, obj=_Invocation(create_app))
    except StorageFailed as error:  # an operator's problem, which needs one line and no traceback
        click.echo(error.detail, err=True)
        sys.exit(1)


@click.group(
    "main.py",
    invoke_without_command=True,
    subcommand_metavar="[COMMAND]",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option("--host", help="Address to listen on (default: 127.0.0.1).")
@click.option("--port", type=int, help="Port to listen on (default: 8000).")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Directory of jobs and results (default: data/).")
@click.pass_context
def _serve(context: click.Context, /, **options: Any) -> None:
    """Serve feature attribution jobs over HTTP, unless a command is given."""
    invocation: _Invocation = context.obj
    given = {name: value for name, value in options.items() if value is not None}
    try:
        settings = invocation.settings = Settings(**given)
    except ValidationError as error:
        raise click.UsageError("\n".join(map(_fault, error.errors(include_input=False)))) from None
    if context.invoked_subcommand is not None:
        return
    store = JobStore(settings.data_dir)  # fails here, before anything starts, if the directory cannot be used
    has_keys = store.keys.are_set
    store.close()
    if not settings.is_loopback and not has_keys and not settings.allow_public:
        raise click.UsageError(
            f"{settings.host} can be reached by other machines, and anybody there could use this server. Make an API "
            "key (python main.py keys create NAME), or set INSEQ_API_ALLOW_PUBLIC=true if that is what you want. Name "
            "the hosts it answers to in INSEQ_API_ALLOWED_HOSTS."
        )
    configure_logging()
    serve(invocation.create_app(settings), settings)


def _fault(error: Any) -> str:
    """Return what is wrong with a setting, without its value, which may be a secret."""
    variable = f"INSEQ_API_{error['loc'][0].upper()}: " if error["loc"] else ""
    return f"{variable}{error['msg'].removeprefix('Value error, ')}"


@_serve.group("keys")
def _keys() -> None:
    """Create, list and revoke API keys, also while the server runs."""


@_keys.command("create")
@click.argument("name")
@click.pass_obj
def _create(invocation: _Invocation, name: str) -> None:
    """Make a key for NAME and show it, once."""
    key, secret = invocation.keys().create(name)
    click.echo(
        f"{secret}\n\nKey {key.key_id} for {key.name}. It is not shown again. Send: Authorization: Bearer {secret}"
    )


@_keys.command("list")
@click.pass_obj
def _list(invocation: _Invocation) -> None:
    """List the keys without their secrets."""
    for key in invocation.keys().list():
        state = "revoked" if key.revoked_at else "in use"
        click.echo(f"{key.key_id}  {_when(key.created_at):17}  {state:8} {key.name}")


def _when(seconds: float) -> str:
    """Return a time in minutes; "unknown" for what a damaged row may contain."""
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M}Z"
    except (TypeError, ValueError, OverflowError, OSError):
        return "unknown"


@_keys.command("revoke")
@click.argument("key_id")
@click.pass_obj
def _revoke(invocation: _Invocation, key_id: str) -> None:
    """Revoke the key with this KEY_ID (see the list): requests with it are refused from now on."""
    if not invocation.keys().revoke(key_id):
        click.echo(f"There is no key {key_id!r} in use.", err=True)
        sys.exit(1)


@_serve.command("backup")
@click.argument("file", type=click.Path(path_type=Path))
@click.pass_obj
def _backup(invocation: _Invocation, file: Path) -> None:
    """Write the jobs, results and API keys to a new FILE, also while the server runs or after a crash."""
    made = backup.back_up(invocation.data_dir, file)
    click.echo(f"{file}: {made.jobs} jobs, {made.results} result files.{_missing(made)}")


@_serve.command("restore")
@click.argument("file", type=click.Path(path_type=Path))
@click.pass_obj
def _restore(invocation: _Invocation, file: Path) -> None:
    """Restore jobs, results and API keys from FILE. Stop the server first. What is there now is moved aside."""
    restored, before = backup.restore(invocation.data_dir, file)
    moved = f" What was there before is in {before}." if before else ""
    click.echo(f"Restored {restored.jobs} jobs, {restored.results} result files.{_missing(restored)}{moved}")


def _missing(summary: backup.Summary) -> str:
    return f" {summary.missing} result files are missing: they were gone before." if summary.missing else ""
