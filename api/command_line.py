"""The command line: `python main.py` serves; `python main.py keys create|list|revoke` manages API keys."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from fastapi import FastAPI

from api.uvicorn_server import configure_logging, serve
from jobs.store.api_keys import ApiKeys
from jobs.store.job_store import JobStore
from problems import StorageFailed
from settings import Settings


def main(create_app: Callable[[Settings], FastAPI], arguments: list[str] | None = None) -> None:
    """`python main.py [--host HOST] [--port PORT] [--data-dir DIR] [keys ...]`."""
    parser = argparse.ArgumentParser(description="Serve feature attribution jobs over HTTP.")
    parser.add_argument("--host", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, help="port to listen on (default: 8000)")
    parser.add_argument("--data-dir", type=Path, help="where jobs and results are stored (default: data/)")
    commands = parser.add_subparsers(dest="command", title="commands", description="Without one, the server starts.")
    keys = commands.add_parser("keys", help="create, list and revoke API keys, also while the server runs")
    actions = keys.add_subparsers(dest="action", required=True)
    actions.add_parser("create", help="make a key and show it, once").add_argument("name", help="whose it is")
    actions.add_parser("list", help="the keys, without their secrets")
    actions.add_parser("revoke", help="make a key worthless").add_argument("key_id", help="its id, as listed")
    given = vars(parser.parse_args(arguments))
    settings = Settings(**{name: given[name] for name in ("host", "port", "data_dir") if given[name] is not None})
    try:
        if given["command"] == "keys":
            parser.exit(*_manage(ApiKeys.of(settings.data_dir), given))
        _serve(create_app, settings, parser)
    except StorageFailed as error:  # told on a line of its own, and not in a traceback
        parser.exit(1, f"{error.detail}\n")


def _manage(keys: ApiKeys, given: dict[str, str]) -> tuple[int, str]:
    """The exit status, and what to say where it is not 0."""
    if given["action"] == "create":
        key, secret = keys.create(given["name"])
        _say(
            f"{secret}\n\nKey {key.key_id} for {key.name}. It is not shown again. Send: Authorization: Bearer {secret}"
        )
    elif given["action"] == "list":
        for key in keys.list():
            state = "revoked" if key.revoked_at else "in use"
            made = f"{datetime.fromtimestamp(key.created_at, UTC):%Y-%m-%d %H:%M}Z"
            _say(f"{key.key_id}  {made}  {state:8} {key.name}")
    elif not keys.revoke(given["key_id"]):
        return 1, f"There is no key {given['key_id']!r} in use.\n"
    return 0, ""


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


def _serve(create_app: Callable[[Settings], FastAPI], settings: Settings, parser: argparse.ArgumentParser) -> None:
    store = JobStore(settings.data_dir)  # a directory in use, or of a newer version, is told before anything starts
    has_keys = store.keys.are_set
    store.close()
    if not settings.is_loopback and not has_keys and not settings.allow_public:
        parser.error(
            f"{settings.host} can be reached by other machines, and anybody there could use this server. Make an API "
            "key (python main.py keys create NAME), or set INSEQ_API_ALLOW_PUBLIC=true if that is what you want. Name "
            "the hosts it answers to in INSEQ_API_ALLOWED_HOSTS."
        )
    configure_logging()
    serve(create_app(settings), settings.host, settings.port)
