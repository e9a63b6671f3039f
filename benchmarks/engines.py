"""Measures the single pass's speedup, and compares it with the theoretical limit: `python -m benchmarks.engines`.

Inseq called directly, the service's engine with Inseq's loop, and its single pass compute each attribution on the same
random model, alternating in one run, with one intra-op thread. The scores are compared. The minimum processor time of
the rounds is reported, since other load can only add time. The second table compares with Captum's own attribution of
language models.
"""

from __future__ import annotations

import os
import tempfile

# Before torch is imported.
os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "INSEQ_ARTIFACTS_CACHE": tempfile.mkdtemp()}

import argparse
import gc
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import inseq
import torch
from captum.attr import (
    FeatureAblation,
    LayerGradientXActivation,
    LLMAttribution,
    LLMGradientAttribution,
    TextTokenInput,
)
from transformers import AutoModelForCausalLM, AutoTokenizer

from attribution.engine import AttributionEngine
from attribution.run.method_run import Runner
from attribution.run.request_progress import RequestProgress
from attribution.run.time_plan import TimePlan
from attribution.text.sandbox import Sandboxes, TextSandbox
from benchmarks.random_models import SIZES, Size, build, peak, quiet, reset_peak, texts
from models import AttributionRequest
from settings import Settings

Way = Callable[[], Any]
_SANDBOXES = Sandboxes(seconds=10, memory=1024**3)
SETTINGS: dict[str, dict[str, Any]] = {"integrated_gradients": {"n_steps": 20}}
# Speedups that the single pass should reach, with step scores.
GOALS = {
    "small": {"saliency": 10, "input_x_gradient": 10, "integrated_gradients": 6, "occlusion": 100},
    "medium": {"saliency": 6, "input_x_gradient": 6, "integrated_gradients": 4, "occlusion": 40},
}
_TOLERANCE = 1e-4
METHODS = ("saliency", "input_x_gradient", "integrated_gradients", "gradient_shap", "deeplift", "occlusion")


@dataclass
class Measured:
    """Processor and wall seconds of each round, and the rise of the peak memory in bytes."""

    processor: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    peak: int = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="small,medium")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--rounds", type=int, help="rounds of each (default: 5 of small models, 2 of the medium one)")
    parser.add_argument("--captum", action=argparse.BooleanOptionalAction, default=True)
    arguments = parser.parse_args()
    quiet()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        engine = AttributionEngine(Settings(data_dir=root / "data", model_dirs=(str(root),)))
        for size in (each for each in SIZES if each.name in arguments.sizes.split(",")):
            build(size, root / size.name)
            rounds = arguments.rounds or size.rounds
            for method in arguments.methods.split(","):
                # Inseq takes minutes for these on the medium model.
                is_long = size.name == "medium" and method in {"integrated_gradients", "occlusion"}
                rows.append(compare(engine, root, size, method, 0 if is_long else rounds))
                print(row(rows[-1]), flush=True)
            if arguments.captum:
                for theirs in ("gradient", "ablation"):
                    rows.append(beside_captum(engine, root, size, theirs, rounds))
                    print(row(rows[-1]), flush=True)
    report(rows)


def compare(engine: AttributionEngine, root: Path, size: Size, method: str, rounds: int) -> dict[str, Any]:
    """One method on one model, computed in three ways, with step scores."""
    text, full = texts(size)
    settings = SETTINGS.get(method, {})
    body = {"model": size.name, "method": method, "input_text": text, "generated_text": full,
            "attribution_args": settings, "step_scores": ["probability"]}  # fmt: skip
    model = inseq.load_model(str(root / size.name), method, device="cpu")

    def directly() -> Any:
        torch.manual_seed(0)
        return model.attribute(
            text, generated_texts=full, step_scores=["probability"], attribution_args=dict(settings),
            show_progress=False,
        )  # fmt: skip

    ways: dict[str, Way] = {"inseq": directly} | {way: engine_way(engine, body, way) for way in ("loop", "single")}
    measured, outputs = measure(ways, rounds)
    scores = {way: output.sequence_attributions[0].target_attributions for way, output in outputs.items()}
    # A random method draws other samples when Inseq is called directly.
    other = "loop" if method == "gradient_shap" else "inseq"
    return {"size": size.name, "label": size.label, "lengths": f"{size.prompt} / {size.generated}", "method": method,
            "difference": difference(scores["single"], scores[other]), "limit": limit(size, method, settings),
            "goal": GOALS[size.name].get(method), "other": "inseq"} | figures(measured)  # fmt: skip


