"""The single pass in float64 equals plain autograd, without Inseq or Captum, to twelve digits."""

from __future__ import annotations

import math

import pytest
import torch
from transformers.models.bloom.modeling_bloom import BloomGelu

from attribution.engine import AttributionEngine
from attribution.run.rounding import Float64Throughout
from models import AttributionRequest
from settings import Settings
from tests.exact_columns import DIGITS, exact_columns
from tests.families import FAMILIES, build
from tests.first_principles import Plain

TEXT, TARGET = "The quick brown", "fox jumps over"


def gradients(plain, step):
    return plain.gradient(plain.embedded(step), step)[0]


def riemann(plain, step):
    """Integrated gradients by the midpoint rule with four parts; the weight 1/4 is exact in any precision."""
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
    return tmp_path_factory.mktemp("exact")


def gelu(_module, x):
    """The tanh approximation with all digits of sqrt(2 / pi)."""
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


@pytest.fixture(autouse=True)
def float64_throughout(monkeypatch):
    """Run Transformers' operations and constants in float64, for the expected and the actual scores."""
    # Bloom has sqrt(2 / pi) with eight digits, which is enough only for float32.
    monkeypatch.setattr(BloomGelu, "forward", gelu)
    with Float64Throughout():
        yield


# The others take the same seconds each, and run in `make test-slow`.
ALWAYS = {"gpt2", "llama", "t5"}


@pytest.mark.parametrize("method", CASES)
@pytest.mark.parametrize(
    "family", [each if each in ALWAYS else pytest.param(each, marks=pytest.mark.slow) for each in FAMILIES]
)
def test_equals_first_principles(folder, tmp_path, monkeypatch, family, method):
    target = TARGET if FAMILIES[family].is_encoder_decoder else f"{TEXT} {TARGET}"
    arguments, expected = CASES[method]
    if not (folder / family).exists():
        build(family, folder / family)
    plain = Plain(folder / family, TEXT, target, dtype=torch.float64)
    if plain.unknown is None:
        plain.unknown = plain.tokenizer.pad_token_id
    engine = AttributionEngine(Settings(data_dir=tmp_path, model_dirs=(str(folder),)))
    request = engine.check(
        AttributionRequest(
            model=family, method=method, input_text=TEXT, generated_text=target, attribution_args=arguments,
            engine="single_pass",
        )
    )  # fmt: skip
    columns = exact_columns(engine, request, monkeypatch)[-len(plain.steps) :]
    for step, column in zip(plain.steps, columns, strict=True):
        theirs = expected(plain, step)
        assert column.dtype == torch.float64
        assert float((column - theirs).abs().max()) <= DIGITS * float(theirs.abs().max())
