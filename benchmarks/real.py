"""Methods on a real model beside Inseq, Captum and an earlier version: `python -m benchmarks.real`.

SmolLM2-135M-Instruct (`make smollm2`), one intra-op thread, forced texts of 20 + 16 and of 180 + 30 tokens. Every way
is a process of its own with the model loaded. Our scores are compared with Inseq's first. Then the ways run in turns,
and the least processor time of each counts. On the long text, Inseq and Captum attribute the last two tokens, and their
time for all is computed from that.

The last columns are a lower bound: the fewest multiplications that the method needs, at the speed that this processor
reaches in one matrix product of this model. What is ahead of it is overhead; a method near 1 cannot become much faster.

`--before TREE` adds an earlier version: the folder of a checkout of it.
"""

from __future__ import annotations

import argparse
import os
import tempfile

# Before torch is imported.
os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
os.environ.setdefault("INSEQ_ARTIFACTS_CACHE", tempfile.mkdtemp())

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from transformers import AutoTokenizer

from demo_models.smollm2 import FOLDER

ROOT = Path(__file__).parent.parent
LAST = 2  # tokens of the long text that Inseq and Captum attribute
TOLERANCE = 5e-4  # of the largest score: what a probe of the service calls rounding at most
TEXT = (
    "Alice was born in Paris, studied medicine in Berlin, and now she lives and works as a doctor in the city of "
    "London. She likes it there, and she walks to the hospital every morning along the river, past the old market "
    "and the church with the green roof. On Sundays she visits her brother, who owns a small bakery near the "
    "station. He came to the city ten years ago, when the harbour was still busy and the streets were full of "
    "sailors from every country of the world. They drink coffee together and talk about their parents, who never "
    "left the village in the mountains where both of them grew up. In the winter, when the snow is deep, nobody can "
    "reach that village for weeks, and the people there live on what they have stored in the autumn: potatoes, "
    "apples, flour, and the cheese that their grandmother used to make in the cellar of the house. Alice remembers "
    "the smell of it very well, and sometimes she dreams of going back, but then the telephone rings, and another "
    "patient is waiting for her in the city."
)


@dataclass(frozen=True)
class Case:
    """A method, its arguments, and how its work grows with the length of a prefix."""

    name: str
    arguments: dict[str, Any]
    power: int = 1
    is_short_only: bool = False  # hours on the long text, in every way
    is_random: bool = False  # Inseq called directly draws other samples
    is_zero_in_inseq: bool = False  # (see docs/corrections.md)

    @property
    def has_reference(self) -> bool:
        """Whether Inseq's scores are what ours must be."""
        return not (self.is_random or self.is_zero_in_inseq)


CASES = (
    Case("attention", {}), Case("saliency", {}), Case("input_x_gradient", {}), Case("deeplift", {}),
    Case("integrated_gradients", {"n_steps": 4}), Case("gradient_shap", {"n_samples": 3}, is_random=True),
    Case("layer_gradient_x_activation", {}), Case("layer_integrated_gradients", {"n_steps": 4}, is_zero_in_inseq=True),
    Case("layer_deeplift", {}, is_zero_in_inseq=True), Case("occlusion", {}, power=2),
    Case("lime", {"n_samples": 5}, is_random=True), Case("value_zeroing", {}, power=2),
    Case("reagent", {"max_probe_steps": 3}, is_short_only=True, is_random=True),
    Case("sequential_integrated_gradients", {"n_steps": 2}, power=2, is_short_only=True),
)  # fmt: skip


@dataclass(frozen=True)
class Lengths:
    """Tokens of the prompt and of the continuation."""

    prompt: int
    generated: int

    @property
    def prefixes(self) -> range:
        """The tokens before each generated one."""
        return range(self.prompt, self.prompt + self.generated)


