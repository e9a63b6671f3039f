"""What the command `attribution` prints fits the terminal, and says what the server says."""

from __future__ import annotations

import json
import re
from itertools import pairwise

import numpy as np
import pytest
from rich.cells import cell_len

from attribution_client import AttributionClient
from attribution_client.strongest_text import two_digits
from attribution_client.terminal import tables
from demo_models import smollm2
from tests.command_line import run
from tests.conftest import LOOKUP, PHRASEBOOK, SENTENCE

FACTS = "Anna likes tea. Ben likes milk. Clara likes juice. David likes water. " * 6
ANSWER = " ".join(["Anna likes tea. Ben likes milk."] * 4)


@pytest.fixture(scope="module")
def long_job(server):
    """A job of 96 + 32 tokens, whose table is over 250 columns wide."""
    return server.run(
        model=LOOKUP, method="input_x_gradient", input_text=FACTS.strip(), generated_text=f"{FACTS}{ANSWER}",
        step_scores=["probability"],
    )  # fmt: skip


def rows_of(printed):
    """The rows of the strongest tokens below their heading: the token, the step score, and names and scores."""
    lines = printed.splitlines()
    at = next(index for index, line in enumerate(lines) if "depended most on" in line)
    return [line.split() for line in lines[at + 1 :] if line.strip()]


TERMINAL = {"FORCE_COLOR": "1"}


def plain(printed):
    """What is printed, without colours."""
    return re.sub(r"\x1b\[[\d;]*m", "", printed)


@pytest.mark.parametrize(
    ("columns", "options", "more"),
    [
        ("80", [], {}), ("200", [], {}), ("80", [], TERMINAL), ("200", [], TERMINAL),
        ("80", ["--top", "3"], {}), ("", ["--top", "3"], {}),
    ],
)  # fmt: skip
def test_a_wide_result_has_the_three_strongest_tokens_of_each(server, long_job, columns, options, more):
    done = run(server, "show", long_job, *options, COLUMNS=columns, **more)
    assert done.returncode == 0, done.stderr
    assert ("\x1b" in done.stdout) == bool(more)
    printed = plain(done.stdout)
    assert all(cell_len(line) <= int(columns or 100) for line in printed.splitlines())
    assert ("--top 0 prints it" in printed) == (not options)
    (sequence,) = server.result(long_job, decode_tokens=True)["sequence_attributions"]
    scores = np.array(sequence["target_attributions"], float)
    texts = [token["text"].strip() for token in sequence["target"]]
    attributed = texts[: len(scores)]
    rows = rows_of(printed)
    assert len(rows) == scores.shape[1] == 32
    for step, row in enumerate(rows):
        strongest = np.argsort(-np.abs(np.nan_to_num(scores[:, step])), kind="stable")[:3]
        expected = [texts[sequence["attr_pos_start"] + step], f"{sequence['step_scores']['probability'][step]:.3g}"]
        for position in strongest:
            token = attributed[position]
            place = f"@{position}" if attributed.count(token) > 1 else ""
            expected += [two_digits(scores[position, step]), f"{token}{place}"]
        assert row == expected


def test_the_whole_table_is_printed_on_demand_and_where_it_fits(server, long_job):
    (sequence,) = server.result(long_job)["sequence_attributions"]
    first = [f"{each:.2f}" for each in sequence["target_attributions"][0]]
    for more in ({}, TERMINAL):
        whole = plain(run(server, "show", long_job, "--top", "0", COLUMNS="80", **more).stdout)
        assert all(cell_len(line) <= 80 for line in whole.splitlines())
        assert "depended most on" not in whole
        lines = whole.splitlines()
        # The first row of each block of columns is the one below its labels, which have no digits.
        below = [row for above, row in pairwise(lines) if len(above.split()) > 1 and not re.search(r"\d", above)]
        assert [number for row in below for number in row.split()[1:]] == first
    pipe = run(server, "show", long_job).stdout  # which has no width
    assert "depended most on" not in pipe
    probabilities = next(line.split() for line in pipe.splitlines() if line.split()[:1] == ["probability"])
    assert probabilities[1:] == [f"{each:.3g}" for each in sequence["step_scores"]["probability"]]  # no two in one word


