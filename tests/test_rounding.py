"""A probe tells the rounding of a deep network, which may be large, from a difference that is none."""

from __future__ import annotations

import pytest
import torch
import transformers as t

from attribution.engine import AttributionEngine
from attribution.results import stored_form
from attribution.run import engine_probe
from attribution.single_pass import method_dispatch
from models import AttributionRequest
from settings import Settings
from tests.families import GROUPED, LLAMA, Family, build, build_family

USUAL = 1e-4


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


def info(engine, model, method="saliency"):
    body = {"model": model, "method": method, "input_text": "12345", "generated_text": "1234567",
            "attribution_args": {"n_steps": 4} if method == "integrated_gradients" else {}}  # fmt: skip
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
    assert 2 * USUAL == check["engine_check"]["largest_difference"] < check["engine_check"]["tolerance"] <= 5e-4


@pytest.mark.parametrize(("model", "error"), [("deep", 1e-3), ("shallow", 1e-3), ("shallow", 5e-5)])
def test_a_difference_is_found(engine, monkeypatch, model, error):
    """A thousandth in any model, and in a shallow one half of what would be rounding in a deep one."""
    planted(monkeypatch, error)
    check = info(engine, model)
    assert check["engine"] == "inseq"
    assert "other numbers" in check["engine_check"]["reason"]
    assert check["engine_check"]["tolerance"] <= USUAL


def test_what_is_far_below_the_tolerance_is_not_measured(engine, monkeypatch):
    monkeypatch.setattr(engine_probe, "rounding_tolerance", lambda *_: pytest.fail("it was measured"))
    check = info(engine, "shallow")
    assert check["engine"] == "single_pass"
    assert check["engine_check"]["tolerance"] == USUAL


def test_measuring_leaves_nothing_behind(engine, monkeypatch):
    """The hooks are removed, the process's generator did not draw, and one that fails costs the tolerance alone."""
    clean = info(engine, "deep")
    with engine._models.lease("deep", device="cpu", dtype="float32") as loaded:
        before = sum(len(module._forward_hooks) for module in loaded.network.modules())
        state = torch.get_rng_state()
        loaded.verdicts.clear()
        monkeypatch.setattr(engine_probe, "_DOUBTED", 0.0)
    again = info(engine, "deep")
    assert again["engine"] == clean["engine"] == "single_pass"
    assert sum(len(module._forward_hooks) for module in loaded.network.modules()) == before
    assert torch.equal(torch.get_rng_state(), state)

    def failing(*_):
        raise RuntimeError

    loaded.verdicts.clear()
    monkeypatch.setattr(engine_probe, "rounding_tolerance", failing)
    monkeypatch.setattr(engine_probe, "TOLERANCE", {torch.float32: 1.0})
    assert info(engine, "deep")["engine_check"]["tolerance"] == 1.0
