"""Measures the service's overhead: `python -m benchmarks.service`.

Computes the same attribution in three ways, alternating in one run, with one intra-op thread; reports medians over the
rounds. The ways are the service over HTTP (submit, wait, fetch the result), Inseq called directly in this process on a
loaded model, and a new `inseq attribute` command for each job, as a user would run without a service.
"""

from __future__ import annotations

import os
import tempfile

# Before torch is imported, here and in the server.
os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "INSEQ_ARTIFACTS_CACHE": tempfile.mkdtemp()}

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import inseq
import torch
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.utils import logging as transformers_logging

from tests.hub import byte_level_tokenizer
from tests.reference import assert_same
from tests.serving import ROOT, Server


@dataclass(frozen=True)
class Work:
    """One attribution, computed in each way."""

    name: str
    model: str
    path: Path
    text: str
    method: str
    arguments: dict[str, Any] = field(default_factory=dict)
    step_scores: tuple[str, ...] = ()
    new_tokens: int = 8

    @property
    def body(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "method": self.method,
            "input_text": self.text,
            "attribution_args": self.arguments,
            "step_scores": list(self.step_scores),
            "generation_args": {"max_new_tokens": self.new_tokens},
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40, help="rounds of small jobs (default 40)")
    parser.add_argument("--long-rounds", type=int, default=7, help="rounds of the long job (default 7)")
    parser.add_argument("--command-rounds", type=int, default=3, help="rounds of the command line (default 3)")
    arguments = parser.parse_args()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        medium = build_medium(folder / "models" / "medium-gpt2")
        demo = ROOT / "demo_models"
        prompt = "Anna likes tea. Ben likes milk. Anna likes"
        works = [
            Work("small, decoder-only", "lookup-gpt2", demo / "lookup-gpt2", prompt, "saliency", {}, ("probability",)),
            Work(
                "small, encoder-decoder", "phrasebook-t5", demo / "phrasebook-t5", "the red cat sees a dog",
                "input_x_gradient", new_tokens=16,
            ),
            Work(
                "long", "medium-gpt2", medium, "The quick brown fox jumps over the lazy dog.", "integrated_gradients",
                {"n_steps": 40},
            ),
        ]  # fmt: skip
        figures: dict[str, Any] = {}
        with Server(folder / "data", INSEQ_API_MODEL_DIRS=str(folder / "models")) as server:
            for work in works:
                rounds = arguments.long_rounds if work.name == "long" else arguments.rounds
                figures[work.name] = compare(server, work, rounds, folder)
            small = works[0]
            figures["command"] = command_line(small, arguments.command_rounds)
            figures["command_ratio"] = figures["command"] / figures[small.name]["service"]
    report(figures)


def compare(server: Server, work: Work, rounds: int, folder: Path) -> dict[str, float]:
    """Median seconds of the service and of Inseq, and the parts of the overhead, if their results are equal."""
    model = inseq.load_model(str(work.path), work.method, device="cpu")

    def directly() -> inseq.FeatureAttributionOutput:
        return model.attribute(
            work.text,
            show_progress=False,
            step_scores=list(work.step_scores),
            generation_args={"max_new_tokens": work.new_tokens},
            attribution_args=dict(work.arguments),
        )

    def served() -> dict[str, Any]:
        job_id = server.submit(**work.body)
        job: dict[str, Any] = server.client.get(f"/attribution/jobs/{job_id}", params={"wait": 60}).json()
        server.result(job_id)
        return job

    job = served()
    file = folder / "result.json"
    file.write_bytes(server.client.get(job["links"]["results"], params={"format": "inseq"}).content)
    theirs = directly()
    theirs.info["attribution_args"] = work.arguments
    assert_same(inseq.FeatureAttributionOutput.load(file), theirs)
    for _ in range(3):
        served(), directly()
    ours, direct, waited, ran = [], [], [], []
    for _ in range(rounds):
        seconds, job = timed(served)
        ours.append(seconds)
        direct.append(timed(directly)[0])
        waited.append(between(job["created_at"], job["started_at"]))
        ran.append(between(job["started_at"], job["finished_at"]))
    return {
        "service": statistics.median(ours),
        "inseq": statistics.median(direct),
        "overhead": statistics.median(a - b for a, b in zip(ours, direct, strict=True)),
        "waited": statistics.median(waited),
        "ran": statistics.median(ran),
    }


def command_line(work: Work, rounds: int) -> float:
    """Median seconds of a new `inseq attribute` process."""
    command = [
        str(Path(sys.executable).with_name("inseq")), "attribute", "--model_name_or_path", str(work.path),
        "--attribution_method", work.method, "--input_texts", work.text, "--step_scores", *work.step_scores,
        "--device", "cpu", "--hide_attributions",
        "--generation_kwargs", json.dumps({"max_new_tokens": work.new_tokens}),
    ]  # fmt: skip
    return statistics.median(
        timed(lambda: subprocess.run(command, check=True, capture_output=True))[0] for _ in range(rounds)
    )


def build_medium(folder: Path) -> Path:
    """A random GPT-2 of 6 layers and width 384: a job on it takes a second or more."""
    eos = "<|endoftext|>"
    tokenizer = byte_level_tokenizer(bos_token=eos, eos_token=eos, unk_token=eos)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=128, n_embd=384, n_layer=6, n_head=6, initializer_range=0.1,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    GPT2LMHeadModel(config).eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = call()
    return time.perf_counter() - began, result


def between(earlier: str, later: str) -> float:
    return (datetime.fromisoformat(later) - datetime.fromisoformat(earlier)).total_seconds()


def report(figures: dict[str, Any]) -> None:
    print("\n| job | Inseq, ms | service, ms | overhead, ms | overhead, % | goal | queued, ms | ran, ms |")
    print("|---|---|---|---|---|---|---|---|")
    for name, each in figures.items():
        if isinstance(each, dict):
            goal = "at most 2 %" if name == "long" else "at most 10 ms"
            milliseconds = {key: f"{1000 * value:.1f}" for key, value in each.items()}
            share = f"{100 * each['overhead'] / each['inseq']:.1f}"
            columns = [name, *(milliseconds[key] for key in ("inseq", "service", "overhead")), share, goal]
            print(f"| {' | '.join([*columns, milliseconds['waited'], milliseconds['ran']])} |")
    print(
        f"\nA new `inseq attribute` process for the first job: {figures['command']:.2f} s, "
        f"{figures['command_ratio']:.0f} times the service (goal: at least 20 times).\n"
    )
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
