"""Methods on a real model, ours beside Inseq called directly: `python -m benchmarks.real`.

SmolLM2-135M-Instruct (`make smollm2`), or the bundled lookup-gpt2 where it cannot be had. A prompt of about 20 tokens
and a continuation of about 16, one intra-op thread. The scores are compared first; then both run in turns, and the
ratio of their least processor times is reported. Inseq's value_zeroing fails on these models, so ours is given in
forwards of the text beside it.
"""

from __future__ import annotations

import argparse
import os
import tempfile

# Before torch is imported.
os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "INSEQ_ARTIFACTS_CACHE": tempfile.mkdtemp()}

import time
from pathlib import Path
from typing import Any

import inseq
import torch

from attribution.engine import AttributionEngine
from attribution.results import stored_form
from benchmarks.engines import Way, difference
from benchmarks.random_models import quiet
from models import AttributionRequest
from settings import Settings

MODELS = Path(__file__).parent.parent / "demo_models"
REAL, BUNDLED = "smollm2-135m-instruct-q4", "lookup-gpt2"
TEXTS = {
    REAL: (
        "Alice was born in Paris, studied medicine in Berlin, and now she lives and works as",
        " a doctor in the city of London. She likes it there, and she",
    ),
    BUNDLED: ("Anna likes tea and bread. Ben likes milk. Ben likes", " milk. Anna likes tea."),
}
METHODS: dict[str, dict[str, Any]] = {
    "saliency": {}, "input_x_gradient": {}, "occlusion": {}, "attention": {}, "lime": {"n_samples": 20},
    "value_zeroing": {},
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    quiet()
    name = REAL if (MODELS / REAL).exists() else BUNDLED
    print(f"{name}\n\n| method | Inseq, s | ours, s | ratio | largest difference |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        engine = AttributionEngine(Settings(data_dir=Path(scratch)))
        for method in arguments.methods.split(","):
            print(row(engine, name, method, arguments.rounds), flush=True)


def row(engine: AttributionEngine, name: str, method: str, rounds: int) -> str:
    prompt, rest = TEXTS[name]
    settings, full = METHODS[method], prompt + rest
    body = {"model": name, "method": method, "input_text": prompt, "generated_text": full, "seed": 0}
    request = engine.check(AttributionRequest(**body, attribution_args=settings))
    theirs = inseq.load_model(str(MODELS / name), method, device="cpu")

    def directly() -> Any:
        torch.manual_seed(0)
        return theirs.attribute(prompt, generated_texts=full, attribution_args=dict(settings), show_progress=False)

    def by_service() -> Any:
        stored = engine.run(request, device="cpu", report=lambda _: None, should_cancel=lambda: False)
        return stored_form.decode(stored[0].content)

    def forward() -> None:
        with torch.no_grad():
            theirs.model(theirs.encode(full).input_ids)

    is_forward = method == "value_zeroing"
    ours, found = by_service(), "the unit is a forward of the text"
    if not is_forward:
        a, b = (each.sequence_attributions[0].target_attributions for each in (ours, directly()))
        found = f"{difference(a, b):.0e}"
    ways: dict[str, Way] = {"theirs": forward if is_forward else directly, "ours": by_service}
    seconds = dict.fromkeys(ways, float("inf"))
    for _ in range(rounds):
        for way, run in ways.items():
            began = time.process_time()
            run()
            seconds[way] = min(seconds[way], time.process_time() - began)
    ratio = seconds["theirs"] / seconds["ours"]
    return f"| {method} | {seconds['theirs']:.2f} | {seconds['ours']:.2f} | {ratio:.2f} | {found} |"


if __name__ == "__main__":
    main()
