"""Occlusion of long texts computes attention in blocks of queries, with Inseq's numbers and without whole maps."""

from __future__ import annotations

import pytest

from attribution.engine import AttributionEngine
from attribution.results import stored_form
from attribution.single_pass import blockwise_attention
from models import AttributionRequest
from settings import Settings
from tests import reference
from tests.families import FAMILIES, build, family_params

# Decoders that call Transformers' AttentionInterface. All but gemma2 use fused attention.
PIECEWISE = {"gpt2", "llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3", "phi3", "gptneox", "opt"}
TEXT, TARGET = "0123456789" * 3, "0123456789" * 3 + "01234"


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    root = tmp_path_factory.mktemp("long")
    for name in FAMILIES:
        build(name, root / name)
    return AttributionEngine(Settings(data_dir=root / "data", model_dirs=(str(root),)))


def run(engine, family, way):
    target = "34567" if FAMILIES[family].is_encoder_decoder else TARGET
    request = AttributionRequest(
        model=family, method="occlusion", input_text=TEXT, generated_text=target, engine=way,
        step_scores=["probability"], attribution_args={"perturbations_per_eval": 3},
    )  # fmt: skip
    parts = engine.run(engine.check(request), device="cpu", report=lambda _: None, should_cancel=lambda: False)
    return stored_form.decode(parts[0].content)


@pytest.mark.parametrize("family", family_params())
def test_attention_in_pieces(engine, monkeypatch, family):
    """With blocks of four queries, scores equal Inseq's."""
    for name, value in (("_CPU_SCORES", 1), ("_FEWEST", 4), ("_FEWEST_FUSED", 4)):
        monkeypatch.setattr(blockwise_attention, name, value)
    run(engine, family, "single_pass")  # the first run also measures speed and probes the model
    shapes = []

    def watched(attend):
        def attention(module, query, key, *arguments, **more):
            shapes.append((query.shape[2], key.shape[2]))
            return attend(module, query, key, *arguments, **more)

        return attention

    with monkeypatch.context() as patch:
        patch.setattr(blockwise_attention, "attend", watched(blockwise_attention.attend))
        ours = run(engine, family, "single_pass")
    assert bool(shapes) == (family in PIECEWISE)
    if shapes:
        longest = max(keys for _, keys in shapes)
        assert max(queries for queries, _ in shapes) == 4
        assert {keys for _, keys in shapes} > {4, 8, longest}  # keys after the last query of a block are left out
    theirs = run(engine, family, "inseq")
    assert (ours.info["engine"], theirs.info["engine"]) == ("single_pass", "inseq")
    reference.assert_same_sequence(ours.sequence_attributions[0], theirs.sequence_attributions[0])


def test_of_the_last_attention_only_what_steps_read(engine, monkeypatch):
    """In the last block, attention is computed only for the queries of the five steps."""
    asked = []
    attention = blockwise_attention.attend

    def watched(module, query, *arguments, **more):
        asked.append((module.layer_idx, query.shape[2]))
        return attention(module, query, *arguments, **more)

    run(engine, "gpt2", "single_pass")
    monkeypatch.setattr(blockwise_attention, "attend", watched)
    run(engine, "gpt2", "single_pass")
    assert max(queries for layer, queries in asked if layer == 0) == len(TARGET) - 1
    assert {1, 5} <= {queries for layer, queries in asked if layer == 1} <= {1, 2, 3, 4, 5}


def test_the_models_own_attention_is_put_back(engine):
    run(engine, "gpt2", "single_pass")
    with engine._models.lease("gpt2", device="cpu", dtype="float32") as loaded:
        assert loaded.network.config._attn_implementation == "eager"
