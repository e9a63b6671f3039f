"""Measures long texts in bounded memory: `python -m benchmarks.long_texts`.

The service's engine (a whole job: checked, run, encoded for the store) and Inseq called directly attribute a prompt of
2,000 tokens and its continuation, each in a separate process with a memory limit beside the loaded model. Reports the
time, the peak memory and the completed steps. Inseq would take hours for some cases, so processor time is limited too.
Where both finish, the scores are compared. The last line is JSON.
"""

from __future__ import annotations

import os
import tempfile

# Before torch is imported.
os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "INSEQ_ARTIFACTS_CACHE": tempfile.mkdtemp()}

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import inseq
import torch

from attribution.engine import AttributionEngine
from attribution.results import stored_form
from benchmarks.random_models import SIZES, Size, build, peak, quiet, reset_peak, texts
from models import AttributionRequest, Progress
from problems import Cancelled, OutOfMemory
from settings import Settings

METHODS = ("saliency", "input_x_gradient", "integrated_gradients", "deeplift", "gradient_shap", "occlusion",
           "attention")  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {"integrated_gradients": {"n_steps": 20}}
_POSITIONS, _GIB = 2304, 1024**3
_NO_STEP_SCORES = {"attention"}


@dataclass(frozen=True)
class Case:
    """One attribution by one engine, limited to `gigabytes` beside the model and `seconds` of processor time."""

    way: str
    size: str
    method: str
    prompt: int
    generated: int
    gigabytes: float
    seconds: float


@dataclass
class Outcome:
    """`ended`: finished, out of memory, stopped, or how the process died; `done`: completed steps."""

    ended: str
    done: int
    processor: float
    wall: float
    peak: int
    updates: int = 0  # distinct values of the progress


