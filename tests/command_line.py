"""Runs the command `attribution` in this process, or gives the environment for one of its own."""

from __future__ import annotations

import io
import os
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass

import pytest

from attribution_client import terminal

OTHERS = ("NO_COLOR", "FORCE_COLOR", "COLUMNS")  # variables of the tester's own terminal


def environment(server, **more):
    kept = {name: value for name, value in os.environ.items() if name not in OTHERS}
    return kept | {"INSEQ_API_URL": server.url, "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"} | more


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


def run(server, *arguments, stdin=b"", **more):
    """Run the command in this process. more: variables of its environment, such as COLUMNS="80"."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        for name in OTHERS:
            patch.delenv(name, raising=False)
        for name, value in {"INSEQ_API_URL": server.url, "TERM": "xterm-256color", **more}.items():
            patch.setenv(name, value)
        patch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = terminal.main([str(each) for each in arguments])
    return Done(code, out.getvalue(), err.getvalue())