def beside_captum(engine: AttributionEngine, root: Path, size: Size, kind: str, rounds: int) -> dict[str, Any]:
    """Gradients or ablations of log-probabilities, by the single pass and by Captum's `LLMAttribution` classes."""
    text, full = texts(size)
    network = AutoModelForCausalLM.from_pretrained(root / size.name, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(root / size.name)
    tokenizer.pad_token = tokenizer.eos_token
    unknown = tokenizer.unk_token_id
    layer = network.get_input_embeddings()
    wrapped = {
        "gradient": lambda: LLMGradientAttribution(LayerGradientXActivation(network, layer), tokenizer),
        "ablation": lambda: LLMAttribution(FeatureAblation(network), tokenizer),
    }[kind]()
    method = {"gradient": "input_x_gradient", "ablation": "occlusion"}[kind]
    body = {"model": size.name, "method": method, "input_text": text, "generated_text": full,
            "attributed_fn": "probability", "attributed_fn_args": {"logprob": True}}  # fmt: skip

    def captum() -> torch.Tensor:
        given = TextTokenInput(text, tokenizer, baselines=unknown)
        # With Transformers 5, Captum's cache makes positions exceed the model's (IndexError).
        more = {"use_cached_outputs": False} if kind == "ablation" else {}
        found: torch.Tensor = wrapped.attribute(given, target=full.removeprefix(text), **more).token_attr
        return found.T.abs() if kind == "ablation" else found.T

    ways: dict[str, Way] = {"captum": captum, "single": engine_way(engine, body, "single")}
    measured, outputs = measure(ways, rounds if kind == "gradient" else 1)
    ours = outputs["single"].sequence_attributions[0].target_attributions[: size.prompt]
    ours = ours.sum(-1) if kind == "gradient" else ours
    return {"size": size.name, "label": size.label, "lengths": f"{size.prompt} / {size.generated}",
            "method": f"{method} of log-probabilities", "difference": difference(ours, outputs["captum"]),
            "limit": None, "goal": None, "other": "captum"} | figures(measured)  # fmt: skip


def engine_way(engine: AttributionEngine, body: dict[str, Any], way: str) -> Way:
    request = engine.check(AttributionRequest(engine="inseq" if way == "loop" else "single_pass", **body))

    def run() -> Any:
        with engine._models.lease(request.model, device="cpu", dtype="float32") as loaded:  # noqa: SLF001
            progress = RequestProgress(lambda _: None)
            return Runner(
                request, loaded, progress=progress,
                plan=TimePlan(request, loaded, engine._estimator, progress),  # noqa: SLF001
                should_cancel=lambda: False, most_n_steps=2000, max_input_tokens=4096,
                sandbox=TextSandbox(_SANDBOXES, loaded.source, lambda: False),
            ).run()  # fmt: skip

    return run


def measure(ways: dict[str, Way], rounds: int) -> tuple[dict[str, Measured], dict[str, Any]]:
    """Run each way once for its result and memory, then alternate for `rounds`; with 0 rounds, time the first run."""
    measured, outputs = {way: Measured() for way in ways}, dict[str, Any]()
    ways["single"]()  # runs the probe, once for each model
    for way, run in ways.items():
        gc.collect()
        before, processor, wall = reset_peak(), time.process_time(), time.perf_counter()
        outputs[way] = run()
        measured[way].peak = max(0, peak() - before)
        if not rounds:
            measured[way].processor.append(time.process_time() - processor)
            measured[way].wall.append(time.perf_counter() - wall)
    for _ in range(rounds):
        for way, run in ways.items():
            wall, processor = time.perf_counter(), time.process_time()
            run()
            measured[way].processor.append(time.process_time() - processor)
            measured[way].wall.append(time.perf_counter() - wall)
    return measured, outputs


def figures(measured: dict[str, Measured]) -> dict[str, Any]:
    return {
        f"{way}_{name}": value
        for way, each in measured.items()
        for name, value in (("seconds", min(each.processor)), ("wall", min(each.wall)), ("peak", each.peak))
    }


def limit(size: Size, method: str, settings: dict[str, Any]) -> float | None:
    """The largest possible speedup: multiplications of Inseq's loop divided by the fewest that the method needs.

    Inseq: for each step a forward and a backward of the whole network over the prefix, and a forward for step scores.
    Fewest: forwards of the body; for each step a backward of the body over the prefix, in whose last block only the
    keys and values remain; and the head forward and backward once for each step.
    """
    body, head = size.layers * size.block, size.head
    lengths = range(size.prompt, size.prompt + size.generated)
    total, longest, steps = sum(lengths), lengths[-1], len(lengths)
    points = int(settings.get("n_steps", 50))
    backward = body - size.block + size.block / 6
    scores = total * (body + head)
    if method in {"saliency", "input_x_gradient"}:
        return (2 * total * (body + head) + scores) / (longest * body + total * backward + 2 * steps * head)
    if method == "integrated_gradients":
        least: float = points * (longest * body + total * backward + 2 * steps * head)
        return (points * 2 * total * (body + head) + scores) / least
    if method == "deeplift":
        # Input and baseline, forward and backward.
        return (4 * total * (body + head) + scores) / (2 * longest * body + total * backward + 3 * steps * head)
    if method == "occlusion":
        # Replacing a position changes all later positions.
        rows = sum(longest - position for position in range(longest))
        read = sum(min(steps, longest - position) for position in range(longest))
        theirs: float = sum(length * (length + 1) for length in lengths) * (body + head)
        return (theirs + scores) / (rows * body + read * head)
    return None


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference, relative to the largest score. Raises `AssertionError` above the tolerance."""
    gaps = (ours.double() - theirs.double()).nan_to_num().abs().max()
    found = float(gaps / theirs.double().nan_to_num().abs().max())
    if found > _TOLERANCE:
        raise AssertionError(f"the scores differ by {found:.1e} of the largest")
    return found


def row(each: dict[str, Any]) -> str:
    theirs, ours = each[f"{each['other']}_seconds"], each["single_seconds"]
    loop = f"{1000 * each['loop_seconds']:.0f}" if "loop_seconds" in each else ""
    limited = f"{each['limit']:.1f}" if each["limit"] else ""
    memory = " / ".join(f"{each[f'{way}_peak'] / 1e6:.0f}" for way in (each["other"], "single"))
    return (
        f"| {each['label']} | {each['lengths']} | {each['method']} | {1000 * theirs:.0f} | {loop} | {1000 * ours:.0f} "
        f"| **{theirs / ours:.1f}** | {each['goal'] or ''} | {limited} | {memory} | {each['difference']:.0e} |"
    )


def report(rows: list[dict[str, Any]]) -> None:
    for other, title in (("inseq", "Inseq"), ("captum", "Captum")):
        chosen = [each for each in rows if each["other"] == other]
        if chosen:
            print(f"\n| model | S / T | method | {title}, ms | our loop, ms | single pass, ms | ratio | goal | limit | "
                  "memory, MB | largest difference |")  # fmt: skip
            print("|---|---|---|---|---|---|---|---|---|---|---|")
            print("\n".join(map(row, chosen)))
    print("\n" + json.dumps(rows))


if __name__ == "__main__":
    main()