class TimeUp(BaseException):
    """The processor time limit is reached. A BaseException, so that no code in between handles it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="small", choices=[size.name for size in SIZES])
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--ways", default="inseq,single")
    parser.add_argument("--prompt", type=int, default=2000)
    parser.add_argument("--generated", type=int, default=200)
    parser.add_argument("--gigabytes", type=float, default=2.0, help="memory limit beside the loaded model")
    parser.add_argument("--seconds", type=float, default=300, help="processor time of Inseq called directly")
    parser.add_argument("--single-seconds", type=float, default=1800, help="processor time of the service's engine")
    parser.add_argument("--case", help=argparse.SUPPRESS)  # one case, in a process of its own
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    quiet()
    if arguments.case:
        print(json.dumps(asdict(run(Case(**json.loads(arguments.case)), arguments.root))))
        return
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        size = _size(arguments.size)
        build(size, root / size.name, positions=_POSITIONS)
        for method in arguments.methods.split(","):
            outcomes = {}
            for way in arguments.ways.split(","):
                seconds = arguments.seconds if way == "inseq" else arguments.single_seconds
                lengths = arguments.prompt, arguments.generated
                case = Case(way, size.name, method, *lengths, arguments.gigabytes, seconds)
                outcomes[way] = apart(case, root)
            rows.append({"size": size.label, "method": method, "lengths": f"{case.prompt} / {case.generated}",
                         "difference": difference(root, method),
                         **{way: asdict(each) for way, each in outcomes.items()}})  # fmt: skip
            print(row(rows[-1], case.generated), flush=True)
    print("\n" + json.dumps(rows))


def apart(case: Case, root: Path) -> Outcome:
    """Run the case in a new process."""
    command = [sys.executable, "-m", "benchmarks.long_texts", "--root", str(root), "--case", json.dumps(asdict(case))]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        return Outcome(**json.loads(ended.stdout.splitlines()[-1]))
    except (IndexError, ValueError):  # the process died, of an allocation failure in C++, say
        return Outcome(f"died ({ended.returncode}): {ended.stderr[-300:]}", 0, 0.0, 0.0, 0)


def run(case: Case, root: Path) -> Outcome:
    """Load the model, set the memory limit and attribute; writes the scores to a file beside the model."""
    attribute = {"inseq": _inseq, "single": _single}[case.way](case, root)
    data = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData"))
    allowed = int(data.split()[1]) * 1024 + int(case.gigabytes * _GIB)
    resource.setrlimit(resource.RLIMIT_DATA, (allowed, allowed))
    before, processor, wall = reset_peak(), time.process_time(), time.perf_counter()
    progress: list[int] = []
    is_up = lambda: time.process_time() - processor > case.seconds  # noqa: E731
    scores, ended = None, "finished"
    try:
        scores = attribute(progress, is_up)
    except (TimeUp, Cancelled):
        ended = "stopped"
    except (RuntimeError, MemoryError, OutOfMemory) as error:
        if not isinstance(error, MemoryError | OutOfMemory) and "memory" not in str(error):
            raise
        ended = "out of memory"
    outcome = Outcome(
        ended, max(progress, default=0), time.process_time() - processor, time.perf_counter() - wall,
        peak() - before, len(set(progress)),
    )  # fmt: skip
    if scores is not None:
        torch.save(scores, root / f"{case.method}.{case.way}.pt")
    return outcome


def _single(case: Case, root: Path) -> Callable[[list[int], Callable[[], bool]], torch.Tensor]:
    engine = AttributionEngine(Settings(data_dir=root / "data", model_dirs=(str(root),)))

    def attribute(text: str, full: str, progress: list[int], is_up: Callable[[], bool]) -> torch.Tensor:
        def report(update: Progress) -> None:
            progress.append(update.steps_done)

        request = AttributionRequest(
            model=case.size, method=case.method, input_text=text, generated_text=full,
            attribution_args=SETTINGS.get(case.method, {}), step_scores=_step_scores(case),
        )  # fmt: skip
        parts = engine.run(engine.check(request), device="cpu", report=report, should_cancel=is_up)
        return _summed(stored_form.decode(parts[0].content))

    attribute("12", "1234", [], lambda: False)  # loads the model and runs the probe
    return lambda progress, is_up: attribute(*_texts(case), progress, is_up)


def _inseq(case: Case, root: Path) -> Callable[[list[int], Callable[[], bool]], torch.Tensor]:
    model = inseq.load_model(str(root / case.size), case.method, device="cpu")
    method = model.attribution_method
    attribute_step = method.filtered_attribute_step

    def attribute(progress: list[int], is_up: Callable[[], bool]) -> torch.Tensor:
        def counted(*given: Any, **more: Any) -> Any:
            output = attribute_step(*given, **more)
            progress.append(len(progress) + 1)
            return output

        def before_forward(*_: Any) -> None:
            if is_up():
                raise TimeUp

        method.filtered_attribute_step = counted
        model.model.register_forward_pre_hook(before_forward)
        text, full = _texts(case)
        torch.manual_seed(0)
        return _summed(model.attribute(
            text, generated_texts=full, step_scores=_step_scores(case), show_progress=False,
            attribution_args=dict(SETTINGS.get(case.method, {})),
        ))  # fmt: skip

    return attribute


def _summed(output: Any) -> torch.Tensor:
    """Scores summed to one number for each position and step."""
    scores: torch.Tensor = output.sequence_attributions[0].target_attributions
    return scores.flatten(2).sum(-1) if scores.dim() > 2 else scores


def difference(root: Path, method: str) -> float | None:
    """The largest difference relative to the largest score, if both finished; None for gradient_shap (random)."""
    files = [root / f"{method}.{way}.pt" for way in ("inseq", "single")]
    if method == "gradient_shap" or not all(file.exists() for file in files):
        return None
    theirs, ours = (torch.load(file).double().nan_to_num() for file in files)
    return float((ours - theirs).abs().max() / theirs.abs().max())


def _size(name: str) -> Size:
    return next(size for size in SIZES if size.name == name)


def _texts(case: Case) -> tuple[str, str]:
    return texts(replace(_size(case.size), prompt=case.prompt, generated=case.generated))


def _step_scores(case: Case) -> list[str]:
    return [] if case.method in _NO_STEP_SCORES else ["probability"]  # Inseq refuses them there


def row(each: dict[str, Any], steps: int) -> str:
    def cell(outcome: dict[str, Any] | None) -> str:
        if outcome is None:
            return ""
        figures = f"{outcome['processor']:.0f} s, {outcome['peak'] / 1e6:.0f} MB"
        return figures if outcome["ended"] == "finished" else (
            f"{outcome['ended']} at step {outcome['done'] + 1} of {steps}, after {figures}"
        )  # fmt: skip

    gap = "" if each["difference"] is None else f"{each['difference']:.0e}"
    return (
        f"| {each['size']} | {each['lengths']} | {each['method']} | {cell(each.get('inseq'))} "
        f"| {cell(each.get('single'))} | {gap} |"
    )


if __name__ == "__main__":
    main()
