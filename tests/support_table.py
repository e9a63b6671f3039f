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
    "sequential_integrated_gradients": {"n_steps": 3},
    "discretized_integrated_gradients": {"n_steps": 4},
    "lime": {"n_samples": 8},
    "reagent": {"max_probe_steps": 10, "num_probes": 2},
}
INTRO = """# What works on which model family

Written by `make support-table`, which runs it: every method on tiny random models made from each family's real Transformers
config (`tests/families.py`), over HTTP, with Inseq {inseq}, Transformers {transformers} and torch {torch}. Two marks a cell:
with a forced target, and with free generation.

| mark | meaning |
|---|---|
| `=` | completed, and equal to Inseq called directly with the same seed, to float rounding |
| `+` | completed, where Inseq itself fails or a correction applies (`info.corrections`) |
| `ok` | completed (generated targets are not compared here: `tests/test_families.py` does) |
| `≠` | completed, but not equal to Inseq |
| `-` | refused or failed, with a reason below |
"""


Reasons = dict[str, set[tuple[str, str]]]  # a refusal -> the families and methods that met it


def main() -> None:
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name in FAMILIES:
            build(name, folder / "models" / name)
        methods = sorted(catalogue.methods())
        reasons: Reasons = defaultdict(set)
        cells = {}
        with Server(folder / "data", INSEQ_API_MODEL_DIRS=str(folder / "models")) as server:
            for name in FAMILIES:
                for method in methods:
                    forced = constrained(server, folder, name, method, reasons)
                    free = run(server, name, method, reasons, generation_args={"max_new_tokens": 3})
                    cells[name, method] = f"{forced} {'-' if free is None else 'ok'}"
    print(INTRO.format(**{package: version(package) for package in ("inseq", "transformers", "torch")}))
    print(f"| family | {' | '.join(method.replace('_', ' ') for method in methods)} |")
    print("|---" * (len(methods) + 1) + "|")
    for name in FAMILIES:
        print(f"| {name} | {' | '.join(cells[name, method] for method in methods)} |")
    print("\n## Reasons\n")
    for reason, where in sorted(reasons.items()):
        families = sorted({family for family, _ in where})
        named = sorted({method for _, method in where})
        subject = "every other method" if len(named) > 4 else ", ".join(f"`{method}`" for method in named)
        print(f"- {subject} on {'every family' if len(families) == len(FAMILIES) else ', '.join(families)}: {reason}")


def run(server: Server, name: str, method: str, reasons: Reasons, **more: Any) -> str | None:
    """The id of the completed job, or None and the reason remembered."""
    body = {"model": name, "method": method, "input_text": TEXT, "attribution_args": SETTINGS.get(method, {}), **more}
    answer = server.client.post("/attribution/jobs", json=body)
    if answer.status_code != 202:
        detail = answer.json()["errors"][0]["detail"]
    else:
        job = server.wait(answer.json()["job_id"])
        if job["status"] == "completed":
            return str(job["job_id"])
        detail = job["error"]["detail"].splitlines()[0]
    reasons[detail].add((name, method))
    return None


def constrained(server: Server, folder: Path, name: str, method: str, reasons: Reasons) -> str:
    """The mark of a forced target, compared with Inseq where Inseq can do it."""
    target = TARGET if FAMILIES[name].is_encoder_decoder else f"{TEXT} {TARGET}"
    job_id = run(server, name, method, reasons, generated_text=target)
    if job_id is None:
        return "-"
    arguments = SETTINGS.get(method, {})
    call = {k: v for k, v in arguments.items() if k in catalogue.methods()[method].call_parameters}
    try:
        theirs = reference.attribute(
            folder / "models" / name, TEXT, method, generated_texts=target, attribution_args=call,
            init_args=arguments if method == "reagent" else {},
        )  # fmt: skip
    except Exception:
        return "+"
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
