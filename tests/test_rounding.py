"""A probe tells the rounding of a deep network, which may be large, from a difference that is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers as t

from attribution.engine import AttributionEngine
from attribution.results import stored_form
from attribution.run import engine_probe
from attribution.run.rounding import SAME
from attribution.single_pass import method_dispatch
from models import AttributionRequest
from problems import Cancelled
from settings import Settings
from tests.conftest import BUNDLED
from tests.families import FAMILIES, GROUPED, LLAMA, Family, build, build_family

USUAL = 1e-4
SMOLLM2 = "smollm2-135m-instruct-q4"


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    root = tmp_path_factory.mktemp("rounding")
    build("llama", root / "shallow")
    deep = {**GROUPED, "num_hidden_layers": 30, "initializer_range": 0.6}
    build_family(Family(t.LlamaConfig, t.LlamaForCausalLM, deep, LLAMA, prepends_bos=True), root / "deep")
    return AttributionEngine(Settings(data_dir=root / "data", model_dirs=(str(root),)))


@pytest.fixture(autouse=True)
def fresh(engine):
    """No verdicts of other tests."""
    for model in ("shallow", "deep"):
        with engine._models.lease(model, device="cpu", dtype="float32") as loaded:
            loaded.verdicts.clear()


def info(engine, model, method="saliency", **more):
    body = {"model": model, "method": method, "input_text": "12345", "generated_text": "1234567",
            "attribution_args": {"n_steps": 4} if method == "integrated_gradients" else {}, **more}  # fmt: skip
    request = engine.check(AttributionRequest(**body))
    parts = engine.run(request, device="cpu", report=lambda _: None, should_cancel=lambda: False)
    return stored_form.decode(parts[0].content).info


def planted(monkeypatch, error):
    """Make the single pass's saliency wrong by `error`, relative to each score."""
    saliency = method_dispatch.saliency

    def wrong(part, *, absolute):
        for result in saliency(part, absolute=absolute):
            yield type(result)(tuple(each * (1 + error) for each in result.scores), step_scores=result.step_scores)

    monkeypatch.setattr(method_dispatch, "saliency", wrong)


@pytest.mark.parametrize("method", ["saliency", "integrated_gradients"])
def test_the_rounding_of_a_deep_network_is_no_difference(engine, monkeypatch, method):
    """Rounding differs between processors, so that of this one is enlarged to twice the usual tolerance."""
    found, difference = [], engine_probe.largest_difference

    def enlarged(ours, theirs):
        found.append(difference(ours, theirs))
        return 2 * USUAL if len(found) == 1 else found[-1]

    monkeypatch.setattr(engine_probe, "largest_difference", enlarged)
    check = info(engine, "deep", method)
    assert check["engine"] == "single_pass"
    assert found[0] < 2 * USUAL  # as enlarged
    assert check["engine_check"]["largest_difference"] == 2 * USUAL
    assert check["engine_check"]["largest_difference_in_float64"] == found[1] <= SAME
    assert check["engine_check"]["tolerance"] == 5e-4  # of a text that is checked again, at most


@pytest.mark.parametrize("error", [3e-4, 5e-5])
@pytest.mark.parametrize("model", ["deep", "shallow"])
def test_a_difference_is_found(engine, monkeypatch, model, error):
    """Also one that float32's rounding could have made."""
    planted(monkeypatch, error)
    check = info(engine, model)
    assert check["engine"] == "inseq"
    assert "other numbers" in check["engine_check"]["reason"]
    # All scores are wrong by this factor; float64 and the float32 of stored scores (6e-8) round far below it.
    assert check["engine_check"]["largest_difference_in_float64"] == pytest.approx(error, rel=0.01)
    assert check["engine_check"]["tolerance"] == USUAL


def test_a_difference_that_no_rounding_makes_needs_no_float64(engine, monkeypatch):
    planted(monkeypatch, 1e-3)
    check = info(engine, "shallow")
    assert check["engine"] == "inseq"
    assert check["engine_check"]["largest_difference"] == pytest.approx(1e-3, rel=0.01)  # rounding: 1e-5
    assert "largest_difference_in_float64" not in check["engine_check"]


