"""Runs the examples of a page of documentation, as a reader would who copies one block after the other.

A page is one program. Of its fenced blocks, `python` and `bash` run in order, in one folder, against a server; `text` is
what the block before it prints; `json` is a request that the server must accept; `dotenv` are settings. A block
without a language is not run.
"""

from __future__ import annotations

import ast
import inspect
import io
import os
import re
import shlex
import subprocess
from asyncio import run
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from settings import Settings
from tests import command_line
from tests.serving import ROOT, Server

LANGUAGES = {"", "python", "bash", "text", "json", "dotenv"}
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
PLACES = re.compile(r"http://(?:127\.0\.0\.1|localhost):8000|(?<=[ \"])localhost:8000")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; `line` is that of its fence, for messages."""

    language: str
    code: str
    line: int


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, by its path in the repository. Raises `AssertionError` for an unknown language."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = []
    for each in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        line = text[: each.start()].count("\n") + 1
        assert each[1] in LANGUAGES, f"{page}:{line}: what is {each[1]!r}?"
        found.append(Block(each[1], each[2], line))
    return found


@dataclass
class Reader:
    """Runs blocks in `folder`. `changes` are replaced in each block before it runs, such as the name of a model."""

    server: Server
    folder: Path
    changes: Mapping[str, str] = field(default_factory=dict)
    names: dict[str, Any] = field(default_factory=dict)

    def read(self, page: str, *, compares: bool = True) -> None:
        """Run all blocks of a page; with `compares`, they print what the page says."""
        printed = ""
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.folder)
            patch.setenv("INSEQ_API_URL", self.server.url)
            for block in blocks(page):
                where = f"{page}:{block.line}"
                if block.language == "text":
                    assert not compares or same(printed, block.code), f"{where} is not what was printed:\n{printed}"
                elif block.language:
                    printed = self.run(block, where)

    def run(self, block: Block, where: str) -> str:
        """Run one block and return what it prints."""
        code = PLACES.sub(self.server.url, block.code)
        for old, new in self.changes.items():
            code = code.replace(old, new)
        return getattr(self, f"_{block.language}")(code, where)

    def _python(self, code: str, where: str) -> str:
        out = io.StringIO()
        program = compile(code, where, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        with redirect_stdout(out):
            started = eval(program, self.names)
            if inspect.iscoroutine(started):
                run(started)
        return out.getvalue()

    def _bash(self, code: str, where: str) -> str:
        if commands := list(attribution_commands(code)):
            done = [command_line.run(self.server, *each) for each in commands]
            assert [each.returncode for each in done] == [0] * len(done), (where, [each.stderr for each in done])
            return "".join(each.stdout for each in done)
        ran = subprocess.run(["bash", "-ec", code], capture_output=True, text=True, timeout=600, check=False)
        assert ran.returncode == 0, (where, ran.stderr)
        return ran.stdout

    def _json(self, code: str, where: str) -> str:
        answer = self.server.client.post(
            "/attribution/estimate", content=code, headers={"Content-Type": "application/json"}
        )
        assert answer.status_code == 200, (where, answer.text)
        return answer.text

    def _dotenv(self, code: str, where: str) -> str:
        file = self.folder / ".env"
        file.write_text(code)
        with pytest.MonkeyPatch.context() as patch:
            for name in [name for name in os.environ if name.startswith("INSEQ_API_")]:
                patch.delenv(name)
            chosen = Settings(_env_file=file)
        file.unlink()
        for name in re.findall(r"^INSEQ_API_(\w+)=", code, re.MULTILINE):
            assert name.lower() in chosen.model_fields_set, (where, name)
        return ""


def attribution_commands(code: str) -> Iterator[list[str]]:
    """The arguments of each command, where a block has none but `attribution`; else nothing. `$(cat FILE)` is read."""
    code = re.sub(r"\$\(cat (\S+)\)", lambda found: Path(found[1]).read_text().strip(), code)
    lines = [line for line in code.replace("\\\n", " ").splitlines() if line.strip()]
    if all(line.startswith("attribution ") and "|" not in line for line in lines):
        yield from (shlex.split(line, comments=True)[1:] for line in lines)


def same(printed: str, stated: str) -> bool:
    """Whether the words are the same, and the numbers up to one unit of the last digit that is stated."""
    if [NUMBER.sub("#", line).split() for line in printed.strip().splitlines()] != [
        NUMBER.sub("#", line).split() for line in stated.strip().splitlines()
    ]:
        return False
    pairs = zip(NUMBER.findall(printed), NUMBER.findall(stated), strict=True)
    return all(abs(float(one) - float(other)) <= step_of(other) * 1.01 for one, other in pairs)


def step_of(number: str) -> float:
    """One unit of the last digit; 0 for a whole number."""
    _, point, decimals = number.partition(".")
    return 10.0 ** -len(decimals) if point else 0.0
