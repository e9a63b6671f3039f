"""Runs every method on every model family and prints the outcomes; the families of `make test` are run in five ways.

`make support-table` writes them to docs/support.md. Uses HTTP and the tiny random models of `tests.families` and
`tests.more_families`, and compares each result with Inseq called directly. Two processes, each with a server of its own,
take some half an hour of two free cores. The outcomes are kept in the folder that is named, so that the next run goes on
where one was interrupted; delete it after a change of the service.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Set before Inseq is imported: no network, and one thread, so that rounding is reproducible.
os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "INSEQ_ARTIFACTS_CACHE": tempfile.mkdtemp()}

import inseq
import torch
from inseq.data import FeatureAttributionOutput
from inseq.data.attribution import FeatureAttributionSequenceOutput
from transformers.utils import logging as transformers_logging

from attribution.catalogue import inseq_catalogue
from attribution.run.rounding import MARGIN
from tests import reference
from tests.families import FAMILIES, build_family
from tests.more_families import MORE
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
Transformers config (`tests/families.py` and `tests/more_families.py`), and compares each result with Inseq called directly with the same
seed, here with Inseq {inseq}, Transformers {transformers} and torch {torch}. `make test-families` compares the same models with first
principles, without Inseq. A cell has one mark, for a forced target; those of the first families have five, in this order: a forced
target, free generation, several inputs, step scores (probability and entropy), `attribute_target` (which has no effect on decoder-only
models, as in Inseq). `seeing` is a model that reads images, of which the text is attributed.

| mark | meaning |
|---|---|
| `=` | equal to Inseq, up to float rounding |
| `c` | corrected, because Inseq fails or is wrong; the corrections are listed below and in [corrections.md](corrections.md) |
| `r` | refused, for a reason listed below |
| `n` | completed, but some scores are NaN |
| `f` | accepted, but failed with an error listed below |
| `≠` | differs from Inseq, and not because of a correction |
"""
EVERY = FAMILIES | MORE
METHODS = sorted(name for name, each in inseq_catalogue.methods().items() if not each.traits.masks_features)
_MOST_NAMES = 16  # of families in one line of the lists
_REFUSALS = {"/problems/unsupported-by-model", "/problems/input-rejected"}


@dataclass
class Told:
    """Maps each message to the (family, method, way) triples in which it occurred."""

    refusals: dict[str, set[tuple[str, str, str]]] = field(default_factory=lambda: defaultdict(set))
    corrections: dict[str, set[tuple[str, str, str]]] = field(default_factory=lambda: defaultdict(set))
    inseq_fails: dict[str, set[tuple[str, str, str]]] = field(default_factory=lambda: defaultdict(set))

    def add(self, other: dict[str, dict[str, list[list[str]]]]) -> None:
        for name, messages in other.items():
            for message, where in messages.items():
                getattr(self, name)[message] |= {(family, method, way) for family, method, way in where}

    def plain(self) -> dict[str, dict[str, list[tuple[str, str, str]]]]:
        return {name: {key: sorted(where) for key, where in value.items()} for name, value in vars(self).items()}


def main() -> None:
    methods, told = METHODS, Told()
    rows: dict[str, dict[str, str]] = {}
    kept = Path(sys.argv[1])
    kept.mkdir(exist_ok=True)
    with ProcessPoolExecutor(2) as pool:
        for future in as_completed([pool.submit(of_family, name, kept) for name in [*MORE, *FAMILIES]]):
            name = future.result()
            outcome = json.loads((kept / f"{name}.json").read_text())
            rows[name] = outcome["marks"]
            told.add(outcome["told"])
            print(f"{len(rows)} of {len(EVERY)}: {name}", file=sys.stderr, flush=True)
    print(INTRO.format(**{package: version(package) for package in ("inseq", "transformers", "torch")}))
    print(f"| family | {' | '.join(methods)} |")
    print("|---" * (len(methods) + 1) + "|")
    for name in EVERY:
        print(f"| {name} | {' | '.join(f'`{rows[name][method]}`' for method in methods)} |")
    print_told("Refused, failed, or with NaN", told.refusals)
    print_told("Corrections applied", told.corrections)
    print_told("Where Inseq called directly fails and the service completes", told.inseq_fails)
    if open_cells := [name for name, row in rows.items() if set("".join(row.values())) & set("fn≠")]:
        sys.exit(f"failed, NaN or unlike Inseq: {', '.join(open_cells)}")


def of_family(name: str, kept: Path) -> str:
    """Run every method on one family, with a server of its own, unless the outcome is kept. Returns the family."""
    if (kept / f"{name}.json").exists():
        return name
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    told, ways = Told(), [*WAYS] if name in FAMILIES else [*WAYS][:1]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        build_family(EVERY[name], folder / "models" / name)
        with Server(folder / "data", INSEQ_API_MODEL_DIRS=str(folder / "models")) as server:
            marks = {
                method: "".join(mark(server, folder, name, method, way, told) for way in ways) for method in METHODS
            }
    written = kept / f"{name}.part"
    written.write_text(json.dumps({"marks": marks, "told": told.plain()}))
    written.rename(kept / f"{name}.json")
    return name


def print_told(title: str, told: dict[str, set[tuple[str, str, str]]]) -> None:
    print(f"\n## {title}\n")
    for reason, where in sorted(told.items()):
        families, methods, ways = (
            [each for each in every if each in {row[index] for row in where}]
            for index, every in enumerate((EVERY, METHODS, WAYS))
        )
        subject = f"{len(methods)} methods" if len(methods) > 4 else ", ".join(f"`{method}`" for method in methods)
        on = ", ".join(families) if len(families) <= _MOST_NAMES else f"{len(families)} families"
        on = "every family" if len(families) == len(EVERY) else on
        how = "" if len(ways) == len(WAYS) or ways == [*WAYS][:1] else f" ({', '.join(ways)})"
        print(f"- {subject} on {on}{how}: {reason}")


def mark(server: Server, folder: Path, name: str, method: str, way: str, told: Told) -> str:
    """Run one job and return the mark of its outcome."""
    texts = TEXTS if way == "several inputs" else TEXTS[:1]
    targets = [target if EVERY[name].is_encoder_decoder else f"{text} {target}" for text, target in texts]
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
        by_inseq = partial(
            reference.attribute, folder / "models" / name, text, method, generated_texts=target,
            init_args=arguments if method == "reagent" else {}, **WAYS[way],
        )  # fmt: skip
        try:
            theirs = by_inseq(attribution_args=dict(call)).sequence_attributions[0]
        except Exception as error:  # the table lists any error of Inseq
            told.inseq_fails[f"{type(error).__name__}: {' '.join(str(error).splitlines()[:1])}"].add(where)
            return "c"
        try:
            reference.assert_same_sequence(sequence, theirs)
        except AssertionError:
            if ours.info["corrections"]:
                return "c"
            if not is_same(sequence, partial(by_inseq, runs=2), call):
                return "≠"
    return "="


def is_same(
    ours: FeatureAttributionSequenceOutput, by_inseq: Callable[..., FeatureAttributionOutput], call: dict[str, Any]
) -> bool:
    """Whether a difference from Inseq's first run vanishes in its second, or is rounding: ours are about as near as Inseq's
    to those of Inseq in float64.
    """
    again, exact = (
        by_inseq(attribution_args=dict(call), dtype=dtype).sequence_attributions[0] for dtype in (None, torch.float64)
    )
    try:
        reference.assert_same_sequence(ours, again)
    except AssertionError:
        return reference.distance(ours, exact) <= MARGIN * reference.distance(again, exact)
    return True


if __name__ == "__main__":
    main()
