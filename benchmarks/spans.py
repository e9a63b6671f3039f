"""A span attributed as a whole, beside its tokens one by one: `python -m benchmarks.spans`.

A random GPT-2 (6 layers of width 256) on 640 tokens, with spans of 1, 8, 128 and 512 tokens; and SmolLM2 where it is
there (`make smollm2`), with an answer of 30 tokens behind a prompt of 180. Least processor time of several rounds of
input x gradient, one thread, all ways in turns. Equality comes first: a span's scores are the sum of its tokens'.
"""

from __future__ import annotations

import os
import tempfile

# Before torch is imported.
os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
os.environ.setdefault("INSEQ_ARTIFACTS_CACHE", tempfile.mkdtemp())

import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from attribution.engine import AttributionEngine
from attribution.results import stored_form
from demo_models import smollm2
from demo_models.smollm2 import FOLDER
from models import AttributionRequest
from settings import Settings

LOOKUP = Path(__file__).parent.parent / "demo_models" / "lookup-gpt2"
LENGTH, ROUNDS = 640, 3
TOLERANCE = 1e-5  # of the largest score: float32


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        engine = AttributionEngine(Settings(data_dir=root / "data", model_dirs=(folder,), max_input_tokens=LENGTH))
        columns = "model", "text", "span", "one by one, s", "whole, s", "one by one / whole", "difference"
        print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
        model, ids = _random_model(root / "random-gpt2")
        first = LENGTH - 512
        for length in (1, 8, 128, 512):
            print(_row(engine, model, ids, first, LENGTH - length), flush=True)
        if FOLDER.exists():
            tokenizer = AutoTokenizer.from_pretrained(FOLDER)
            text = (Path(__file__).parent.parent / "docs" / "performance.md").read_text()
            print(_row(engine, smollm2.NAME, tokenizer(text).input_ids[:210], 180, 180), flush=True)


def _random_model(folder: Path) -> tuple[str, list[int]]:
    shutil.copytree(LOOKUP, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, model_max_length=LENGTH)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    GPT2LMHeadModel(
        GPT2Config.from_pretrained(folder, n_positions=LENGTH, n_embd=256, n_layer=6, n_head=8)
    ).save_pretrained(folder)
    return folder.name, tokenizer("Anna likes tea. Ben likes milk. " * LENGTH, verbose=False).input_ids[:LENGTH]


def _row(engine: AttributionEngine, model: str, ids: list[int], prompt: int, start: int) -> str:
    """A line of the table, for a span from `start` to the end of the text."""
    tokenizer = AutoTokenizer.from_pretrained(FOLDER if model == smollm2.NAME else LOOKUP)
    body = {
        "model": model, "method": "input_x_gradient", "input_text": tokenizer.decode(ids[:prompt]),
        "generated_ids": [ids], "candidates": 0, "engine": "single_pass",
    }  # fmt: skip
    ways = {
        "whole": body | {"spans": [{"start": start, "end": len(ids)}]},
        "one by one": body
        | {"attr_pos_start": start, "attributed_fn": "probability", "attributed_fn_args": {"logprob": True}},
    }
    scores = {name: _scores(engine, one) for name, one in ways.items()}  # with the probes of the model
    summed = scores["one by one"].nan_to_num().double().sum(1)
    difference = (scores["whole"][: len(summed), 0].nan_to_num().double() - summed).abs().max() / summed.abs().max()
    assert difference <= TOLERANCE, difference
    seconds = dict.fromkeys(ways, float("inf"))
    for _ in range(ROUNDS):
        for name, one in ways.items():
            seconds[name] = min(seconds[name], _spent(partial(_scores, engine, one)))
    cells = (
        model, f"{prompt} + {len(ids) - prompt}", f"{len(ids) - start}",
        f"{seconds['one by one']:.2f}", f"{seconds['whole']:.2f}",
        f"**{seconds['one by one'] / seconds['whole']:.1f}**", f"{float(difference):.0e}",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _scores(engine: AttributionEngine, body: dict[str, object]) -> torch.Tensor:
    request = engine.check(AttributionRequest.model_validate(body))
    parts = engine.run(request, device="cpu", report=lambda _: None, should_cancel=lambda: False)
    (sequence,) = stored_form.decode(parts[0].content).sequence_attributions
    assert isinstance(sequence.target_attributions, torch.Tensor)
    return sequence.target_attributions


def _spent(run: Callable[[], object]) -> float:
    began = time.thread_time()
    run()
    return time.thread_time() - began


if __name__ == "__main__":
    main()
