"""Runs what a model's files bring as code (chat templates, tokenizers) in processes with limits of time and memory.

A chat template is a program, and a tokenizer's rules may turn a character into a megabyte or search a pattern for
hours. Both come with a model from whoever wrote it. `sandbox_process` is the other side.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from attribution.model_cache.model_source import ModelSource
from problems import Cancelled, InputRejected

_SCRIPT = Path(__file__).with_name("sandbox_process.py")
_POLL_SECONDS = 0.05  # between two questions whether to stop
_START_SECONDS = 120.0  # a process imports Transformers first: a second, and more on a busy machine
_CLOCK_SECONDS = 300.0  # for an answer by the clock: the limit of processor time comes first, unless it is held up
_MOST_TOKENS = 1_000_000  # of one text: this process will hold them
_MOST_IDLE = 2  # processes kept for the next question
_MIB = 1024**2


class Sandboxes:
    """Processes that answer questions, one at a time each; started when needed, kept for the next question.

    seconds: processor time of one answer. memory: bytes that an answer may take. Safe to use from many threads.
    """

    def __init__(self, *, seconds: float, memory: int) -> None:
        self.seconds = seconds
        self.memory = memory
        self._idle: list[_Process] = []
        self._guard = threading.Lock()
        weakref.finalize(self, _end_all, self._idle)

    def ask(self, what: str, question: dict[str, Any], should_cancel: Callable[[], bool]) -> dict[str, Any]:
        """The answer to a question (see `sandbox_process`) about `what`, a noun phrase for messages.

        Raises `InputRejected` if it is refused or exceeds a limit, and `Cancelled` soon after `should_cancel` returned
        True. The process is then ended.
        """
        process = self._take()
        try:
            answer = process.ask(question | {"seconds": self.seconds}, should_cancel)
        except BaseException as error:
            ended = process.end()
            if not isinstance(error, TimeoutError | EOFError | BrokenPipeError):
                raise
            raise InputRejected(self._exceeded(what, error, ended)) from error
        if answer.get("memory"):
            process.end()
            raise InputRejected(self._too_large(what))
        self._give_back(process)
        if "refused" in answer:
            raise InputRejected(f"{what} refuses these texts: {answer['refused']}")
        return answer

    def prepare(self) -> None:
        """Start a process if none is idle: it takes a second, in which the caller can do something else."""
        with self._guard:
            if not self._idle:
                self._idle.append(_Process(self.memory))

    def _take(self) -> _Process:
        while True:
            with self._guard:
                process = self._idle.pop() if self._idle else None
            if process is None:
                return _Process(self.memory)
            if process.is_alive:
                return process
            process.end()  # killed while it was idle

    def _give_back(self, process: _Process) -> None:
        with self._guard:
            keep = len(self._idle) < _MOST_IDLE
            if keep:
                self._idle.append(process)
        if not keep:
            process.end()

    def _exceeded(self, what: str, error: Exception, ended: int) -> str:
        if isinstance(error, TimeoutError) or ended == -signal.SIGXCPU:
            return (
                f"{what} was stopped: it took more than {self.seconds:g} seconds on these texts. Shorten them, or use "
                "another model (INSEQ_API_TEXT_SECONDS sets the limit)."
            )
        return self._too_large(what)

    def _too_large(self, what: str) -> str:
        return (
            f"{what} was stopped: it needs more than {self.memory // _MIB} MiB of memory, or than the machine has, on "
            "these texts. Shorten them, or use another model (INSEQ_API_TEXT_MEMORY_BYTES sets the limit)."
        )


@dataclass(frozen=True)
class TextSandbox:
    """The sandbox of one request: its model's files, and whether the request is to be stopped."""

    sandboxes: Sandboxes
    source: ModelSource
    should_cancel: Callable[[], bool]

    def render(
        self, tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, Any]], variables: dict[str, Any]
    ) -> str:
        """`apply_chat_template(tokenize=False)` for the assistant's next turn, or a last turn of its own to continue.

        The text can be tokenized within the limits. Raises `InputRejected` and `Cancelled` as `Sandboxes.ask`.
        """
        question = {
            "template": tokenizer.chat_template,
            "special_tokens": tokenizer.special_tokens_map,
            "messages": messages,
            "variables": variables,
            "continues": messages[-1]["role"] == "assistant",
        }
        answer = self._ask("The model's chat template", question | self._files)
        return str(answer["text"])

    def check_texts(self, calls: Sequence[dict[str, Any]], languages: dict[str, str]) -> None:
        """Check that the tokenizer, set to these languages, can be called with each of these keyword arguments within
        the limits.

        This process may then do the same. Raises `InputRejected` and `Cancelled` as `Sandboxes.ask`.
        """
        if self._files and calls:
            self._ask("The model's tokenizer", {"calls": calls, "languages": languages} | self._files)

    def _ask(self, what: str, question: dict[str, Any]) -> dict[str, Any]:
        answer = self.sandboxes.ask(what, question, self.should_cancel)
        if answer.get("tokens", 0) > _MOST_TOKENS:
            raise InputRejected(f"{what} makes {answer['tokens']} tokens of a text, too many. Shorten it.")
        return answer

    @property
    def _files(self) -> dict[str, str]:
        """Where the tokenizer is; empty for the bundled models, which need no trial."""
        if self.source.kind == "bundled":
            return {}
        return {"tokenizer": str(self.source.tokenizer_folder()), "revision": self.source.revision}


class _Process:
    """One process of `sandbox_process`."""

    def __init__(self, memory: int) -> None:
        # Not the environment's secrets, and nothing to download.
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("INSEQ_API_", "HF_TOKEN"))}
        self._process = subprocess.Popen(  # noqa: S603 - this file's own script
            # -P: this file's folder is not on the path, where `languages` or `encoding` could hide other modules.
            [sys.executable, "-P", str(_SCRIPT), str(memory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=kept | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C in a terminal is for the server
        )
        self._is_ready = False

    def ask(self, question: dict[str, Any], should_cancel: Callable[[], bool]) -> dict[str, Any]:
        """The answer. Raises `TimeoutError`, `Cancelled`, and `EOFError` or `BrokenPipeError` if the process ended."""
        if not self._is_ready:
            self._read(_START_SECONDS, should_cancel)
            self._is_ready = True
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question).encode() + b"\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._read(_CLOCK_SECONDS, should_cancel))
        return answer

    def _read(self, seconds: float, should_cancel: Callable[[], bool]) -> bytes:
        """The next line that the process writes."""
        assert self._process.stdout is not None
        file, deadline, parts = self._process.stdout.fileno(), time.monotonic() + seconds, list[bytes]()
        poll = select.poll()  # unlike `select`, takes file numbers above 1,024
        poll.register(file, select.POLLIN)
        while not parts or not parts[-1].endswith(b"\n"):
            if should_cancel():
                raise Cancelled
            if time.monotonic() > deadline:
                raise TimeoutError
            if poll.poll(_POLL_SECONDS * 1000):
                parts.append(os.read(file, _MIB))
                if not parts[-1]:
                    raise EOFError
        return b"".join(parts)

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def end(self) -> int:
        """End the process; returns its exit status, negative for a signal."""
        # A process that has just ended by itself keeps its own status.
        self._process.kill()
        code = self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:  # what was not written yet
                continue
        return code


def _end_all(processes: list[_Process]) -> None:
    for each in processes:
        each.end()
