"""Runs every method on every model family in five ways and prints the outcomes.

`make support-table` writes them to docs/support.md. Uses HTTP and the tiny random models of `tests.families`, and
compares each result with Inseq called directly.
"""

from __future__ import annotations

import os
import tempfile
from collections import defaultdict
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Set before Inseq is imported: no network, and one thread, so that rounding is reproducible.
os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "INSEQ_ARTIFACTS_CACHE": tempfile.mkdtemp()}

import inseq
from inseq.data import FeatureAttributionOutput
from transformers.utils import logging as transformers_logging

from attribution.catalogue import inseq_catalogue
from tests import reference
from tests.families import FAMILIES, build
from tests.serving import Server

# (input, target) pairs. Only "several inputs" uses more than the first.
TEXTS = [("The quick brown", "fox jumps over"), ("Feature attribution", "helps explain")]
SETTINGS: dict[str, dict[str, Any]] = {
    "integrated_gradients": {"n_steps": 4},
    "layer_integrated_gradients": {"n_steps": 4},
    "sequential_integrated_gradients": {"n_steps": 4},
    "discretized_integrated_gradients": {"n_steps": 4},
    "gradient_shap": {"n_samples": 8},
    "lime": {"n_samples": 8},
    # By default ReAGent counts a probe only if the target is among the top 3 tokens. A random model's forced target
    # never is; Inseq then divides 0 by 0, and all scores are NaN. With the whole vocabulary every probe counts.
    "reagent": {"max_probe_steps": 20, "num_probes": 2, "stopping_condition_top_k": 320},
}
WAYS: dict[str, dict[str, Any]] = {
    "a forced target": {},
    "free generation": {"generation_args": {"max_new_tokens": 3}},
    "several inputs": {},
    "step scores": {"step_scores": ["probability", "entropy"]},
    "attribute_target": {"attribute_target": True},
}
INTRO = """# What works on which model family

`make support-table` writes this page. It runs every method over HTTP on tiny random models, built from each family's real
Transformers config (`tests/families.py`), and compares each result with Inseq called directly with the same seed, here with Inseq
{inseq}, Transformers {transformers} and torch {torch}. A cell has five marks, in this order: a forced target, free generation, several
inputs, step scores (probability and entropy), `attribute_target` (which has no effect on decoder-only models, as in Inseq).

| mark | meaning |
|---|---|
| `=` | equal to Inseq, up to float rounding |
| `c` | corrected, because Inseq fails or is wrong; the corrections are listed below and in [corrections.md](corrections.md) |
| `r` | refused, for a reason listed below |
| `n` | completed, but some scores are NaN |
| `f` | accepted, but failed with an error listed below |
| `≠` | differs from Inseq, and not because of a correction |
"""
_REFUSALS = {"/problems/unsupported-by-model", "/problems/input-rejected"}


@dataclass
class Told:
    """Maps each message to the (family, method, way) triples in which it occurred."""

    refusals: dict[str, set[tuple[str, str, str]]] = field(default_factory=lambda: defaultdict(set))
    corrections: dict[str, set[tuple[str, str, str]]] = field(default_factory=lambda: defaultdict(set))
    inseq_fails: dict[str, set[tuple[str, str, str]]] = field(default_factory=lambda: defaultdict(set))


def main() -> None:
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    methods = sorted(inseq_catalogue.methods())
    told = Told()
    cells = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name in FAMILIES:
            build(name, folder / "models" / name)
        with Server(folder / "data", INSEQ_API_MODEL_DIRS=str(folder / "models")) as server:
            for name in FAMILIES:
                for method in methods:
                    cells[name, method] = "".join(mark(server, folder, name, method, way, told) for way in WAYS)
    print(INTRO.format(**{package: version(package) for package in ("inseq", "transformers", "torch")}))
    print(f"| method | {' | '.join(FAMILIES)} |")
    print("|---" * (len(FAMILIES) + 1) + "|")
    for method in methods:
        print(f"| {method} | {' | '.join(f'`{cells[name, method]}`' for name in FAMILIES)} |")
    print_told("Refused, failed, or with NaN", told.refusals)
    print_told("Corrections applied", told.corrections)
    print_told("Where Inseq called directly fails and the service completes", told.inseq_fails)


def print_told(title: str, told: dict[str, set[tuple[str, str, str]]]) -> None:
    print(f"\n## {title}\n")
    for reason, where in sorted(told.items()):
        families, methods, ways = (
            [each for each in every if each in {row[index] for row in where}]
            for index, every in enumerate((FAMILIES, sorted(inseq_catalogue.methods()), WAYS))
        )
        subject = f"{len(methods)} methods" if len(methods) > 4 else ", ".join(f"`{method}`" for method in methods)
        on = "every family" if len(families) == len(FAMILIES) else ", ".join(families)
        how = "" if len(ways) == len(WAYS) else f" ({', '.join(ways)})"
        print(f"- {subject} on {on}{how}: {reason}")


def mark(server: Server, folder: Path, name: str, method: str, way: str, told: Told) -> str:
    """Run one job and return the mark of its outcome."""
    texts = TEXTS if way == "several inputs" else TEXTS[:1]
    targets = [target if FAMILIES[name].is_encoder_decoder else f"{text} {target}" for text, target in texts]
    forced = {} if way == "free generation" else {"generated_text": targets}
    body = {"model": name, "method": method, "input_text": [text for text, _ in texts], **forced, **WAYS[way]}
    answer = server.client.post("/attribution/jobs", json={**body, "attribution_args": SETTINGS.get(method, {})})
    where = (name, method, way)
    if answer.status_code != 202:
        told.refusals[answer.json()["errors"][0]["detail"]].add(where)
        return "r"
    job = server.wait(answer.json()["job_id"])
    if job["status"] != "completed":
        told.refusals[job["error"]["detail"].splitlines()[0]].add(where)
        return "r" if job["error"]["type"] in _REFUSALS else "f"
    file = folder / "result.json"
    file.write_bytes(server.client.get(f"/attribution/jobs/{job['job_id']}/results?format=inseq").content)
    ours = inseq.FeatureAttributionOutput.load(file)
    for gap in (each for each in ours.info["warnings"] if "scores are NaN" in each):
        told.refusals[gap].add(where)
        return "n"
    return compared(folder, where, ours, [text for text, _ in texts], targets if forced else [None], told)


def compared(
    folder: Path,
    where: tuple[str, str, str],
    ours: FeatureAttributionOutput,
    texts: list[str],
    targets: list[Any],
    told: Told,
) -> str:
    name, method, way = where
    for correction in ours.info["corrections"]:
        told.corrections[f"`{correction}`"].add(where)
    arguments = SETTINGS.get(method, {})
    call = {key: value for key, value in arguments.items() if key in inseq_catalogue.methods()[method].call_parameters}
    for text, target, sequence in zip(texts, targets, ours.sequence_attributions, strict=True):
        try:
            theirs = reference.attribute(
                folder / "models" / name, text, method, generated_texts=target, attribution_args=dict(call),
                init_args=arguments if method == "reagent" else {}, **WAYS[way],
            )  # fmt: skip
        except Exception as error:  # the table lists any error of Inseq
            told.inseq_fails[f"{type(error).__name__}: {' '.join(str(error).splitlines()[:1])}"].add(where)
            return "c"
        try:
            reference.assert_same_sequence(sequence, theirs.sequence_attributions[0])
        except AssertionError:
            return "c" if ours.info["corrections"] else "≠"
    return "="


if __name__ == "__main__":
    main()