def test_more_tokens_than_fit_beside_each_other_continue_below(server, long_job):
    lines = run(server, "show", long_job, "--top", "7", COLUMNS="80").stdout.splitlines()
    assert all(cell_len(line) <= 80 for line in lines)
    rows = lines[next(i for i, line in enumerate(lines) if "depended most on" in line) + 1 :]
    per_row = [len(re.findall(r"@\d+", row)) for row in rows]
    assert sum(per_row) == 7 * 32
    assert per_row[:3] == [3, 3, 1]
    assert rows[1].startswith("  ")


def test_signs_sides_and_scales(server):
    job = server.run(
        model=PHRASEBOOK, method="input_x_gradient", input_text=SENTENCE, attribute_target=True, attributed_fn="logit"
    )
    done = run(
        server, "show", job, "--top", "4", "--normalize_attributions", "false", "--attribution_aggregators", "sum"
    )
    (sequence,) = server.result(job, aggregator="sum", normalize=False, decode_tokens=True)["sequence_attributions"]
    both = np.array(sequence["source_attributions"] + sequence["target_attributions"], float)
    order = np.argsort(-np.abs(np.nan_to_num(both)), axis=0, kind="stable")[:4]
    tokens = sequence["source"] + sequence["target"]
    strongest = np.take_along_axis(both, order, axis=0)
    assert (strongest < 0).any()
    rows = rows_of(done.stdout)
    assert len(rows) == both.shape[1]
    for step, row in enumerate(rows):
        # A token that occurs on both sides has its place: @6 in the source, @prefix 3 in the target.
        found = re.findall(r"(-?\d+\.?\d*) ([^\s@]+)(@(?:prefix )?\d+)?", " ".join(row[1:]))
        assert [(score, name) for score, name, _ in found] == [
            (two_digits(score), tokens[at]["text"].strip())
            for at, score in zip(order[:, step], strongest[:, step], strict=True)
            if np.isfinite(score)
        ]
    assert "</s>@6" in done.stdout


@pytest.mark.parametrize(
    ("number", "written"),
    [
        (0.0531, "0.053"),
        (-0.05, "-0.050"),
        (1.0, "1.0"),
        (12.3, "12"),
        (0.99999, "1.0"),
        (0.00012, "0.00012"),
        (0, "0.0"),
    ],
)
def test_two_significant_digits(number, written):
    assert two_digits(number) == written


def test_models(server):
    told = server.client.get("/attribution/models").json()
    listed = told["available"]
    for columns in ("80", "250"):
        printed = run(server, "models", COLUMNS=columns).stdout
        # Names are not cut, and other tests have long ones.
        names = tuple(each["name"] for each in [*listed, *told["loaded"]])
        assert all(cell_len(line) <= int(columns) or line.startswith(names) for line in printed.splitlines())
        for each in listed:
            assert each["name"] in printed
            kind = each.get("class") or each["problem"]  # other tests have folders that are no model
            assert "".join(kind.split()) in "".join(printed.split())
    rows = {line.split()[0]: line for line in run(server, "models").stdout.splitlines()}
    assert rows[LOOKUP].split()[1:6] == ["GPT2LMHeadModel", "282K", "256", "1.13", "MB"]
    chat = {each["name"] for each in listed if each.get("chat_template")}
    assert (
        {name for name, row in rows.items() if " yes " in row}
        == chat
        >= {smollm2.NAME} & {each["name"] for each in listed}
    )
    server.run(model=LOOKUP, method="dummy", input_text="Anna likes")
    assert "cpu float32" in next(line for line in run(server, "models").stdout.splitlines() if line.startswith(LOOKUP))
    assert json.loads(run(server, "models", "--json").stdout)["available"] == server.client.get("/attribution/models").json()["available"]  # fmt: skip