@pytest.mark.parametrize(
    "family",
    [
        "gpt2",
        "llama",
        *(pytest.param(each, marks=pytest.mark.slow) for each in FAMILIES if each not in {"gpt2", "llama"}),
    ],
)
def test_every_family_computes_in_float64(engine, monkeypatch, family):
    """Where a norm or softmax is float32 whatever the dtype, too: the engines agree there as float64 results do."""
    folder = Path(engine._settings.model_dirs[0]) / f"family-{family}"
    build(family, folder)
    monkeypatch.setattr(engine_probe, "DOUBTED", -1.0)
    is_encoder_decoder = FAMILIES[family].is_encoder_decoder
    check = info(engine, folder.name, generated_text="fox" if is_encoder_decoder else "12345 fox")["engine_check"]
    assert check["largest_difference_in_float64"] <= SAME
    assert "reason" not in check


@pytest.mark.slow
@pytest.mark.skipif(not (BUNDLED / SMOLLM2).exists(), reason="`make smollm2` makes the model")
@pytest.mark.parametrize("method", ["saliency", "integrated_gradients", "deeplift", "gradient_shap", "occlusion"])
def test_a_real_deep_model_keeps_the_single_pass(engine, method):
    """Integrated gradients of SmolLM2 differ by 9.85e-5 of the largest score on the probe, all of it rounding."""
    text = "The capital of France is"
    check = info(engine, SMOLLM2, method, input_text=text, generated_text=f"{text} Paris.")
    assert check["engine"] == "single_pass"
    assert check["engine_check"].get("largest_difference_in_float64", 0.0) <= SAME


def test_what_is_far_below_the_tolerance_is_not_computed_again(engine, monkeypatch):
    monkeypatch.setattr(engine_probe, "_difference_in_float64", lambda *_: pytest.fail("it was computed"))
    check = info(engine, "shallow")
    assert check["engine"] == "single_pass"
    assert check["engine_check"]["tolerance"] == USUAL


def test_without_the_memory_the_usual_tolerance_decides(engine, monkeypatch):
    monkeypatch.setattr(engine_probe, "fits_in_float64", lambda _: False)
    planted(monkeypatch, 5e-5)
    check = info(engine, "shallow")
    assert check["engine"] == "single_pass"
    # A tenth for the rounding of float32: 5e-6 of the largest score, in a network of two layers.
    assert check["engine_check"]["largest_difference"] == pytest.approx(5e-5, rel=0.1)
    assert "largest_difference_in_float64" not in check["engine_check"]


@pytest.mark.parametrize("error", [None, RuntimeError, Cancelled])
def test_the_network_is_as_it_was(engine, monkeypatch, error):
    """The very tensors in float32, whatever happened in float64."""
    with engine._models.lease("deep", device="cpu", dtype="float32") as loaded:
        before = [*loaded.network.parameters(), *loaded.network.buffers()]
    addresses = [(each.dtype, each.data_ptr()) for each in before]
    monkeypatch.setattr(engine_probe, "DOUBTED", -1.0)
    run, seen = engine_probe._ProbeRun.output, []

    def output(self, how):
        seen.append(self.loaded.network.dtype)
        if error is not None and seen[-1] is torch.float64:
            raise error
        return run(self, how)

    monkeypatch.setattr(engine_probe._ProbeRun, "output", output)
    if error is Cancelled:
        with pytest.raises(Cancelled):
            info(engine, "deep")
    else:
        found = info(engine, "deep")
        check = found["engine_check"]
        # Without float64 the usual tolerance decides. How far float32 rounds depends on the processor.
        is_trusted = error is None or check["largest_difference"] <= USUAL
        assert found["engine"] == ("single_pass" if is_trusted else "inseq")
    assert torch.float64 in seen
    after = [*loaded.network.parameters(), *loaded.network.buffers()]
    assert [(each.dtype, each.data_ptr()) for each in after] == addresses
    assert all(one is other for one, other in zip(after, before, strict=True))