LENGTHS = {"short": Lengths(20, 16), "long": Lengths(180, 30)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", default=",".join(LENGTHS))
    parser.add_argument("--methods", default=",".join(case.name for case in CASES))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--before", type=Path, help="the folder of an earlier version's checkout")
    arguments = parser.parse_args()
    if not FOLDER.exists():
        raise SystemExit("The real model is not here: `make smollm2` makes it.")
    torch.set_num_threads(1)
    ways = {"now": Way("service", ROOT), "inseq": Way("inseq", ROOT), "captum": Way("captum", ROOT)}
    if arguments.before:
        ways["before"] = Way("service", arguments.before.resolve())
    speed = multiplications_per_second()
    print(f"{speed / 1e9:.1f} billion multiplications a second in a matrix product of this model\n")
    columns = "S / T", "method", "Inseq, s", "Captum, s", "before, s", "now, s", "Inseq / now", "before / now"
    print(f"| {' | '.join((*columns, 'bound, s', 'now / bound', 'difference'))} |\n{'|---' * 11}|")
    for lengths in (LENGTHS[each] for each in arguments.lengths.split(",")):
        for case in (each for each in CASES if each.name in arguments.methods.split(",")):
            if not (case.is_short_only and lengths is LENGTHS["long"]):
                print(row(ways, case, lengths, arguments.rounds, speed), flush=True)


class Way:
    """A process that runs attributions in one way: this project's engine of a tree, Inseq, or Captum."""

    def __init__(self, kind: str, tree: Path) -> None:
        self.kind = kind
        self._process = subprocess.Popen(
            [sys.executable, str(ROOT / "benchmarks" / "real_ways.py"), kind, str(FOLDER)],
            cwd=tree, env=os.environ | {"PYTHONPATH": str(tree)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, case: Case, texts: tuple[str, str], last: int | None) -> tuple[float, torch.Tensor | None] | None:
        """Processor seconds, and the scores [attributed, generated] if any; None where it has no such method."""
        to: IO[str] | None = self._process.stdin
        assert to is not None
        assert self._process.stdout is not None
        told = {"method": case.name, "arguments": case.arguments, "prompt": texts[0], "full": texts[1], "last": last}
        to.write(json.dumps(told) + "\n")
        to.flush()
        answer = json.loads(self._process.stdout.readline())
        if answer is None:
            return None
        scores = answer["scores"]
        return answer["seconds"], None if scores is None else torch.tensor(scores, dtype=torch.float64)


def row(ways: dict[str, Way], case: Case, lengths: Lengths, rounds: int, speed: float) -> str:
    """A line of the table."""
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    ids = tokenizer(TEXT).input_ids
    texts = tokenizer.decode(ids[: lengths.prompt]), tokenizer.decode(ids[: lengths.prompt + lengths.generated])
    last = LAST if lengths is LENGTHS["long"] else None
    seconds = dict.fromkeys(("now", "inseq", "captum", "before"), float("inf"))
    scores: dict[str, torch.Tensor] = {}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            is_ours = way.kind == "service"
            if turn and not is_ours and lengths is LENGTHS["long"]:
                continue  # minutes, and nothing that only a first run does
            if (found := way.run(case, texts, None if is_ours else last)) is None:
                continue
            spent, its = found
            if its is not None:
                scores[name] = its
            if turn or not is_ours:  # our first run probes the model
                share = 1.0 if is_ours else whole(case, lengths, last)
                seconds[name] = min(seconds[name], share * spent)
    now, least = seconds["now"], fewest(case, lengths)
    bound = least / speed if least else None
    cells = [
        f"{lengths.prompt} / {lengths.generated}", case.name,
        *(figure(seconds[name]) for name in ("inseq", "captum", "before", "now")),
        ratio(seconds["inseq"], now), ratio(seconds["before"], now),
        figure(bound), f"{now / bound:.2f}" if bound else "", difference(case, scores, last),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def whole(case: Case, lengths: Lengths, last: int | None) -> float:
    """How much longer all tokens take than the last ones."""
    work = [float(length**case.power) for length in lengths.prefixes]
    return sum(work) / sum(work[-(last or len(work)) :])


def figure(seconds: float | None) -> str:
    return f"{seconds:.2f}" if seconds is not None and seconds < float("inf") else ""


def ratio(theirs: float, ours: float) -> str:
    return f"**{theirs / ours:.1f}**" if theirs < float("inf") else ""


def difference(case: Case, scores: dict[str, torch.Tensor], last: int | None) -> str:
    """The largest difference from Inseq, or from the version before, relative to the largest score.

    Raises `AssertionError` above the tolerance.
    """
    other = "inseq" if case.has_reference else "before"
    if other not in scores:
        return ""
    ours, theirs = scores["now"], scores[other]
    columns = slice(-last, None) if last and other == "inseq" else slice(None)
    gaps = (ours[:, columns] - theirs[:, columns]).nan_to_num().abs().max()
    found = float(gaps / theirs[:, columns].nan_to_num().abs().max())
    if found > TOLERANCE:
        raise AssertionError(f"{case.name}: the scores differ by {found:.1e} of the largest")
    return f"{found:.0e}"


def multiplications_per_second() -> float:
    """Of one thread, in the product of 512 positions with a weight of the feed-forward layers."""
    a, b = torch.randn(512, 576), torch.randn(576, 1536)
    best = float("inf")
    for _ in range(20):
        began = time.process_time()
        for _ in range(5):
            a @ b
        best = min(best, (time.process_time() - began) / 5)
    return 512 * 576 * 1536 / best


def fewest(case: Case, lengths: Lengths) -> float | None:
    """The fewest multiplications with weights (attention's own are left out); None where it is not known.

    A forward of a position multiplies with each weight once, and a backward to the embeddings too. What a method
    cannot share between the generated tokens is counted for each of them.
    """
    hidden, inner, kept, layers, vocabulary = 576, 1536, 192, 30, 49_152
    behind = hidden * hidden + 3 * hidden * inner  # behind the values: the output projection and the feed-forward layer
    block = behind + hidden * hidden + 2 * hidden * kept
    body, head = layers * block, vocabulary * hidden
    longest, total, steps = lengths.prefixes[-1], sum(lengths.prefixes), lengths.generated
    forward = longest * body + steps * head
    own_forwards = total * body + steps * head
    # In the last block, only the keys and values of earlier positions remain.
    backward = total * (body - block) + 2 * total * hidden * kept + steps * head
    pairs = longest * (longest + 1) / 2  # of a changed position and one that it changes
    count = int(case.arguments.get("n_steps", case.arguments.get("n_samples", 0)))
    return {
        "attention": forward,
        "saliency": forward + backward,
        "input_x_gradient": forward + backward,
        "layer_gradient_x_activation": forward + backward,
        "deeplift": 2 * forward + backward,
        "layer_deeplift": 2 * forward + backward,
        "integrated_gradients": count * (forward + backward),
        "layer_integrated_gradients": count * (forward + backward),
        "gradient_shap": count * (own_forwards + backward),
        "lime": count * own_forwards,
        "occlusion": pairs * body + sum(min(steps, longest - each) for each in range(longest)) * head,
        "value_zeroing": forward + pairs * layers * behind,
        "sequential_integrated_gradients": count * sum(length**2 for length in lengths.prefixes) / 2 * 2 * body,
    }.get(case.name)


if __name__ == "__main__":
    main()
