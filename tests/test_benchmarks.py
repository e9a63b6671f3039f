"""The GPU benchmark runs as it is on a bare machine; it compares its scores itself and fails where they differ."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.serving import ROOT


def run(*arguments):
    command = [sys.executable, "-m", "benchmarks.gpu", *arguments]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False)


@pytest.mark.slow
def test_with_a_small_model_on_any_device():
    found = run("--tiny", "--methods", "input_x_gradient,occlusion")
    assert found.returncode == 0, found.stderr[-2000:]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in found.stdout.splitlines() if line[:2] == "| "]
    assert [row[:2] for row in rows[1:]] == [
        [method, dtype] for method in ("input_x_gradient", "occlusion") for dtype in ("float32", "bfloat16")
    ]
    assert all(len(row) == len(rows[0]) for row in rows)
    # From Inseq, in float32: rounding of a network of two layers, about a hundred units of the last place (1.2e-7).
    assert float(rows[1][9]) < 1e-5


@pytest.mark.slow
def test_without_a_gpu_it_says_so():
    found = run()
    assert found.returncode == 1
    assert "No GPU is here" in found.stderr
