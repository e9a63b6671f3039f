"""The notebook runs from a clean kernel, and its stored outputs are what a fresh run gives."""

from __future__ import annotations

import re

import nbformat
import pytest

from tests import notebook

NUMBER = re.compile(r"-?\d+\.\d+")


@pytest.fixture(scope="module")
def stored():
    return nbformat.read(notebook.NOTEBOOK, as_version=4)


@pytest.fixture(scope="module")
def fresh(server):
    return notebook.run(server.url)


def outputs(cell):
    """What a cell shows: its kinds, and its text with the numbers apart."""
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
    for ours, theirs in zip(fresh.cells, stored.cells, strict=True):
        kinds, words, numbers = outputs(ours)
        assert (kinds, words) == outputs(theirs)[:2], ours.source
        assert numbers == pytest.approx(outputs(theirs)[2], abs=0.011)  # rounded to two decimals


def test_it_reads_well_without_being_run(stored):
    cells = [cell for cell in stored.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    shown = [output for cell in cells for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in shown) == 7
    assert not [output for output in shown if output.output_type == "error" or output.get("name") == "stderr"]
    text = notebook.NOTEBOOK.read_text()
    for trace in ("/tmp/", "/home/", "/root/", str(notebook.ROOT), "127.0.0.1", "Warning"):
        assert trace not in text, trace


def test_its_attributions_are_the_true_ones(fresh):
    """What the story says of the pictures is so."""
    said = "\n".join(output.get("text", "") for cell in fresh.cells for output in cell.get("outputs", []))
    assert re.search(r"value_zeroing +6 of 6", said)
    assert re.search(r"integrated_gradients +6 of 6", said)
    tables = [
        output.data["text/plain"] for cell in fresh.cells for output in cell.get("outputs", []) if "data" in output
    ]
    dictionary = next(each for each in tables if "▁gatto" in each)
    for pair in (
        "▁il +▁the",
        "▁gatto +▁cat",
        "▁rosso +▁red",
        "▁vede +▁sees",
        "▁un +▁a",
        "▁cane +▁dog",
        "▁oggi +▁today",
    ):
        assert re.search(pair, dictionary), pair
    assert re.search(r"0 +Ġmilk +6 +\d", tables[-1])
