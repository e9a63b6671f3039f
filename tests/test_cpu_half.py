"""Half precision on a CPU without it: the half-precision values of the weights, computed with in float32."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from attribution.engine import AttributionEngine
from attribution.model_cache import half_precision
from attribution.model_cache.cache import ModelCache
from attribution.results import stored_form
from models import AttributionRequest
from problems import InvalidRequest
from settings import Settings
from tests.families import FAMILIES, build

FAMILIES_HERE = ["llama", "gpt2", "t5"]  # T5 keeps some weights in float32 beside float16 ones
HALVES = ["bfloat16", "float16"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A model of each family with float32 weights, and the same weights in half precision and rounded to it."""
    root = tmp_path_factory.mktemp("half")
    for family in FAMILIES_HERE:
        kind = AutoModelForSeq2SeqLM if FAMILIES[family].is_encoder_decoder else AutoModelForCausalLM
        build(family, root / family)
        for dtype in HALVES:
            network = kind.from_pretrained(root / family, dtype=getattr(torch, dtype))
            network.save_pretrained(root / f"{family}-{dtype}")
            network.float().save_pretrained(root / f"{family}-rounded-{dtype}")
            for name in (f"{family}-{dtype}", f"{family}-rounded-{dtype}"):
                AutoTokenizer.from_pretrained(root / family).save_pretrained(root / name)
    return root


def new_engine(root, cpu_half):
    return AttributionEngine(
        Settings(data_dir=root / "data", model_dirs=(str(root),), cpu_half=cpu_half, estimate_seconds=60)
    )


@pytest.fixture(scope="module")
def engine(root):
    return new_engine(root, "float32")


def body(model, method="saliency", **more):
    text, target = "The quick brown", "fox jumps"
    is_encoder_decoder = FAMILIES[model.partition("-")[0]].is_encoder_decoder
    return AttributionRequest(
        model=model, method=method, input_text=text, generated_text=target if is_encoder_decoder else f"{text} {target}",
        step_scores=["probability"], attribution_args={"n_steps": 4} if method == "integrated_gradients" else {}, **more
    )  # fmt: skip


def run(engine, *arguments, **more):
    request = engine.check(body(*arguments, **more))
    parts = engine.run(request, device="cpu", report=lambda _: None, should_cancel=lambda: False)
    return stored_form.decode(parts[0].content)


def scores(output):
    (sequence,) = output.sequence_attributions
    sides = [sequence.source_attributions, sequence.target_attributions, sequence.step_scores["probability"]]
    return [each for each in sides if each is not None]


def assert_equal(ours, theirs):
    for mine, other in zip(scores(ours), scores(theirs), strict=True):
        assert torch.equal(mine.isnan(), other.isnan())
        assert torch.equal(mine.nan_to_num(), other.nan_to_num())


@pytest.mark.parametrize("method", ["saliency", "integrated_gradients"])
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("family", FAMILIES_HERE)
def test_numbers_are_those_of_the_same_weights_in_float32(engine, family, dtype, method):
    """Whether the files hold float32 or half-precision weights."""
    expected = run(engine, f"{family}-rounded-{dtype}", method)
    for model in (family, f"{family}-{dtype}"):
        ours = run(engine, model, method, dtype=dtype)
        assert_equal(ours, expected)
        assert (ours.info["dtype"], ours.info["compute_dtype"]) == (dtype, "float32")
        assert any("computed in float32" in each for each in ours.info["warnings"])
        assert ours.info["engine"] == "single_pass"
        assert ours.info["engine_check"]["tolerance"] == 1e-4
    assert (expected.info["dtype"], expected.info["compute_dtype"]) == ("float32", "float32")
    with pytest.raises(AssertionError):  # the weights were rounded
        assert_equal(run(engine, family, method), expected)


@pytest.mark.parametrize("dtype", HALVES)
def test_only_where_the_processor_has_no_half_precision(root, monkeypatch, dtype):
    def computed(cpu_half):
        cache = ModelCache(Settings(model_dirs=(str(root),), cpu_half=cpu_half))
        with cache.lease("llama", device="cpu", dtype=dtype) as loaded:
            assert bool(loaded.warnings) == (loaded.compute_dtype != dtype)
            assert cache.loaded_models()[0]["compute_dtype"] == loaded.compute_dtype
            return loaded.compute_dtype

    for is_native, expected in ((True, dtype), (False, "float32")):
        monkeypatch.setattr(half_precision, "is_native", lambda _, is_native=is_native: is_native)
        assert computed("auto") == expected
        assert half_precision.compute_dtype(dtype, "cuda:0", "auto") == dtype
        assert (computed("native"), computed("float32")) == (dtype, "float32")


def test_the_answer_of_torch_is_taken():
    """No products of half-precision matrices without oneDNN's kernels for them."""
    for dtype, name in (("bfloat16", "_is_mkldnn_bf16_supported"), ("float16", "_is_mkldnn_fp16_supported")):
        assert half_precision.is_native(dtype) == getattr(torch.ops.mkldnn, name)()


def test_memory_is_that_of_float32(engine, root, monkeypatch):
    full, half = (engine.estimate(body("llama-bfloat16", dtype=dtype)) for dtype in ("float32", "bfloat16"))
    assert half.dtype == "bfloat16"
    assert half.peak_memory_bytes == pytest.approx(full.peak_memory_bytes, rel=0.01)
    with engine._models.lease("llama-bfloat16", device="cpu", dtype="bfloat16") as loaded:
        weights = loaded.size
        assert weights >= 4 * sum(each.numel() for each in loaded.network.parameters())
    memory = type("Memory", (), {"total": 0.75 * weights, "free": 0.75 * weights})
    monkeypatch.setattr("attribution.estimates.estimator.memory_of", lambda _: memory)
    new_engine(root, "native").check(body("llama-bfloat16", dtype="bfloat16"))
    with pytest.raises(InvalidRequest, match="in float32"):
        engine.check(body("llama-bfloat16", dtype="bfloat16"))


def test_results_of_the_two_ways_are_not_shared(engine, root):
    request = body("llama", dtype="bfloat16")
    assert engine.result_identity(request) != new_engine(root, "native").result_identity(request)
