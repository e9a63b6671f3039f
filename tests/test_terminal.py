"""The command `attribution`, in a terminal and in pipes."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from contextlib import suppress
from dataclasses import fields

import click
import inseq
import pytest
from inseq.commands.attribute.attribute_args import AttributeWithInputsArgs

from attribution_client import AttributionClient, AttributionFailed, JobStatus
from attribution_client.terminal import commands as terminal
from attribution_client.terminal import options
from tests.command_line import environment, run
from tests.conftest import LOOKUP, PHRASEBOOK, PROMPT, SENTENCE
from tests.serving import ROOT, until

ATTRIBUTE = ["attribute", "--model", PHRASEBOOK, "--method", "saliency", "--input_texts", SENTENCE]


def test_a_pipe_gets_a_plain_table(server):
    done = subprocess.run(
        [sys.executable, "-m", "attribution_client", *ATTRIBUTE, "--step_scores", "probability"],
        cwd=ROOT, capture_output=True, text=True, env=environment(server), timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    title, header, *rows = done.stdout.splitlines()
    assert title == f"saliency of {PHRASEBOOK}"
    assert header.split() == ["il", "gatto", "rosso", "vede", "un", "cane", "</s>"]
    assert "\x1b" not in done.stdout
    job_id = re.fullmatch(r"job (\w+)\n", done.stderr).group(1)
    (sequence,) = server.result(job_id)["sequence_attributions"]
    table = {row.split()[0]: row.split()[1:] for row in rows if row.strip()}
    for token, scores in zip(sequence["source"], sequence["source_attributions"], strict=True):
        assert table[token["token"].removeprefix("▁")] == [f"{score:.2f}" for score in scores]
    assert table["probability"] == [f"{score:.3g}" for score in sequence["step_scores"]["probability"]]


def test_a_comparison_shows_each_method_and_how_they_agree(server):
    done = run(server, "attribute", "-m", PHRASEBOOK, "--methods", "saliency", "occlusion", "-i", SENTENCE)
    assert done.returncode == 0, done.stderr
    assert f"saliency of {PHRASEBOOK}" in done.stdout
    assert f"occlusion of {PHRASEBOOK}" in done.stdout
    with AttributionClient(server.url) as client:
        job = next(client.jobs())
        told = client.comparison(job).agreement[0]
    row = next(line for line in done.stdout.splitlines() if "saliency and occlusion" in line)
    assert row.split()[-3:] == [f"{told.spearman:.2f}", f"{told.kendall:.2f}", f"{told.top_overlap:.2f}"]
    one = run(server, "show", job.job_id, "--method", "occlusion")
    assert f"occlusion of {PHRASEBOOK}" in one.stdout
    assert "saliency" not in one.stdout


def test_a_comparison_has_a_file_for_each_method(server, tmp_path):
    methods = ["saliency", "occlusion"]
    done = run(
        server, "attribute", "-m", PHRASEBOOK, "--methods", *methods, "-i", SENTENCE, "--hide",
        "--save_path", tmp_path / "scores.json", "--viz_path", tmp_path / "scores.html",
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    job_id = done.stderr.split()[1]
    assert {file.name for file in tmp_path.iterdir()} == {
        f"scores.{method}.{suffix}" for method in methods for suffix in ("json", "html")
    }
    for method in methods:
        loaded = inseq.FeatureAttributionOutput.load(tmp_path / f"scores.{method}.json")
        assert loaded.info["attribution_method"] == method
        answer = server.client.get(
            f"/attribution/jobs/{job_id}/results", params={"format": "html", "method": method}
        ).content
        assert (tmp_path / f"scores.{method}.html").read_bytes() == answer
    # For one method the file has the given name; for all methods, each file has the method in its name.
    run(server, "show", job_id, "--method", "occlusion", "--hide", "-o", tmp_path / "one")
    assert inseq.FeatureAttributionOutput.load(tmp_path / "one").info["attribution_method"] == "occlusion"
    again = run(server, "show", job_id, "--hide", "--viz_path", tmp_path / "a", "--normalize_attributions", "false")
    assert again.returncode == 0, again.stderr
    answer = server.client.get(
        f"/attribution/jobs/{job_id}/results", params={"format": "html", "method": "saliency", "normalize": False}
    ).content
    assert (tmp_path / "a.saliency").read_bytes() == answer != (tmp_path / "scores.saliency.html").read_bytes()


def test_json_is_the_servers(server):
    done = run(server, *ATTRIBUTE, "--json", "--attribution-aggregators", "sum", "--normalize_attributions", "false")
    job_id = done.stderr.split()[1]
    assert json.loads(done.stdout) == server.result(job_id, aggregator="sum", normalize="false")


def test_a_script_that_imports_ipykernel_is_no_notebook(server):
    import ipykernel.kernelapp  # noqa: F401 - the import alone

    done = run(server, *ATTRIBUTE)
    assert re.fullmatch(r"job \w+\n", done.stderr), done.stderr


def test_colour_where_it_is_wanted(server):
    assert "\x1b[" in run(server, *ATTRIBUTE, FORCE_COLOR="1").stdout
    colourless = run(server, *ATTRIBUTE, FORCE_COLOR="1", NO_COLOR="1").stdout
    assert not re.search(r"\x1b\[[\d;]*(3|4|9|10)\d", colourless)


def parsed(command, *arguments):
    return terminal.commands.commands[command].make_context(command, list(arguments), parent=PARENT).params


PARENT = click.Context(terminal.commands, **terminal.commands.context_settings)


def test_options_are_those_of_inseq():
    given = parsed(
        "attribute", "-m", "m", "-a", "lime", "-i", "a", "b", "-g", "a c", "b d", "--step_scores", "probability",
        "entropy", "-fn", "logit", "--n-steps", "7", "--attribution_kwargs", '{"n_samples": 3}', "--generation_kwargs",
        '{"max_new_tokens": 2}', "--attribute_target", "--eos", "true", "--reuse", "no", "-s", "1", "-e", "4",
        "--device", "cpu", "--seed=3", "--tag", "study=a=b",
    )  # fmt: skip
    assert options.request_fields(given) == {
        "model": "m", "method": "lime", "input_text": ["a", "b"], "generated_text": ["a c", "b d"],
        "step_scores": ["probability", "entropy"], "attributed_fn": "logit", "n_steps": 7,
        "attribution_args": {"n_samples": 3}, "generation_args": {"max_new_tokens": 2}, "attribute_target": True,
        "include_eos_baseline": True, "reuse": False, "attr_pos_start": 1, "attr_pos_end": 4, "force_cpu": True,
        "seed": 3, "tags": {"study": "a=b"},
    }  # fmt: skip
    found = parsed("attribute", "-m", "m", "-i", "a", "--n_steps", "auto", "--completeness_tolerance", "0.01")
    assert options.request_fields(found) == {
        "model": "m", "method": "saliency", "input_text": "a", "n_steps": "auto", "completeness_tolerance": 0.01,
    }  # fmt: skip
    known = {name.removeprefix("--") for each in terminal.attribute.params for name in each.opts}
    theirs = {field.name for field in fields(AttributeWithInputsArgs)}
    assert "attribution_aggregators" in theirs
    assert theirs - NOT_OURS <= known


def test_segments_are_a_unit_or_a_json_list():
    request = ("attribute", "-m", "m", "-i", "a", "--segments")
    assert options.request_fields(parsed(*request, "sentences"))["segments"] == "sentences"
    parts = [{"name": "one", "text": "a"}]
    assert options.request_fields(parsed(*request, json.dumps(parts)))["segments"] == parts
    for wrong in ("chapters", '{"text": "a"}'):
        with pytest.raises(click.UsageError, match="neither a JSON list nor one of words, sentences"):
            parsed(*request, wrong)


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (["-i", "a", "b", "--hide"], ("a", "b")),
        (["--input-texts", "a", "b", "-i", "c"], ("a", "b", "c")),
        (["--input_texts=a b", "--hide"], ("a b",)),
        (["-i", "a", "--input_texts=b c"], ("a", "b c")),
        (["-i", "- a list", "-1", "-.5"], ("- a list", "-1", "-.5")),
        (["-ia b"], ("a b",)),
    ],
)
def test_an_option_takes_several_values(arguments, texts):
    given = parsed("attribute", "-m", "m", "--methods", "lime", "saliency", *arguments)
    assert (given["methods"], given["input_texts"]) == (("lime", "saliency"), texts)


@pytest.mark.parametrize(
    ("option", "value"), [([], None), (["--reuse"], True), (["--reuse", "yes"], True), (["--reuse=0"], False)]
)
def test_a_flag_may_have_a_value(option, value):
    assert parsed("attribute", "-m", "m", "-i", "a", *option, "--hide")["reuse"] is value


def test_a_view_of_a_job():
    given = parsed("show", "JOB", "--attribution_aggregators", "subwords", "vnorm", "--method", "lime")
    assert given["job_id"] == "JOB"
    assert options.view_fields(given) == {"aggregator": ["subwords", "vnorm"], "method": "lime"}


# Inseq's options without a counterpart: the server decides these, or another field of the request replaces them.
NOT_OURS = {
    "attribution_selectors", "rescale_attributions", "model_kwargs", "generate_from_target_prefix", "batch_size",
    "aggregate_output", "verbose", "very_verbose",
}  # fmt: skip


def test_files_for_inseq_and_for_the_browser(server, tmp_path):
    done = run(server, *ATTRIBUTE, "--hide", "-o", tmp_path / "r.json", "--viz_path", tmp_path / "r.html")
    assert (done.returncode, done.stdout) == (0, "")
    assert len(inseq.FeatureAttributionOutput.load(tmp_path / "r.json").sequence_attributions) == 1
    assert (tmp_path / "r.html").read_text().startswith("<!DOCTYPE html>")


def test_jobs_show_and_cancel(slow):
    with AttributionClient(slow.url) as client:
        long = client.submit(model="m", method="saliency", input_text="forever", tags={"name": "long"})
        failed = client.submit(model="m", method="saliency", input_text="fail")
        with pytest.raises(AttributionFailed):
            client.wait(failed)
        listed = run(slow, "jobs", "--tag", "name:long").stdout.splitlines()
        assert listed[0].split() == ["job", "status", "model", "method", "text", "created"]
        assert listed[1].split()[0] == long.job_id
        assert [job["job_id"] for job in json.loads(run(slow, "jobs", "--json", "--limit", 1).stdout)] == [
            failed.job_id
        ]
        cancelled = run(slow, "cancel", long.job_id)
        assert cancelled.returncode == 0
        assert long.job_id in cancelled.stdout
        with pytest.raises(Exception, match="cancelled"):
            client.wait(long)
        shown = run(slow, "show", failed.job_id)
        assert shown.returncode == 1
        assert "The text says fail" in shown.stdout
        assert run(slow, "show", long.job_id).returncode == 0
        again = run(slow, "cancel", failed.job_id)
        assert (again.returncode, again.stdout) == (1, "")


def test_delete_forgets_ended_jobs_and_tells_what_it_could_not(slow):
    with AttributionClient(slow.url) as client:
        done = [client.wait(client.submit(model="m", method="saliency", input_text="hello")).job_id for _ in range(2)]
        running = client.submit(model="m", method="saliency", input_text="forever").job_id
        told = run(slow, "delete", done[0], "nope", running, done[1], done[1])
        assert told.returncode == 1
        assert told.stdout.split() == done  # each once, the ones behind a failure too
        missing, active = told.stderr.splitlines()
        assert missing.startswith("nope: There is no such job")
        assert active.startswith(f"{running}: The job cannot be deleted before it has ended")
        assert {job.job_id for job in client.jobs()}.isdisjoint(done)
        both = run(slow, "cancel", "nope", running)
        assert both.returncode == 1
        assert "nope: There is no such job" in both.stderr
        assert running in both.stdout
        assert run(slow, "delete").returncode == 2


def test_exit_statuses(server, slow):
    assert run(server, "attribute", "--model", LOOKUP).returncode == 2  # no text
    assert run(server).returncode == 2  # no command
    assert run(server, "jobs", "--limit", "many").returncode == 2
    wrong = run(server, *ATTRIBUTE, "--attribution_kwargs", "[1]")
    assert wrong.returncode == 2
    assert "'[1]' is not a JSON object" in wrong.stderr
    refused = run(server, "attribute", "-m", LOOKUP, "-a", "nonsense", "-i", PROMPT)
    assert refused.returncode == 2
    assert "nonsense" in refused.stderr
    failed = run(slow, "attribute", "-m", "m", "-i", "fail")
    assert failed.returncode == 1
    assert "The text says fail" in failed.stderr
    assert failed.stdout == ""


def test_detaching_prints_the_id(slow):
    done = run(slow, "attribute", "-m", "m", "-i", "hello", "--detach")
    with AttributionClient(slow.url) as client:
        assert client.wait(done.stdout.strip()).status is JobStatus.COMPLETED


def test_an_interrupt_cancels_the_job_and_names_it(slow):
    with AttributionClient(slow.url) as client:
        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # background processes may ignore SIGINT
        process = subprocess.Popen(
            [sys.executable, "-m", "attribution_client", "attribute", "-m", "m", "-i", "forever", "--tag", "who=interrupted"],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(slow),
        )  # fmt: skip
        signal.signal(signal.SIGINT, before)
        jobs = []
        while not jobs or jobs[0].status is not JobStatus.RUNNING:
            jobs = list(client.jobs(tag="who:interrupted"))
            time.sleep(0.1)
        until(lambda: watchers(slow))  # the command watches its job
        process.send_signal(signal.SIGINT)
        printed, told = process.communicate(timeout=120)
        assert process.returncode == 130, told
        assert printed == ""
        assert f"the job {jobs[0].job_id} is" in told
        assert "cancelled" in told
        with pytest.raises(Exception, match="was cancelled"):
            client.wait(jobs[0], timeout=120)


def watchers(server):
    """Number of clients that wait for a job or watch it."""
    return float(re.search(r"^inseq_api_watchers (.+)$", server.client.get("/metrics").text, re.MULTILINE).group(1))


def test_a_progress_bar_where_somebody_looks(slow):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 90, 0, 0))
    command = [sys.executable, "-m", "attribution_client", "attribute", "-m", "m", "-i", "forever", "--hide"]
    shown = ""
    with subprocess.Popen(command, cwd=ROOT, stderr=theirs, env=environment(slow)) as process:
        os.close(theirs)
        while not re.search(r"attributing +25%\|█+", shown):
            shown += os.read(ours, 100_000).decode(errors="replace")
        slow.settle()
        with suppress(OSError):  # reading a closed terminal raises OSError
            while os.read(ours, 100_000):
                pass
        assert process.wait(120) == 1  # status 1, since the job was cancelled
    os.close(ours)


def test_tokens_cannot_command_the_terminal(slow, monkeypatch):
    with AttributionClient(slow.url) as client:
        client.submit(model="m", method="saliency", input_text="\x1b[2Jgone\u202e", tags={"name": "hostile"})
    printed = run(slow, "jobs", "--tag", "name:hostile").stdout
    assert "U+001B[2JgoneU+202E" in printed
    assert "\x1b" not in printed
