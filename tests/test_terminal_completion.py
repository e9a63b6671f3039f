"""Shell completion of the command `attribution`: names and ids of the server, and silence without it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from attribution_client import AttributionClient, terminal
from tests.command_line import environment, run
from tests.conftest import LOOKUP, PHRASEBOOK
from tests.serving import ROOT


def completed(server, line, capsys, **more):
    """What bash is offered at the end of a command line."""
    words = line.split(" ")
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "INSEQ_API_URL": server.url, "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1),
            "_ATTRIBUTION_COMPLETE": "bash_complete", **more,
        }.items():  # fmt: skip
            patch.setenv(name, value)
        with pytest.raises(SystemExit) as end:
            terminal.main([])
    assert end.value.code == 0
    told = capsys.readouterr()
    assert told.err == ""
    return [each.partition(",")[2] for each in told.out.splitlines() if each]


COMPLETED = {
    "attribution est": ["estimate"],
    "attribution attribute -m loo": [LOOKUP],
    "attribution attribute --model phr": [PHRASEBOOK],
    "attribution jobs --model loo": [LOOKUP],
    "attribution jobs --status can": ["cancelled"],
    "attribution attribute -a layer_d": ["layer_deeplift"],
    "attribution attribute --methods sal": ["saliency"],
    # A further value of an option, which click does not know of.
    "attribution attribute --methods saliency layer_d": ["layer_deeplift"],
    "attribution attribute --methods saliency lime -a occ": ["occlusion"],
    "attribution attribute --methods saliency --out": ["--output_step_attributions"],
    "attribution attribute -i text --step_scores entropy proba": ["probability"],
    "attribution attribute -fn contrast_logits_": ["contrast_logits_diff"],
    "attribution show JOB --attribution_aggregators subwords vno": [],
    "attribution show JOB --attribution_aggregators scores subw": ["subwords"],
    "attribution attribute --engine sin": ["single_pass"],
    "attribution completion f": ["fish"],
}


@pytest.mark.parametrize("line", COMPLETED)
def test_names_come_from_the_server(server, line, capsys):
    server.client.get("/attribution/methods")  # the first question of a server takes longer than a shell may wait
    assert completed(server, line, capsys) == COMPLETED[line]


def test_job_ids_are_those_that_a_command_takes(slow, capsys):
    with AttributionClient(slow.url) as client:
        ended = client.wait(client.submit(model="m", method="saliency", input_text="hello")).job_id
        active = client.submit(model="m", method="saliency", input_text="forever").job_id
        try:
            assert set(completed(slow, "attribution show ", capsys)) >= {ended, active}
            assert active in completed(slow, "attribution cancel ", capsys)
            assert ended not in completed(slow, "attribution cancel ", capsys)
            deletable = completed(slow, "attribution delete ", capsys)
            assert ended in deletable
            assert active not in deletable
            assert completed(slow, f"attribution delete {ended[:12]}", capsys) == [ended]
            assert ended not in completed(slow, f"attribution delete {ended} ", capsys)
        finally:
            client.cancel(active)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "nonsense", "http://[::"])
def test_a_server_that_does_not_answer_is_silence(slow, url, capsys):
    assert completed(slow, "attribution attribute -m l", capsys, INSEQ_API_URL=url) == []
    assert completed(slow, f"attribution --server {url} show ", capsys) == []


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_the_script_completes_in_bash(server, tmp_path):
    program = tmp_path / "attribution"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m attribution_client "$@"\n')
    program.chmod(0o755)
    typed = (
        'eval "$(attribution completion bash)"; COMP_WORDS=(attribution attribute -m loo); COMP_CWORD=3;'
        "_attribution_completion attribution; printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    paths = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "--norc", "-c", typed],
        capture_output=True, text=True, env=environment(server, **paths), cwd=tmp_path, timeout=120, check=True,
    )  # fmt: skip
    assert done.stdout.split() == [LOOKUP]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_have_scripts(slow, shell):
    done = run(slow, "completion", shell)
    assert done.returncode == 0
    assert f"_ATTRIBUTION_COMPLETE={shell}_complete" in done.stdout
    assert run(slow, "completion", "tcsh").returncode == 2
