"""The notebook runs in a new kernel, and its stored outputs equal those of the run."""

from __future__ import annotations

import re

import nbformat
import pytest

from tests import notebook
from tests.conftest import BUNDLED
from tests.pictures import SMOLLM2

NUMBER = re.compile(r"-?\d+\.\d+")


@pytest.fixture(scope="module")
def stored():
    return nbformat.read(notebook.NOTEBOOK, as_version=4)


@pytest.fixture(scope="module")
def fresh(server):
    """A run without the chat model, as on a machine that does not have it."""
    return notebook.run(server.url, CHAT_MODEL="not-here")


def with_chat(cells):
    """The indexes of the cells that need the chat model."""
    return {index for index, cell in enumerate(cells) if cell.cell_type == "code" and "if is_there:" in cell.source}


def outputs(cell):
    """The kinds, the words and the numbers of a cell's outputs."""
    kinds, words, numbers = [], [], []
    for output in cell.get("outputs", []):
        text = output.get("text") or output.get("data", {}).get("text/plain", "")
        kinds.append((output.output_type, sorted(output.get("data", {}))))
        if "image/png" not in output.get("data", {}):
            words.append(NUMBER.sub("#", text).split())
            numbers += [float(each) for each in NUMBER.findall(text)]
    return kinds, words, numbers


def test_a_fresh_run_shows_what_is_stored(fresh, stored):
    assert [cell.source for cell in fresh.cells] == [cell.source for cell in stored.cells]
    for index in set(range(len(stored.cells))) - with_chat(stored.cells):
        compare(fresh.cells[index], stored.cells[index])


def compare(ours, theirs):
    kinds, words, numbers = outputs(ours)
    assert (kinds, words) == outputs(theirs)[:2], ours.source
    assert numbers == pytest.approx(outputs(theirs)[2], abs=0.011)  # rounded to two decimals


def test_the_chapter_on_a_chat_model_says_where_there_is_none(fresh, stored):
    first, *others = sorted(with_chat(stored.cells))
    (said,) = fresh.cells[first].outputs
    assert said.text.startswith("not-here is not on this server. `make smollm2`")
    assert [fresh.cells[index].outputs for index in others] == [[]] * len(others)
    assert all(stored.cells[index].outputs for index in [first, *others])


@pytest.mark.slow
@pytest.mark.skipif(not (BUNDLED / SMOLLM2).exists(), reason="needs the real model: make smollm2")
def test_the_chapter_on_a_chat_model_shows_what_is_stored(server, stored):
    ours = notebook.run(server.url)
    for index in with_chat(stored.cells):
        compare(ours.cells[index], stored.cells[index])


def test_it_reads_well_without_being_run(stored):
    cells = [cell for cell in stored.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    shown = [output for cell in cells for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in shown) == 8
    assert not [output for output in shown if output.output_type == "error" or output.get("name") == "stderr"]
    text = notebook.NOTEBOOK.read_text()
    for trace in (str(notebook.ROOT), "127.0.0.1", "Warning"):
        assert trace not in text, trace
    assert [path for cell in cells for path in paths_shown(cell)] == []


# Names between slashes, unless a word or a colon precedes (`and/or`, URLs); or a Windows drive.
PATH = re.compile(r"(?<![\w:/.<>])/(?:[\w.@+-]+/)+[\w.@+-]*|\b[A-Za-z]:\\\w+")


def paths_shown(cell):
    """The absolute file paths in a cell's outputs."""
    texts = []
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        texts += [output.get("text", ""), data.get("text/plain", ""), data.get("text/html", "")]
        texts += output.get("traceback", [])
    return PATH.findall("\n".join(texts))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("saved to /tmp/result.json", ["/tmp/result.json"]),
        ("File '/srv/user name/x.py'", ["/srv/user"]),
        ('"/home/ann/.cache/hf/"', ["/home/ann/.cache/hf/"]),
        ("path=/opt/models", ["/opt/models"]),
        ("C:\\Users\\ann", ["C:\\Users"]),
        ("http://127.0.0.1:8000/attribution/jobs and https://example.org/a/b", []),
        ("and/or, 3 / 4, 1/2/3, ./here/x, </td></tr>", []),
    ],
)
def test_a_path_is_told_from_what_looks_like_one(text, found):
    outputs = [
        nbformat.v4.new_output("stream", text=text),
        nbformat.v4.new_output("execute_result", data={"text/plain": text}),
    ]
    assert paths_shown({"outputs": outputs}) == found * 2


def test_its_attributions_are_the_true_ones(fresh):
    """The numbers that the text of the notebook describes are in its outputs."""
    said = "\n".join(output.get("text", "") for cell in fresh.cells for output in cell.get("outputs", []))
    assert re.search(r"value_zeroing +6 of 6", said)
    assert re.search(r"integrated_gradients +6 of 6", said)
    tables = [
        output.data["text/plain"] for cell in fresh.cells for output in cell.get("outputs", []) if "data" in output
    ]
    dictionary = next(each for each in tables if "gatto" in each)
    for pair in (
        "il +the",
        "gatto +cat",
        "rosso +red",
        "vede +sees",
        "un +a",
        "cane +dog",
        "oggi +today",
    ):
        assert re.search(pair, dictionary), pair
    assert re.search(r"0 +milk +6 +\d", tables[-1])
