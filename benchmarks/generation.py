"""What the service adds to generation on a real model: `python -m benchmarks.generation`.

SmolLM2-135M-Instruct (`make smollm2`), a chat prompt, 8 and 32 generated tokens, one intra-op thread. In turns: plain
`generate`, a job of `dummy` (which only generates) by the engine, and the same job over HTTP, from the submission to
the result in the client's hands. Reports medians of wall time, and what each adds to plain `generate`.
"""

from __future__ import annotations

import argparse
import os
import tempfile

# Before torch is imported, here and in the server.
os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "INSEQ_ARTIFACTS_CACHE": tempfile.mkdtemp()}

import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from attribution.engine import AttributionEngine
from attribution.results import stored_form
from benchmarks.random_models import quiet
from benchmarks.service import timed
from demo_models.smollm2 import FOLDER, NAME
from models import AttributionRequest
from settings import Settings
from tests.serving import Server

MESSAGES = [{"role": "user", "content": "Where is the Eiffel Tower, and since when?"}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", default="8,32")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    if not FOLDER.exists():
        raise SystemExit("The real model is not here: `make smollm2` makes it.")
    quiet()
    network = AutoModelForCausalLM.from_pretrained(FOLDER, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    print("| tokens | generate, ms | engine, ms | ratio | HTTP, ms | added, ms |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder, Server(Path(folder) / "server") as server:
        engine = AttributionEngine(Settings(data_dir=Path(folder) / "engine"))
        for tokens in map(int, arguments.tokens.split(",")):
            lengths = {"max_new_tokens": tokens, "min_new_tokens": tokens}
            body = {"model": NAME, "method": "dummy", "messages": MESSAGES, "generation_args": lengths}
            ways: dict[str, Callable[[], list[str]]] = {
                "generate": partial(plain, network, tokenizer, lengths),
                "engine": partial(by_engine, engine, body),
                "http": partial(by_server, server, body),
            }
            generated, ours, theirs = (run() for run in ways.values())
            assert generated == ours == theirs, (generated, ours, theirs)
            seconds: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(arguments.rounds):
                for name, run in ways.items():
                    seconds[name].append(timed(run)[0])
            middle = {name: 1000 * statistics.median(each) for name, each in seconds.items()}
            print(
                f"| {tokens} | {middle['generate']:.0f} | {middle['engine']:.0f} "
                f"| {middle['engine'] / middle['generate']:.3f} | {middle['http']:.0f} "
                f"| {middle['http'] - middle['generate']:.0f} |",
                flush=True,
            )


def plain(network: Any, tokenizer: Any, lengths: dict[str, int]) -> list[str]:
    """The tokens that Transformers' own `generate` gives."""
    given = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        ids = network.generate(**given, **lengths, do_sample=False)
    tokens: list[str] = tokenizer.convert_ids_to_tokens(ids[0, given.input_ids.shape[1] :])
    return tokens


def by_engine(engine: AttributionEngine, body: dict[str, Any]) -> list[str]:
    request = engine.check(AttributionRequest(**body))
    stored = engine.run(request, device="cpu", report=lambda _: None, should_cancel=lambda: False)
    (sequence,) = stored_form.decode(stored[0].content).sequence_attributions
    return [each.token for each in sequence.target[sequence.attr_pos_start : sequence.attr_pos_end]]


def by_server(server: Server, body: dict[str, Any]) -> list[str]:
    job_id = server.submit(**body)
    job = server.client.get(f"/attribution/jobs/{job_id}", params={"wait": 60}).json()
    assert job["status"] == "completed", job
    (sequence,) = server.result(job_id)["sequence_attributions"]
    return [each["token"] for each in sequence["target"][sequence["attr_pos_start"] : sequence["attr_pos_end"]]]


if __name__ == "__main__":
    main()
