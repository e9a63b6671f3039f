"""Measures the most that jobs could gain by running as one batch: `python -m benchmarks.batching`.

Runs the forward and the vector-Jacobian products of all steps of B texts as the single pass does (split at the last
attention, products batched), once text by text and once padded on the right into one batch. Tokenization, Inseq's data
classes and storage, which a batch cannot share, are left out. `even` texts have equal lengths, so there is no padding,
unlike in any real queue; `mixed` ones have 16 to 64 prompt tokens and 8 to 32 generated ones. Both ways alternate in
one run, with one intra-op thread; the results are compared, and the minimum processor and wall time of the rounds is
reported. The last line is JSON.
"""

from __future__ import annotations

import os
import tempfile

# Before torch is imported.
os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "INSEQ_ARTIFACTS_CACHE": tempfile.mkdtemp()}

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import inseq
import torch

from attribution.single_pass.activations import cached_derivatives
from attribution.single_pass.batch_sizes import rows_at_once
from attribution.single_pass.network import SplitModel, pull_back
from benchmarks.random_models import SIZES, build, quiet

_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Text:
    """A text's embeddings up to its last step and their baselines ([length, width]), and its steps' target ids."""

    embeddings: torch.Tensor
    baseline: torch.Tensor
    first: int  # the position that predicts the first target
    targets: torch.Tensor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="small,medium")
    parser.add_argument("--batches", default="2,4,8,16")
    parser.add_argument(
        "--points", default="1,20", help="rows of each text: 1 for gradients, n_steps of integrated ones"
    )
    parser.add_argument("--lengths", default="even,mixed")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    quiet()
    rows = []
    print(
        "| model | lengths | points | batch | apart, ms a job | together, ms a job | gain | gain, wall | difference |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        for size in (each for each in SIZES if each.name in arguments.sizes.split(",")):
            build(size, Path(scratch) / size.name)
            model = inseq.load_model(str(Path(scratch) / size.name), "dummy", device="cpu")
            model.model.requires_grad_(False)
            split_model = SplitModel(model)
            for lengths in arguments.lengths.split(","):
                for points in map(int, arguments.points.split(",")):
                    for count in map(int, arguments.batches.split(",")):
                        batch = random_texts(split_model, size.vocabulary, count, lengths)
                        rows.append({"model": size.label, "lengths": lengths, "points": points, "batch": count}
                                    | compare(split_model, batch, points, arguments.rounds))  # fmt: skip
                        print(row(rows[-1]), flush=True)
    print("\n" + json.dumps(rows))


def random_texts(split_model: SplitModel, vocabulary: int, count: int, lengths: str) -> list[Text]:
    """`count` random texts of even or mixed lengths."""
    generator = torch.Generator().manual_seed(count)
    embedding, positions = split_model.network.get_input_embeddings(), []
    for _ in range(count):
        prompt, steps = (int(torch.randint(*bounds, (), generator=generator)) for bounds in ((16, 65), (8, 33)))
        positions.append((40, 20) if lengths == "even" else (prompt, steps))
    found = []
    for prompt, steps in positions:
        ids = torch.randint(0, vocabulary, (prompt + steps,), generator=generator)
        baseline = torch.zeros_like(ids)
        found.append(Text(embedding(ids[:-1]), embedding(baseline[:-1]), prompt - 1, ids[prompt:]))
    return found


def compare(split_model: SplitModel, batch: list[Text], points: int, rounds: int) -> dict[str, Any]:
    """Seconds per text of both ways, and the largest difference of their results."""

    def apart() -> list[torch.Tensor]:
        return [gradients for text in batch for gradients in attributed(split_model, [text], points)]

    def together() -> list[torch.Tensor]:
        return attributed(split_model, batch, points)

    taken: dict[str, list[tuple[float, float]]] = {"apart": [], "together": []}
    found: dict[str, list[torch.Tensor]] = {}
    with cached_derivatives(split_model.network):
        for _ in range(rounds + 1):  # one to warm up
            for name, way in (("apart", apart), ("together", together)):
                wall, processor = time.perf_counter(), time.process_time()
                found[name] = way()
                taken[name].append((time.process_time() - processor, time.perf_counter() - wall))
    gap = max(
        float((a - b).abs().max() / a.abs().max()) for a, b in zip(found["apart"], found["together"], strict=True)
    )
    assert gap <= _TOLERANCE, f"the results differ by {gap:.1e} of the largest value"
    figures = {
        f"{name}_{what}": min(each[place] for each in times[1:]) / len(batch)
        for name, times in taken.items()
        for place, what in enumerate(("processor", "wall"))
    }
    return figures | {"difference": gap}


def attributed(split_model: SplitModel, texts: list[Text], points: int) -> list[torch.Tensor]:
    """For each text the gradients of its steps ([steps, length, width]), averaged over `points` of the path."""
    embeddings = torch.nn.utils.rnn.pad_sequence([each.embeddings for each in texts], batch_first=True)
    baselines = torch.nn.utils.rnn.pad_sequence([each.baseline for each in texts], batch_first=True)
    length = embeddings.shape[1]
    at_once = max(1, min(points, rows_at_once(split_model, length, with_graph=True) // len(texts)))
    sums: list[torch.Tensor] = []
    for start in range(0, points, at_once):
        alphas = torch.arange(start + 1, min(start + at_once, points) + 1) / points
        found = _piece(split_model, texts, embeddings, baselines, alphas)
        sums = [a + b for a, b in zip(sums, found, strict=True)] if sums else found
    return [
        gradients[: len(text.targets), : len(text.embeddings)] / points
        for gradients, text in zip(torch.stack(sums, 1), texts, strict=True)
    ]


def _piece(
    split_model: SplitModel, texts: list[Text], embeddings: torch.Tensor, baselines: torch.Tensor, alphas: torch.Tensor
) -> list[torch.Tensor]:
    """For each step of the longest target, all texts' gradients ([texts, length, width]), summed over points."""
    count, length, _ = embeddings.shape
    shift = torch.zeros_like(embeddings).requires_grad_()
    path = baselines[:, None] + alphas[None, :, None, None] * (embeddings - baselines)[:, None]  # [texts, points, ...]
    rows = (path + shift[:, None]).flatten(0, 1)
    window = slice(min(each.first for each in texts), max(each.first + len(each.targets) for each in texts))
    graph = split_model.graph(rows, positions=window)
    steps = max(len(each.targets) for each in texts)
    # The position of each row's steps in the window, and whether the row has that step.
    places = torch.tensor([[each.first - window.start + step for step in range(steps)] for each in texts])
    exists = torch.tensor([[step < len(each.targets) for step in range(steps)] for each in texts])
    places = (places * exists).repeat_interleave(len(alphas), 0)
    exists = exists.repeat_interleave(len(alphas), 0)
    targets = torch.nn.utils.rnn.pad_sequence([each.targets for each in texts], batch_first=True)
    leaf = graph.states.detach()[torch.arange(len(rows))[:, None], places].requires_grad_()
    probabilities = split_model.logits(leaf.flatten(0, 1)).reshape(*places.shape, -1).softmax(-1)
    read = probabilities.gather(-1, targets.repeat_interleave(len(alphas), 0)[..., None])[..., 0]
    (gradients,) = torch.autograd.grad((read * exists).sum(), leaf)
    at_states = torch.zeros_like(graph.states)
    at_states.index_put_((torch.arange(len(rows))[:, None], places), gradients, accumulate=True)
    at_leaves = graph.gradients_at_leaves(at_states)
    at_once, found = max(1, rows_at_once(split_model, len(rows) * length, with_graph=False)), []
    everything = torch.arange(len(rows))[None]
    for first in range(0, steps, at_once):
        chosen = places[:, first : first + at_once].T  # [steps, rows]
        real = exists[:, first : first + at_once].T
        cotangents = []
        for index, (anchor, gradients) in enumerate(zip(graph.anchors, at_leaves, strict=True)):
            if index < graph.step_leaves:
                each = gradients[everything, chosen]
                cotangents.append(each * real.reshape(*real.shape, *(1,) * (each.dim() - 2)))
                continue
            wide = anchor.new_zeros((len(chosen), *anchor.shape))
            place = window.start + chosen
            order = torch.arange(len(chosen))[:, None]
            wide[order, everything, place] = gradients[everything, place] * real[..., None]
            cotangents.append(wide)
        (pulled,) = pull_back(graph.anchors, (shift,), tuple(cotangents))
        found += list(pulled)
    assert len(found) == steps
    assert found[0].shape[0] == count
    return found


def row(each: dict[str, Any]) -> str:
    gain, wall = (each[f"apart_{what}"] / each[f"together_{what}"] for what in ("processor", "wall"))
    apart, together = (1000 * each[f"{name}_processor"] for name in ("apart", "together"))
    return (
        f"| {each['model']} | {each['lengths']} | {each['points']} | {each['batch']} "
        f"| {apart:.1f} | {together:.1f} | **{gain:.2f}** | {wall:.2f} | {each['difference']:.0e} |"
    )


if __name__ == "__main__":
    main()
