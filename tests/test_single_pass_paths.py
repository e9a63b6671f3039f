"""Layer methods, discretized and sequential integrated gradients: the single pass has the numbers of Inseq's loop."""

from __future__ import annotations

import pytest

from attribution.engine import AttributionEngine
from attribution.run.rounding import SAME, in_float64
from models import AttributionRequest
from settings import Settings
from tests.conftest import LOOKUP, PHRASEBOOK, PROMPT, SENTENCE
from tests.families import build
from tests.test_single_pass import assert_same, run

CASES = {
    "layer_gradient_x_activation": {}, "layer_deeplift": {}, "layer_integrated_gradients": {"n_steps": 4},
    "discretized_integrated_gradients": {"n_steps": 4}, "sequential_integrated_gradients": {"n_steps": 4},
}  # fmt: skip
TEXT, TARGET = "red cat sees", "a dog runs"
LAYERS = {  # the second of each is no cut through the network: the baseline also goes past it
    LOOKUP: ["transformer.h.0", "transformer.h.1.attn.c_proj", "transformer.h.1"],
    PHRASEBOOK: ["encoder.block.0.layer.1", "encoder.block.0.layer.0.SelfAttention.o"],
}
LAYER_CASES = [(model, layer) for model, layers in LAYERS.items() for layer in layers]


@pytest.fixture(scope="module")
def engine(tmp_path_factory, model_dir):
    return AttributionEngine(Settings(data_dir=tmp_path_factory.mktemp("data"), model_dirs=(str(model_dir),)))


def both(engine, rtol=1e-5, **body):
    """Run by both engines and compare everything in the results."""
    ours = run(engine, "single_pass", **body)
    assert_same(ours, run(engine, "inseq", **body), rtol)
    assert ours.info["engine"] == "single_pass"


@pytest.mark.parametrize("method", CASES)
# The others take the same seconds each.
@pytest.mark.parametrize(
    "family",
    [
        "llama",
        "t5",
        *(pytest.param(each, marks=pytest.mark.slow) for each in ("gpt2", "opt", "gemma2", "bloom", "bart", "mistral")),
    ],
)
def test_every_method_on_families(engine, model_dir, family, method):
    if not (model_dir / family).exists():
        build(family, model_dir / family)
    seq2seq = family in {"bart", "t5"}
    body = {
        "model": family, "method": method, "input_text": TEXT, "step_scores": ["probability"],
        "generated_text": TARGET if seq2seq else f"{TEXT} {TARGET}", "attribution_args": CASES[method],
    }  # fmt: skip
    both(engine, **body)


@pytest.mark.parametrize("method", [name for name in CASES if name.startswith("layer")])
@pytest.mark.parametrize(("model", "layer"), LAYER_CASES)
def test_layers_within_the_network(engine, model, layer, method):
    text = PROMPT if model == LOOKUP else SENTENCE
    arguments = {**CASES[method], "target_layer": layer}
    body = {"model": model, "method": method, "input_text": text, "attribution_args": arguments}
    # Integrals over a layer that is no cut are sums of large terms of both signs: in float32, their rounding is no
    # measure. In float64 it vanishes, and the scores are stored in float32 (`SAME`).
    with engine._models.in_use(model, device="cpu", dtype="float32") as loaded, in_float64(loaded.network):
        both(engine, **body, rtol=SAME)


@pytest.mark.parametrize("method", CASES)
def test_without_the_factor_of_the_inputs(engine, method):
    arguments = {**CASES[method], "multiply_by_inputs": method.startswith("discretized")}
    both(engine, model=LOOKUP, method=method, input_text=PROMPT, attribution_args=arguments)


@pytest.mark.parametrize("size", [1, 3])
def test_rows_are_bounded(engine, size):
    """Smaller pieces of a path have the same sums."""
    for method in ("layer_integrated_gradients", "sequential_integrated_gradients", "discretized_integrated_gradients"):
        body = {"model": LOOKUP, "method": method, "input_text": PROMPT}
        whole = run(engine, "single_pass", **body, attribution_args={"n_steps": 5})
        pieces = run(engine, "single_pass", **body, attribution_args={"n_steps": 5, "internal_batch_size": size})
        (a,), (b,) = whole.sequence_attributions, pieces.sequence_attributions
        difference = (a.target_attributions - b.target_attributions).nan_to_num().abs().max()
        assert float(difference) <= 1e-5 * float(a.target_attributions.nan_to_num().abs().max())


def test_a_layer_has_a_verdict_of_its_own(engine):
    """A probe of one layer says nothing of another."""
    for layer in LAYERS[LOOKUP]:
        arguments = {"target_layer": layer}
        body = {"model": LOOKUP, "method": "layer_gradient_x_activation", "attribution_args": arguments}
        run(engine, "auto", input_text=PROMPT, **body)
    request = engine.check(AttributionRequest(model=LOOKUP, method="dummy", input_text=PROMPT))
    with engine._models.in_use(LOOKUP, device="cpu", dtype=request.dtype) as loaded:
        found = {key[3] for key in loaded.verdicts if key[0] == "layer_gradient_x_activation"}
    assert found >= set(LAYERS[LOOKUP])
