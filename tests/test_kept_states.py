"""The step scores of `attention` come from its own forward, with the numbers of Inseq's loop."""

from __future__ import annotations

import pytest

from attribution.engine import AttributionEngine
from attribution.results import stored_form
from models import AttributionRequest
from settings import Settings
from tests.families import build, family_params

CHOSEN = ("gpt2", "llama", "gemma2", "bart", "t5")


@pytest.fixture(scope="module")
def engine(tmp_path_factory, model_dir):
    return AttributionEngine(Settings(data_dir=tmp_path_factory.mktemp("data"), model_dirs=(str(model_dir),)))


def scores_and_forwards(runner, **body):
    """The step scores, and how many times the network ran."""
    request, forwards = runner.check(AttributionRequest(**body)), []
    with runner._models.in_use(request.model, device="cpu", dtype=request.dtype) as loaded:
        handle = loaded.network.register_forward_pre_hook(lambda *_: forwards.append(1))
        try:
            parts = runner.run(request, device="cpu", report=lambda _: None, should_cancel=lambda: False)
        finally:
            handle.remove()
    return stored_form.decode(parts[0].content).sequence_attributions[0], len(forwards)


@pytest.mark.parametrize("family", family_params(*CHOSEN))
def test_attention_with_step_scores_is_one_forward(engine, model_dir, family):
    if not (model_dir / family).exists():
        build(family, model_dir / family)
    text = "red cat sees"
    encoder_decoder = family in {"bart", "t5"}
    body = {
        "model": family, "method": "attention", "input_text": text,
        "generated_text": "a dog runs" if encoder_decoder else f"{text} a dog runs",
        "step_scores": ["probability", "entropy", "logit"],
    }  # fmt: skip
    theirs, _ = scores_and_forwards(engine, **body, engine="inseq")
    scores_and_forwards(engine, **body)  # measures and probes the model
    ours, forwards = scores_and_forwards(engine, **body)
    assert forwards == 1
    assert ours.step_scores.keys() == theirs.step_scores.keys()
    for name, expected in theirs.step_scores.items():
        assert ours.step_scores[name].shape == expected.shape
        # Float32's rounding of a forward with other kernels, as for the single pass.
        assert float((ours.step_scores[name] - expected).abs().max()) <= 1e-5 * float(expected.abs().max()), name
