"""The examples of the README and of docs/ run as written, against a real server, and print what the pages say."""

from __future__ import annotations

import asyncio
import json
import re

import pandas as pd
import pytest

from attribution_client import AsyncAttributionClient
from tests.conftest import BUNDLED, LOOKUP, PHRASEBOOK, PROMPT
from tests.doc_pages import Block, Reader, blocks, same
from tests.pictures import SMOLLM2
from tests.serving import ROOT

HOW_TOS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs" / "how-to").glob("*.md"))
PAGES = ["README.md", "docs/chat-answer.md", "docs/demo-models.md", "docs/methods.md", *HOW_TOS]
ON_SMOLLM2 = [page for page in PAGES if SMOLLM2 in (ROOT / page).read_text() and page.startswith("docs/how-to/")]
STAND_IN = "chat-stand-in"


@pytest.fixture(scope="module")
def stand_in(model_dir):
    """A tiny random chat model with room for long prompts. It runs what a real one runs, and answers nonsense."""
    from tests.chat_models import build

    folder = build("chat-qwen2", model_dir / STAND_IN)
    for file, limit in (("config.json", "max_position_embeddings"), ("tokenizer_config.json", "model_max_length")):
        content = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(content | {limit: 4096}))
    return {SMOLLM2: STAND_IN, "org/chat-model": STAND_IN}


@pytest.fixture
def reader(server, tmp_path, stand_in):
    return Reader(server, tmp_path, stand_in)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_runs_as_written(reader, page):
    """What pages on SmolLM2 print is compared in the slow test, on that model."""
    reader.read(page, compares=page not in ON_SMOLLM2)


@pytest.mark.slow
@pytest.mark.skipif(not (BUNDLED / SMOLLM2).exists(), reason="needs the real model: make smollm2")
@pytest.mark.parametrize("page", ON_SMOLLM2)
def test_a_real_model_answers_as_the_page_says(server, tmp_path, stand_in, page):
    Reader(server, tmp_path, {"org/chat-model": STAND_IN}).read(page)


def test_the_api_page_shows_requests_that_are_accepted(reader):
    """Each request of docs/api.md."""
    requests = [block for block in blocks("docs/api.md") if block.code.startswith('{"model"')]
    assert len(requests) == 3
    for block in requests:
        reader.run(Block("json", block.code, block.line), f"docs/api.md:{block.line}")


def test_the_api_page_changes_a_job_and_reads_a_table(server, tmp_path):
    job_id = server.run(model=PHRASEBOOK, method="saliency", input_text="the cat", tags={"draft": "yes"})
    table = tmp_path / "table.csv"
    table.write_bytes(server.client.get(f"/attribution/jobs/{job_id}/results", params={"format": "csv"}).content)
    patch, read = [each for each in blocks("docs/api.md") if each.code.startswith(("curl", "pandas"))]
    reader = Reader(server, tmp_path, {"/ID ": f"/{job_id} "}, {"pandas": pd, "file": table})
    reader.run(Block("bash", patch.code, patch.line), "docs/api.md")
    job = server.job(job_id)
    assert (job["name"], job["notes"], job["tags"]) == ("baseline, seed 0", None, {"study": "bias"})
    reader.run(Block("python", f"table = {read.code}", read.line), "docs/api.md")
    assert list(reader.names["table"]["attributed_token"].unique()) == ["▁the", "▁cat", "</s>"]


def test_the_client_page_runs_as_written(reader):
    """The fragments of docs/client.md in order; `test_webhooks` runs its receiver, `test_terminal_completion` the completion."""
    server, (made, both, receiver, terminal, completion) = reader.server, blocks("docs/client.md")
    assert "receiver.py" in receiver.code
    assert "completion" in completion.code
    job_id = server.run(model=LOOKUP, method="saliency", input_text=PROMPT)
    for name, text in (("prompt.txt", PROMPT), ("answer.txt", f"{PROMPT} tea.")):
        (reader.folder / name).write_text(text)
    reader.names |= {
        "asyncio": asyncio,
        "AsyncAttributionClient": AsyncAttributionClient,
        "texts": [PROMPT, "Ben likes"],
    }
    reader.changes = {
        "org/model": LOOKUP,
        "show JOB_ID": f"show {job_id}",
        "trace JOB_ID": f"trace {job_id}",
        "delete JOB_ID...": f"delete {job_id}",
    } | dict(reader.changes)
    fragments = [("python", made.code), ("python", both.code), *(("bash", line) for line in terminal.code.splitlines())]
    printed = ""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(reader.folder)
        patch.setenv("INSEQ_API_URL", server.url)
        for language, code in fragments:
            if code.startswith("attribution cancel"):
                long = server.submit(
                    model=LOOKUP, method="sequential_integrated_gradients", input_text=PROMPT, n_steps=1000,
                    generation_args={"max_new_tokens": 60},
                )  # fmt: skip
                reader.changes["JOB_ID..."] = long
            printed += reader.run(Block(language, code, terminal.line), "docs/client.md")
    assert [len(each.sequence_attributions) for each in reader.names["results"]] == [1, 1]
    assert f"saliency of {STAND_IN}" in printed
    assert server.wait(long)["status"] == "cancelled"
    assert server.client.get(f"/attribution/jobs/{job_id}").status_code == 404


def test_the_methods_page_has_each_method_with_what_the_server_says(server):
    text = (ROOT / "docs" / "methods.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([^|]+) \| [^|]+ \| [^|]+ \|$", text, re.MULTILINE)
    served = server.client.get("/attribution/methods").json()["methods"]
    assert sorted(rows) == sorted((each["name"], each["family"] or "none", each["cost"]["words"]) for each in served)
    (first,) = [each["name"] for each in served if each["start_here"]]
    assert rows[0][0] == first


DOCUMENTS = sorted(path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_within_the_documentation_lead_somewhere(document):
    text = re.sub(r"```.*?```", "", (ROOT / document).read_text(), flags=re.DOTALL)
    links = re.findall(r'(?:\]\(|srcset="|src=")([^)\s"]+)', text)
    for link in links:
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / document).parent / path if path else ROOT / document
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text()), link


def anchors(text):
    """The anchors of a page's headings, as GitHub makes them, and those that the page names itself."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    made = {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}
    return made | set(re.findall(r'<a id="([^"]+)">', text))


@pytest.mark.parametrize(
    ("printed", "stated", "is_same"),
    [
        ("tea 0.2893", "tea  0.29", True),
        ("tea 0.27", "tea 0.29", False),
        ("milk 0.29", "tea 0.29", False),
        ("9 rows", "8 rows", False),
        ("-0.29", "0.29", False),
        ("one\ntwo", "one two", False),
    ],
)
def test_what_is_printed_is_told_from_what_is_not(printed, stated, is_same):
    assert same(printed, stated) == is_same
