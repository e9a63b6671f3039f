"""Runs the notebook in a new kernel against a real server. `python -m tests.notebook` stores its outputs."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from tests.conftest import BUNDLED
from tests.pictures import SMOLLM2
from tests.serving import ROOT, Server

NOTEBOOK = ROOT / "inseq_api_visualization.ipynb"


def run(server_url: str, **variables: str) -> nbformat.NotebookNode:
    """Run the notebook and return it with its outputs. Raises `CellExecutionError` if a cell fails.

    variables: more of its environment, such as CHAT_MODEL.
    """
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    environment = os.environ | {
        "INSEQ_API_URL": server_url,
        "TQDM_DISABLE": "1",  # progress bars show durations, which differ in every run
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        **variables,
    }
    runner = NotebookClient(
        notebook, timeout=600, startup_timeout=300, record_timing=False, resources={"metadata": {"path": str(ROOT)}}
    )
    runner.execute(env=environment)
    for cell in notebook.cells:
        if "outputs" in cell:
            cell.outputs = joined(cell.outputs)
    # The rest of the metadata differs between runs and machines.
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


def joined(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """The outputs of a cell, with what it printed as one: a kernel may send it in several parts."""
    shown: list[nbformat.NotebookNode] = []
    for output in outputs:
        if shown and output.output_type == "stream" == shown[-1].output_type and output.name == shown[-1].name:
            shown[-1] = nbformat.from_dict(shown[-1] | {"text": shown[-1].text + output.text})
        else:
            shown.append(output)
    return shown


if __name__ == "__main__":
    if not (BUNDLED / SMOLLM2).exists():
        sys.exit("The last chapter needs the chat model: run make smollm2 first.")
    with tempfile.TemporaryDirectory() as folder, Server(Path(folder) / "data") as server:
        nbformat.write(run(server.url), NOTEBOOK)