def test_models_that_cannot_be_loaded_and_that_are_not_allowed(capsys):
    broken = {"name": "a/b", "class": None, "bytes": {}, "problem": "Its weights are missing."}
    tables.print_models({"available": [broken], "loaded": [], "allowed": ["a/*", "c"]})
    printed = capsys.readouterr().out
    assert "! a/b: Its weights are missing." in printed
    assert "This server accepts a/*, c." in printed


def test_methods_fit_and_the_cheapest_come_first(server, capsys):
    told = server.client.get("/attribution/methods").json()["methods"]
    lines = run(server, "methods", COLUMNS="80").stdout.splitlines()
    assert all(cell_len(line.rstrip()) <= 80 for line in lines)
    names = [line for line in lines if line and line[0] != " "]
    cheapest = sorted(told, key=lambda each: each["cost"]["relative"])
    assert [line.split("  ")[:2] for line in names] == [[each["name"], each["cost"]["words"]] for each in cheapest]
    assert [line.split()[0] for line in names if line.endswith("  start here")] == ["input_x_gradient"]
    assert "mask_prob=0.3" in " ".join(" ".join(lines).split())
    tables.print_methods([{"name": "x", "description": "Does it.", "parameters": []}])  # an older server's
    assert capsys.readouterr().out.split() == ["x", "Does", "it."]
    assert json.loads(run(server, "methods", "--json").stdout) == told


def test_an_estimate_takes_the_options_of_attribute(server):
    options = ["-m", LOOKUP, "-i", "Anna likes tea. Anna likes", "Ben likes", "--methods", "saliency", "occlusion"]
    done = run(server, "estimate", *options, "--generation_kwargs", '{"max_new_tokens": 4}', COLUMNS="80")
    assert done.returncode == 0, done.stderr
    told = json.loads(
        run(server, "estimate", *options, "--generation_kwargs", '{"max_new_tokens": 4}', "--json").stdout
    )
    rows = dict(re.findall(r"^(\w+) {2,}(.+?) *$", done.stdout, re.MULTILINE))
    assert rows["job"].startswith(f"saliency, occlusion of {LOOKUP}: single_pass, float32 on cpu")
    assert rows["tokens"] == "text 1: 6 of the input, 4 to attribute"
    assert "text 2: 2 of the input, 4 to attribute" in done.stdout
    passes = (
        f"{told['generation_passes']} generation, {told['forward_passes']} forward, {told['backward_passes']} backward"
    )
    assert rows["passes"] == f"at most {passes}"
    assert rows["time"].startswith(f"at most {tables.in_time(told['seconds']['total'])}: ")
    assert rows["memory"].startswith(f"{tables.in_bytes(told['peak_memory_bytes'])} of ")
    assert rows["memory"].endswith(": fits")
    refused = run(server, "estimate", "-m", LOOKUP, "-i", "x", "--method", "salency")
    assert refused.returncode == 2
    assert "did you mean 'saliency'" in refused.stderr


@pytest.mark.parametrize(
    ("seconds", "written"), [(0.0312, "0.031 s"), (9.96, "10 s"), (48.6, "49 s"), (119, "2 min"), (5400, "1.5 h")]
)
def test_times(seconds, written):
    assert tables.in_time(seconds) == written


@pytest.mark.parametrize(
    ("size", "written"),
    [(12, "12 B"), (1129728, "1.13 MB"), (538060032, "538 MB"), (999_999, "1 MB"), (17.6e9, "17.6 GB")],
)
def test_sizes(size, written):
    assert tables.in_bytes(size) == written


