"""Try every method on every model family and print what happened: `python -m tests.support_table > docs/support.md`.

Over HTTP, on the tiny random models of `tests.families`. Constrained results are compared with Inseq called directly.
"""

from __future__ import annotations

import os
import tempfile
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Before Inseq is imported: nothing is looked up on the network, sums are taken in one order.
os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "INSEQ_ARTIFACTS_CACHE": tempfile.mkdtemp()}

import inseq
from transformers.utils import logging as transformers_logging

from attribution import catalogue
from tests import reference
from tests.families import FAMILIES, build
from tests.serving import Server

TEXT, TARGET = "The quick brown", "fox jumps over"
SETTINGS: dict[str, dict[str, Any]] = {
    "integrated_gradients": {"n_steps": 4},
    "sequential_integrated_gradients": {"n_steps": 4},
    "discretized_integrated_gradients": {"n_steps": 4},
    "gradient_shap": {"n_samples": 8},
    "lime": {"n_samples": 8},
    # By default a probe counts only where the target is among three tokens; a random model's forced target never is, and
    # Inseq then divides 0 by 0: all is NaN. The whole vocabulary lets every probe count.
    "reagent": {"max_probe_steps": 20, "num_probes": 2, "stopping_condition_top_k": 320},
}
INTRO = """# What works on which model family

Written by `make support-table`, which runs it: every method on tiny random models made from each family's real Transformers
config (`tests/families.py`), over HTTP, with Inseq {inseq}, Transformers {transformers} and torch {torch}. Two marks a cell:
with a forced target, and with free generation; one where both are refused or failed alike.

| mark | meaning |
|---|---|
| `=` | completed with numbers, and equal to Inseq called directly with the same seed, to float rounding |
| `ok` | completed; Inseq called directly fails (below), or the target was generated (`tests/test_families.py` compares) |
| `≠` | completed, but not equal to Inseq |
| `nan` | completed, but some scores are NaN |
| `refused` | told before it ran, or by the check of the model, with a reason below |
| `failed` | accepted, and ended with an error, below |
"""


Reasons = dict[str, set[tuple[str, str]]]  # what was said -> the families and methods that met it
_REFUSALS = {"/problems/unsupported-by-model", "/problems/input-rejected"}


def main() -> None:
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    methods = sorted(catalogue.methods())
    reasons: Reasons = defaultdict(set)
    inseq_fails: Reasons = defaultdict(set)
    cells = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name in FAMILIES:
            build(name, folder / "models" / name)
        with Server(folder / "data", INSEQ_API_MODEL_DIRS=str(folder / "models")) as server:
            for name in FAMILIES:
                for method in methods:
                    forced = constrained(server, folder, name, method, reasons, inseq_fails)
                    free, _ = run(server, name, method, reasons, generation_args={"max_new_tokens": 3})
                    cells[name, method] = forced if forced == free != "ok" else f"{forced} {free}"
    print(INTRO.format(**{package: version(package) for package in ("inseq", "transformers", "torch")}))
    print(f"| method | {' | '.join(FAMILIES)} |")
    print("|---" * (len(FAMILIES) + 1) + "|")
    for method in methods:
        print(f"| {method} | {' | '.join(cells[name, method] for name in FAMILIES)} |")
    print_reasons("Refusals and failures", reasons)
    print_reasons("Where Inseq called directly fails and the service completes", inseq_fails)


def print_reasons(title: str, reasons: Reasons) -> None:
    print(f"\n## {title}\n")
    for reason, where in sorted(reasons.items()):
        families = sorted({family for family, _ in where})
        named = sorted({method for _, method in where})
        subject = f"{len(named)} methods" if len(named) > 4 else ", ".join(f"`{method}`" for method in named)
        print(f"- {subject} on {'every family' if len(families) == len(FAMILIES) else ', '.join(families)}: {reason}")


def run(server: Server, name: str, method: str, reasons: Reasons, **more: Any) -> tuple[str, str]:
    """The mark, and the id of the completed job; the reason remembered where it is not completed or has gaps."""
    body = {"model": name, "method": method, "input_text": TEXT, "attribution_args": SETTINGS.get(method, {}), **more}
    answer = server.client.post("/attribution/jobs", json=body)
    if answer.status_code != 202:
        reasons[answer.json()["errors"][0]["detail"]].add((name, method))
        return "refused", ""
    job = server.wait(answer.json()["job_id"])
    if job["status"] == "completed":
        gaps = [each for each in server.result(job["job_id"])["info"]["warnings"] if "NaN" in each]
        for gap in gaps:
            reasons[gap].add((name, method))
        return "nan" if gaps else "ok", str(job["job_id"])
    reasons[job["error"]["detail"].splitlines()[0]].add((name, method))
    return "refused" if job["error"]["type"] in _REFUSALS else "failed", ""


def constrained(server: Server, folder: Path, name: str, method: str, reasons: Reasons, inseq_fails: Reasons) -> str:
    """The mark of a forced target, compared with Inseq where Inseq can do it."""
    target = TARGET if FAMILIES[name].is_encoder_decoder else f"{TEXT} {TARGET}"
    mark, job_id = run(server, name, method, reasons, generated_text=target)
    if mark != "ok":
        return mark
    arguments = SETTINGS.get(method, {})
    call = {k: v for k, v in arguments.items() if k in catalogue.methods()[method].call_parameters}
    try:
        theirs = reference.attribute(
            folder / "models" / name, TEXT, method, generated_texts=target, attribution_args=call,
            init_args=arguments if method == "reagent" else {},
        )  # fmt: skip
    except Exception as error:  # whatever Inseq raises is told in the table
        inseq_fails[f"{type(error).__name__}: {' '.join(str(error).splitlines()[:1])}"].add((name, method))
        return "ok"
    theirs.info["attribution_args"] = arguments
    file = folder / "result.json"
    file.write_bytes(server.client.get(f"/attribution/jobs/{job_id}/results?format=inseq").content)
    try:
        reference.assert_same(inseq.FeatureAttributionOutput.load(file), theirs)
    except AssertionError:
        return "≠"
    return "="


if __name__ == "__main__":
    main()
