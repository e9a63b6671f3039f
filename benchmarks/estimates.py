"""Estimates beside running times on a real model: `python -m benchmarks.estimates`.

SmolLM2-135M-Instruct (`make smollm2`) on a real server, one intra-op thread, a prompt of about 20 tokens and 12 forced
ones. One job of `saliency` comes first. Then each method is estimated, run, estimated again with another text of
another length, and run again: the first ratio is that of a method that this model has not run yet.
"""

from __future__ import annotations

import argparse
import os
import tempfile

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "INSEQ_ARTIFACTS_CACHE": tempfile.mkdtemp()}

from datetime import datetime
from pathlib import Path
from typing import Any

from demo_models.smollm2 import FOLDER, NAME
from tests.serving import Server

METHODS: dict[str, dict[str, Any]] = {
    "saliency": {}, "input_x_gradient": {}, "attention": {}, "deeplift": {}, "occlusion": {}, "value_zeroing": {},
    "integrated_gradients": {"n_steps": 10}, "gradient_shap": {"n_samples": 5}, "lime": {"n_samples": 10},
    "layer_gradient_x_activation": {}, "layer_integrated_gradients": {"n_steps": 10}, "layer_deeplift": {},
    "sequential_integrated_gradients": {"n_steps": 4}, "reagent": {"max_probe_steps": 3}, "dummy": {},
    "discretized_integrated_gradients": {"n_steps": 4},
}  # fmt: skip
TEXTS = (
    ("Alice was born in Paris, studied medicine in Berlin, and now she lives and works as",
     " a doctor in the city of London. She likes it"),
    ("The capital of France is the city that people all over the world know for its tower, and the capital of Italy is",
     " Rome, which is known for its old"),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", default=",".join(METHODS))
    arguments = parser.parse_args()
    if not FOLDER.exists():
        raise SystemExit("The real model is not here: `make smollm2` makes it.")
    print("| method | first estimate, s | ran, s | ratio | second estimate, s | ran, s | ratio |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder, Server(Path(folder)) as server:
        run(server, body("saliency", *TEXTS[0]))
        for method in arguments.methods.split(","):
            cells = [method]
            for text in TEXTS:
                asked = body(method, *text)
                answer = server.client.post("/attribution/estimate", json=asked)
                answer.raise_for_status()
                estimated, ran = answer.json()["seconds"]["total"], run(server, asked)
                cells += [f"{estimated:.2f}", f"{ran:.2f}", f"{estimated / ran:.2f}"]
            print(f"| {' | '.join(cells)} |", flush=True)


def body(method: str, prompt: str, rest: str) -> dict[str, Any]:
    return {
        "model": NAME, "method": method, "input_text": prompt, "generated_text": prompt + rest,
        "attribution_args": METHODS[method], "step_scores": [] if method == "attention" else ["probability"],
    }  # fmt: skip


def run(server: Server, asked: dict[str, Any]) -> float:
    """Seconds for which the job ran."""
    job = server.wait(server.submit(**asked))
    assert job["status"] == "completed", job
    began, ended = (datetime.fromisoformat(job[each]) for each in ("started_at", "finished_at"))
    return (ended - began).total_seconds()


if __name__ == "__main__":
    main()