def test_jobs_fit_a_narrow_terminal(slow):
    text = "hello " * 40
    with AttributionClient(slow.url) as client:
        job = client.submit(model="m", method="saliency", input_text=text, tags={"width": "narrow"})
        chat = client.submit(
            model="m", method="saliency", messages=[{"role": "user", "content": "Why?\nSay."}], tags={"width": "narrow"}
        )
    lines = run(slow, "jobs", "--tag", "width:narrow", COLUMNS="80").stdout.splitlines()
    assert all(cell_len(line) <= 80 for line in lines)
    assert [line.split()[0] for line in lines[::2]] == [chat.job_id, job.job_id]
    assert lines[1] == "    saliency of m: Why? Say."
    assert lines[3].startswith("    saliency of m: hello hello")
    assert lines[3].endswith("…")


def test_jobs_are_found_by_words_and_shown_with_their_names(slow):
    with AttributionClient(slow.url) as client:
        named = client.submit(model="m", method="saliency", input_text="hello", name="zebra first", tags={"zoo": "1"})
        other = client.submit(model="m", method="saliency", input_text="hello zebra", tags={"zoo": "1"})
        client.submit(model="m", method="saliency", input_text="hello", tags={"zoo": "1"})
    head, *lines = run(slow, "jobs", "--search", "zeb", COLUMNS="200").stdout.splitlines()
    assert head.split()[:3] == ["job", "name", "status"]
    assert [line.split()[0] for line in lines] == [other.job_id, named.job_id]
    assert lines[1].split()[1:3] == ["zebra", "first"]
    narrow = run(slow, "jobs", "--search", "zebra first", COLUMNS="80").stdout.splitlines()
    assert narrow[1] == "    zebra first: saliency of m: hello"
    unnamed = run(slow, "jobs", "--search", "hello zebra", "--limit", "1", COLUMNS="200").stdout.splitlines()
    assert unnamed[0].split()[:2] == ["job", "status"]


def test_help_has_sections_and_examples_that_run(server):
    printed = run(server, "attribute", "--help", COLUMNS="80").stdout
    assert all(cell_len(line) <= 80 for line in printed.splitlines())
    titles = re.findall(r"^(\w+):$", printed, re.MULTILINE)
    assert titles == ["Input", "Generation", "Method", "Scores", "Computation", "Job", "View", "Options", "Examples"]
    assert " ".join(printed.split()).count("with several methods, one file each: NAME.METHOD.SUFFIX") == 2
    example = printed[printed.index("Examples:") :].splitlines()[1:3]
    assert example == [
        '  attribution attribute -m lookup-gpt2 -i "Anna likes tea. Anna likes" \\',
        "      --step_scores probability",
    ]
    done = run(server, "attribute", "-m", LOOKUP, "-i", "Anna likes tea. Anna likes", "--step_scores", "probability")
    assert done.returncode == 0, done.stderr


def test_no_mark_of_a_tokenizer_is_printed(server, long_job):
    contrast = server.run(
        model=LOOKUP, method="saliency", input_text="Anna likes tea. Anna likes",
        generated_text="Anna likes tea. Anna likes tea.", attributed_fn="contrast_prob_diff",
        attributed_fn_args={"contrast_targets": "Anna likes tea. Anna likes milk."},
    )  # fmt: skip
    for job in (long_job, contrast):
        for options in (["--top", "0"], ["--top", "3"]):
            assert not re.search("[Ġ▁Ċ]", run(server, "show", job, *options).stdout)
    title, question = run(server, "show", contrast).stdout.splitlines()[:2]
    assert title == f"saliency of {LOOKUP}, of contrast_prob_diff"
    assert question == "contrast: tea rather than milk"


def test_a_sentence_has_the_room_that_few_columns_leave(server):
    sentence = "Anna likes tea and Ben likes milk."
    job = server.run(model=LOOKUP, method="saliency", input_text=f"{sentence} {sentence} Ben likes")
    for columns, shown in ((90, [sentence, sentence]), (30, ["Anna likes tea and …"] * 2)):
        done = run(server, "show", job, "--top", "0", "--attribution_aggregators", "sentences", COLUMNS=str(columns))
        lines = done.stdout.splitlines()
        assert [line.split("  ")[0].strip() for line in lines if "Anna" in line][:2] == shown
        assert all(cell_len(line) <= columns for line in lines[1:])
