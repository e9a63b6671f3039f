"""The single pass in float64 equals plain autograd, without Inseq or Captum, to twelve digits."""

from __future__ import annotations

import math

import pytest
import torch
from transformers.models.bloom.modeling_bloom import BloomGelu

from attribution.engine import AttributionEngine
from attribution.inseq_loop import engine_calls
from attribution.model_cache.loading import ModelKey, load
from attribution.run.method_run import Runner
from attribution.run.request_progress import RequestProgress
from attribution.run.rounding import Float64Throughout
from attribution.run.time_plan import TimePlan
from attribution.text.sandbox import Sandboxes, TextSandbox
from models import AttributionRequest
from settings import Settings
from tests.families import FAMILIES, build
from tests.first_principles import Plain

TEXT, TARGET = "The quick brown", "fox jumps over"
# Relative to the largest score. Measured: at most 2e-14, with AVX2 and without vector instructions. Other processors
# round in another order, with the same error bound for each operation.
DIGITS = 1e-12


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
    found = []
    steps_of = engine_calls.step_results

    def recorded(*given):
        for column in steps_of(*given):
            found.append(column.scores[0][0])
            yield column

    monkeypatch.setattr(engine_calls, "step_results", recorded)
    engine = AttributionEngine(Settings(data_dir=tmp_path, model_dirs=(str(folder),)))
    request = engine.check(
        AttributionRequest(
            model=family, method=method, input_text=TEXT, generated_text=target, attribution_args=arguments,
            engine="single_pass",
        )
    )  # fmt: skip
    # In this thread, which alone runs in float64 throughout: rotary models compute their frequencies when they are loaded.
    source = engine._models.sources.resolve(family)
    loaded = load(source, ModelKey(family, source.revision, device="cpu", dtype="float64"))
    sandbox = TextSandbox(Sandboxes(seconds=60, memory=2**30), source, lambda: False)
    # Inseq stores scores in float32, so compare the scores before they are passed to Inseq's classes.
    progress = RequestProgress(lambda _: None)
    Runner(
        request, loaded, progress=progress, plan=TimePlan(request, loaded, engine._estimator, progress),
        should_cancel=lambda: False, most_n_steps=2000, max_input_tokens=100, sandbox=sandbox,
    ).run()  # fmt: skip
    columns = found[-len(plain.steps) :]
    for step, column in zip(plain.steps, columns, strict=True):
        theirs = expected(plain, step)
        assert column.dtype == torch.float64
        assert float((column - theirs).abs().max()) <= DIGITS * float(theirs.abs().max())
