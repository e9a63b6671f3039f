"""The examples of docs/how-to run as written, one after another, and print what the pages say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import pytest

from tests.conftest import BUNDLED
from tests.serving import ROOT

PAGES = sorted((ROOT / "docs" / "how-to").glob("*.md"))
SMOLLM2 = "smollm2-135m-instruct-q4"
# A fenced block, and the output that the page shows behind it.
EXAMPLE = re.compile(r"```(python|bash)\n(.*?)```\n(?:\n```text\n(.*?)```)?", re.DOTALL)


def needs_chat_model(page: Path) -> list[pytest.MarkDecorator]:
    if not any(SMOLLM2 in code for _, code, _ in EXAMPLE.findall(page.read_text(encoding="utf-8"))):
        return []
    return [pytest.mark.slow, pytest.mark.skipif(not (BUNDLED / SMOLLM2).exists(), reason="`make smollm2` makes it")]


@pytest.mark.parametrize("page", [pytest.param(each, id=each.stem, marks=needs_chat_model(each)) for each in PAGES])
def test_the_examples_print_what_the_page_says(page, server, tmp_path, monkeypatch, capsys):
    mpl.use("Agg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INSEQ_API_URL", server.url)
    names: dict = {}
    examples = EXAMPLE.findall(page.read_text(encoding="utf-8"))
    assert examples
    for language, code, shown in examples:
        runnable = re.sub(r"http://(?:localhost|127\.0\.0\.1):8000", server.url, code)
        if language == "python":
            exec(runnable, names)
            printed = capsys.readouterr().out
        else:
            printed = run_in_shell(runnable, tmp_path)
        if shown:  # columns may be padded
            assert [line.split() for line in printed.splitlines()] == [line.split() for line in shown.splitlines()], (
                code
            )


def run_in_shell(code: str, folder: Path) -> str:
    """What the commands print; `attribution` is this checkout's."""
    define = f'attribution() {{ "{sys.executable}" -m attribution_client "$@"; }}\n'
    done = subprocess.run(  # noqa: PLW1510 - its error is shown below
        ["bash", "-ec", define + code],
        cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "100"}, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, (code, done.stderr)
    return done.stdout
