"""Runs the notebook in a new kernel against a real server. `python -m tests.notebook` stores its outputs."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from tests.serving import ROOT, Server

NOTEBOOK = ROOT / "inseq_api_visualization.ipynb"


def run(server_url: str) -> nbformat.NotebookNode:
    """Run the notebook and return it with its outputs. Raises `CellExecutionError` if a cell fails."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    environment = os.environ | {
        "INSEQ_API_URL": server_url,
        "TQDM_DISABLE": "1",  # progress bars show durations, which differ in every run
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }
    runner = NotebookClient(
        notebook, timeout=600, startup_timeout=300, record_timing=False, resources={"metadata": {"path": str(ROOT)}}
    )
    runner.execute(env=environment)
    # The rest of the metadata differs between runs and machines.
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, Server(Path(folder) / "data") as server:
        nbformat.write(run(server.url), NOTEBOOK)
