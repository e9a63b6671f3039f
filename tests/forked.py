"""Servers forked from a process that has their imports: those of torch and Inseq take ten seconds of processor time.

A server is in a process of its own, and runs what `python -m` runs, with its own arguments and environment.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.reduction import DupFd
from typing import IO, Any

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["main", "attribution.engine"])

_FORKABLE = {"main", "tests.checking_engine", "tests.fake_engine"}

# Variables that libraries read when they are imported.
_READ_BY_IMPORTS = ("ATEN_", "HF_", "INSEQ_ARTIFACTS", "MKL_", "OMP_", "PYTHON", "TOKENIZERS_", "TRANSFORMERS_")


def can_fork(module: str, command: Sequence[str], environment: dict[str, str]) -> bool:
    """Whether such a server may have its imports from the common process."""
    own = any(name.startswith(_READ_BY_IMPORTS) for name in environment)
    return module in _FORKABLE and not command and not own and sys.platform == "linux"


class Forked:
    """A server's process, with as much of `subprocess.Popen` as `tests.serving.Server` needs."""

    def __init__(self, module: str, arguments: Sequence[str], environment: dict[str, str], log: IO[Any]) -> None:
        reader, writer = os.pipe()
        self.stdout = os.fdopen(reader)
        files = [_Inherited(writer), _Inherited(log.fileno())]
        # A daemon: it ends with the tests.
        self._process = _CONTEXT.Process(target=_serve, args=(module, arguments, environment, files), daemon=True)
        self._process.start()
        os.close(writer)
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("main", timeout or 0)
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()

    def send_signal(self, number: int) -> None:
        # As `Popen` does: it may have ended already, and nobody has read yet how.
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)


class _Inherited:
    """An open file, by its number in each process."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __getstate__(self) -> Any:
        return DupFd(self.number)

    def __setstate__(self, duplicated: Any) -> None:
        self.number = duplicated.detach()


def _serve(module: str, arguments: Sequence[str], environment: dict[str, str], files: Sequence[_Inherited]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    for number, file in enumerate(files, start=1):  # its output and its log
        os.dup2(file.number, number)
        os.close(file.number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["main.py", *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
