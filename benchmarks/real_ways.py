"""Runs attributions in one way for `benchmarks.real`, which starts it: a line of JSON in, a line of JSON out.

A file of its own that imports nothing of `benchmarks`: it runs in the checkout of an earlier version, too.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import inseq
import torch
from captum.attr import (
    FeatureAblation,
    LayerGradientXActivation,
    LayerIntegratedGradients,
    Lime,
    LLMAttribution,
    LLMGradientAttribution,
    TextTokenInput,
)
from transformers import AutoModelForCausalLM, AutoTokenizer

Run = Callable[[dict[str, Any]], torch.Tensor | None]
GRADIENTS = {
    "input_x_gradient": LayerGradientXActivation, "layer_gradient_x_activation": LayerGradientXActivation,
    "integrated_gradients": LayerIntegratedGradients, "layer_integrated_gradients": LayerIntegratedGradients,
}  # fmt: skip
PERTURBATIONS = {"occlusion": FeatureAblation, "lime": Lime}


def main(kind: str, model: Path) -> None:
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    with torch.random.fork_rng():
        run = {"service": service, "inseq": by_inseq, "captum": by_captum}[kind](model)
        for line in sys.stdin:
            answers.write(json.dumps(measured(run, json.loads(line))) + "\n")
            answers.flush()


def measured(run: Run, case: dict[str, Any]) -> dict[str, Any] | None:
    """Processor seconds and scores; None where this way has no such method."""
    torch.manual_seed(0)
    began = time.process_time()
    try:
        scores = run(case)
    except NotImplementedError:
        return None
    return {"seconds": time.process_time() - began, "scores": None if scores is None else scores.tolist()}


def service(model: Path) -> Run:
    """This project's engine, of the tree in which the process runs: a whole job, without HTTP and storage."""
    from attribution.engine import AttributionEngine
    from attribution.results import stored_form
    from models import AttributionRequest
    from settings import Settings

    engine = AttributionEngine(Settings(data_dir=Path(tempfile.mkdtemp()), model_dirs=(str(model.parent),)))

    def run(case: dict[str, Any]) -> torch.Tensor:
        body = {"model": model.name, "method": case["method"], "input_text": case["prompt"], "seed": 0}
        more = {"generated_text": case["full"], "attribution_args": case["arguments"], "step_scores": ["probability"]}
        request = engine.check(AttributionRequest(**body, **more))
        stored = engine.run(request, device="cpu", report=lambda _: None, should_cancel=lambda: False)
        return summed(stored_form.decode(stored[0].content))

    return run


def by_inseq(model: Path) -> Run:
    """Inseq called directly."""
    loaded = inseq.load_model(str(model), "dummy", device="cpu", model_kwargs={"attn_implementation": "eager"})

    def run(case: dict[str, Any]) -> torch.Tensor:
        if case["method"] in {"value_zeroing", "reagent"}:  # fails on Llama with this Transformers; downloads a tagger
            raise NotImplementedError
        length = len(loaded.encode(case["full"]).input_ids[0])
        more: dict[str, Any] = {"attr_pos_start": length - case["last"]} if case["last"] else {}
        if case["method"] != "attention":  # for which Inseq has none
            more["step_scores"] = ["probability"]
        output = loaded.attribute(
            case["prompt"],
            generated_texts=case["full"],
            method=case["method"],
            attribution_args=dict(case["arguments"]),
            show_progress=False,
            **more,
        )
        return summed(output)

    return run


def by_captum(model: Path) -> Run:
    """Captum's attribution of language models: log-probabilities, the tokens of the prompt alone, no step scores."""
    network = AutoModelForCausalLM.from_pretrained(model, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(model)

    def run(case: dict[str, Any]) -> None:
        prompt, target = case["prompt"], case["full"].removeprefix(case["prompt"])
        if case["last"]:
            ids = tokenizer(case["full"]).input_ids
            prompt, target = (tokenizer.decode(each) for each in (ids[: -case["last"]], ids[-case["last"] :]))
        given = TextTokenInput(prompt, tokenizer)
        if of_layer := GRADIENTS.get(case["method"]):
            LLMGradientAttribution(of_layer(network, network.get_input_embeddings()), tokenizer).attribute(
                given, target=target, **case["arguments"]
            )
        elif perturbation := PERTURBATIONS.get(case["method"]):
            LLMAttribution(perturbation(network), tokenizer).attribute(
                given, target=target, use_cached_outputs=False, **case["arguments"]
            )
        else:
            raise NotImplementedError

    return run


def summed(output: Any) -> torch.Tensor:
    """The scores of the first text, [attributed, generated]: those of dimensions, layers or heads added up."""
    scores: torch.Tensor = output.sequence_attributions[0].target_attributions.double()
    return scores.flatten(2).sum(-1) if scores.dim() > 2 else scores


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
