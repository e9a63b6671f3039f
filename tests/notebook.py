"""Run the notebook from a clean kernel against a real server. `python -m tests.notebook` keeps its outputs (`make notebook`)."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from tests.serving import ROOT, Server

NOTEBOOK = ROOT / "inseq_api_visualization.ipynb"


def run(server_url: str) -> nbformat.NotebookNode:
    """The notebook with the outputs of a fresh run. Raises `CellExecutionError` where a cell fails."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    environment = os.environ | {
        "INSEQ_API_URL": server_url,
        "TQDM_DISABLE": "1",  # a bar says how long it took, which is never the same
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }
    runner = NotebookClient(
        notebook, timeout=600, startup_timeout=300, record_timing=False, resources={"metadata": {"path": str(ROOT)}}
    )
    runner.execute(env=environment)
    # What differs from run to run or from machine to machine, and says nothing.
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, Server(Path(folder) / "data") as server:
        nbformat.write(run(server.url), NOTEBOOK)
