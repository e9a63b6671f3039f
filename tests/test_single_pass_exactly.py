"""The single pass in float64, against plain autograd: equal to twelve digits, with nothing of Inseq or Captum between."""

from __future__ import annotations

import pytest
import torch

from attribution.engine import AttributionEngine
from attribution.inseq_loop import engine_calls
from attribution.run.method_run import Runner
from models import AttributionRequest
from settings import Settings
from tests.families import FAMILIES, build
from tests.first_principles import Plain

TEXT, TARGET = "The quick brown", "fox jumps over"
DIGITS = 1e-12
# Their attention or their norms compute in float32 whatever the model's type, and that rounding is what is left.
FLOAT32_INSIDE = {"llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3", "phi3", "bloom"}


def gradients(plain, step):
    return plain.gradient(plain.embedded(step), step)[0]


def riemann(plain, step):
    """The mean of the gradients at the middles of four equal parts of the path; a quarter is exact in any precision."""
    x, b = plain.embedded(step), plain.embedded(step, baseline=True)
    alphas = torch.tensor([0.125, 0.375, 0.625, 0.875], dtype=x.dtype)[:, None, None]
    return plain.gradient(b + alphas * (x - b), step).mean(0) * (x - b)[0]


def occluded(plain, step):
    x, b = plain.embedded(step), plain.embedded(step, baseline=True)
    rows = x.repeat(x.shape[1], 1, 1)
    for position in range(x.shape[1]):
        rows[position, position] = b[0, position]
    with torch.no_grad():
        at_input = plain.probability(plain.logits(step, x), step)
        return (at_input - plain.probability(plain.logits(step, rows), step)).abs()


CASES = {
    "saliency": ({}, lambda plain, step: gradients(plain, step).abs()),
    "input_x_gradient": ({}, lambda plain, step: gradients(plain, step) * plain.embedded(step)[0]),
    "integrated_gradients": ({"n_steps": 4, "method": "riemann_middle"}, riemann),
    "occlusion": ({}, occluded),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("exact")
    for name in FAMILIES:
        build(name, root / name)
    return root


@pytest.mark.parametrize("method", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_first_principles(folder, tmp_path, monkeypatch, family, method):
    target = TARGET if FAMILIES[family].is_encoder_decoder else f"{TEXT} {TARGET}"
    arguments, expected = CASES[method]
    plain = Plain(folder / family, TEXT, target, dtype=torch.float64)
    if plain.unknown is None:
        plain.unknown = plain.tokenizer.pad_token_id
    found = []
    steps_of = engine_calls.steps_of

    def recorded(*given):
        for column in steps_of(*given):
            found.append(column.scores[0][0])
            yield column

    monkeypatch.setattr(engine_calls, "steps_of", recorded)
    engine = AttributionEngine(Settings(data_dir=tmp_path, model_dirs=(str(folder),)))
    request = engine.check(
        AttributionRequest(
            model=family, method=method, input_text=TEXT, generated_text=target, attribution_args=arguments,
            engine="single_pass",
        )
    )  # fmt: skip
    # Inseq keeps scores in float32, so what is compared is what it is given.
    with engine._models.lease(family, device="cpu", dtype="float64") as loaded:
        Runner(
            request, loaded, report=lambda _: None, should_cancel=lambda: False, expected_seconds=lambda _: 0.0,
            max_input_tokens=100,
        ).run()  # fmt: skip
    columns = found[-len(plain.steps) :]
    for step, column in zip(plain.steps, columns, strict=True):
        theirs = expected(plain, step)
        assert column.dtype == torch.float64
        digits = 1e-6 if family in FLOAT32_INSIDE else DIGITS
        assert float((column - theirs).abs().max()) <= digits * float(theirs.abs().max())
