"""Corrections of methods: Inseq's value or failure, the value from first principles, and ours.

The first part of a test fails once Inseq is correct; then remove the correction.
"""

from __future__ import annotations

import shutil

import inseq
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from attribution.corrections import layer_reruns
from attribution.corrections import value_zeroing as value_zeroing_correction
from attribution.corrections.reagent import word_classes
from attribution.corrections.registry import Ledger
from attribution.engine import AttributionEngine
from attribution.model_cache.lean_forwards import lean_forwards
from models import AttributionRequest
from problems import UnsupportedByModel
from settings import Settings
from tests import chat_models, reference
from tests.conftest import BUNDLED, LOOKUP, PHRASEBOOK, PROMPT, SENTENCE
from tests.families import FAMILIES, build
from tests.first_principles import Plain, value_zeroing

TEXT, TARGET = "The quick brown", "fox jumps over"
FORCED = PROMPT + " milk. Ben"
# Families for which Inseq's value_zeroing fails with Transformers 5, and which call `eager_attention_forward`.
ZEROED = ["gpt2", "llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3", "phi3", "gptneox", "opt"]


def forced(name):
    return TARGET if FAMILIES[name].is_encoder_decoder else f"{TEXT} {TARGET}"


def family(model_dir, name):
    folder = model_dir / name
    return folder if folder.exists() else build(name, folder)


def run(server, tmp_path, **body):
    """Run a job and load its result with Inseq; `info` is the service's."""
    job_id = server.run(**body)
    file = tmp_path / "result.json"
    file.write_bytes(server.client.get(f"/attribution/jobs/{job_id}/results?format=inseq").content)
    return inseq.FeatureAttributionOutput.load(file)


def scores(output):
    (sequence,) = output.sequence_attributions
    return sequence.target_attributions if sequence.source_attributions is None else sequence.source_attributions


def assert_scores(ours, expected, rtol=1e-3):
    found = scores(ours)
    assert torch.equal(found.isnan(), expected.isnan())
    size = float(expected.nan_to_num().abs().max())
    assert size > 0
    torch.testing.assert_close(found, expected.float(), rtol=rtol, atol=rtol * size, equal_nan=True)


@pytest.mark.parametrize("name", ZEROED)
def test_value_zeroing(server, model_dir, tmp_path, name):
    path = family(model_dir, name)
    with pytest.raises((ValueError, TypeError)):
        reference.attribute(path, TEXT, "value_zeroing", generated_texts=forced(name))
    expected = value_zeroing(Plain(path, TEXT, forced(name)))
    ours = run(server, tmp_path, model=name, method="value_zeroing", input_text=TEXT, generated_text=forced(name))
    found = scores(ours)[: len(expected)]
    assert float(expected.nan_to_num().max()) > 0.1
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-3, atol=1e-5)
    assert ours.info["corrections"] == ["value_zeroing_tensor_blocks"]


@pytest.mark.parametrize("name", ["gpt2", "llama", "bart", "mbart"])
def test_layer_methods(server, model_dir, tmp_path, name):
    """Layer methods at the embedding equal integrated gradients and gradient times embedding.

    DeepLIFT equals gradient times (embedding - baseline), since these models have no ReLU for its rescale rule.
    """
    path, is_encoder_decoder = family(model_dir, name), FAMILIES[name].is_encoder_decoder
    body = {"model": name, "input_text": TEXT, "generated_text": forced(name)}
    for method in ("layer_integrated_gradients", "layer_deeplift", "layer_gradient_x_activation"):
        if is_encoder_decoder:
            with pytest.raises(AssertionError, match="Forward hook did not obtain any outputs"):
                reference.attribute(path, TEXT, method, generated_texts=forced(name))
        elif method != "layer_gradient_x_activation":  # Inseq is right for this one
            theirs = reference.attribute(path, TEXT, method, generated_texts=forced(name))
            assert not scores(theirs).nan_to_num().any()
    plain = Plain(path, TEXT, forced(name))
    x, b = plain.embedded, lambda step: plain.embedded(step, baseline=True)
    ours = run(server, tmp_path, **body, method="layer_integrated_gradients", n_steps=20)
    assert_scores(ours, plain.scores(lambda step: plain.integrated(step, 20)))
    assert "layer_methods_follow_their_input" in ours.info["corrections"]
    ours = run(server, tmp_path, **body, method="layer_gradient_x_activation")
    assert_scores(ours, plain.scores(lambda step: (plain.gradient(x(step), step) * x(step))[0]))
    ours = run(server, tmp_path, **body, method="layer_deeplift")
    assert_scores(ours, plain.scores(lambda step: (plain.gradient(x(step), step) * (x(step) - b(step)))[0]))
    assert ("layer_methods_hook_the_encoder" in ours.info["corrections"]) == is_encoder_decoder


def test_a_layer_by_its_name(server, tmp_path):
    """At a block: gradient times activation, and integrated gradients that sum to f(input) - f(baseline)."""
    body = {"model": LOOKUP, "input_text": PROMPT, "generated_text": FORCED}
    plain = Plain(BUNDLED / LOOKUP, PROMPT, FORCED)
    kept = []

    def keep(module, args, output):
        kept.append(output if isinstance(output, torch.Tensor) else output[0])

    plain.network.transformer.h[0].register_forward_hook(keep)

    def expected(step):
        kept.clear()
        value = plain.probability(plain.logits(step, plain.embedded(step).requires_grad_()), step)
        (gradient,) = torch.autograd.grad(value.sum(), kept[0])
        return (gradient * kept[0])[0].detach()

    arguments = {"target_layer": "transformer.h.0"}
    ours = run(server, tmp_path, **body, method="layer_gradient_x_activation", attribution_args=arguments)
    assert_scores(ours, plain.scores(expected))
    ours = run(
        server, tmp_path, **body, method="layer_integrated_gradients", attribution_args={**arguments, "n_steps": 300}
    )
    total = scores(ours).nansum((0, 2))
    with torch.no_grad():
        differences = [
            float(plain.probability(plain.logits(step), step))
            - float(plain.probability(plain.logits(step, plain.embedded(step, baseline=True)), step))
            for step in plain.steps
        ]
    np.testing.assert_allclose(total.numpy(), differences, atol=1e-3)


@pytest.mark.parametrize("name", ["marian", "pegasus", "marian-own"])
def test_embeddings_are_scaled_once(server, model_dir, tmp_path, name):
    path = family(model_dir, name)
    plain = Plain(path, TEXT, TARGET)
    arguments = {"generated_texts": TARGET, "step_scores": ["probability"]}
    theirs = reference.attribute(path, TEXT, "saliency", **arguments)
    assert not np.allclose(theirs[0].step_scores["probability"].numpy(), plain.probabilities(), rtol=0.05)
    body = {"model": name, "input_text": TEXT, "generated_text": TARGET, "step_scores": ["probability"]}
    ours = run(server, tmp_path, **body, method="saliency")
    np.testing.assert_allclose(ours[0].step_scores["probability"].numpy(), plain.probabilities(), rtol=1e-4)
    assert_scores(ours, plain.scores(lambda step: plain.gradient(plain.embedded(step), step)[0].abs()))
    corrections = ["decoder_embeddings_of_its_own"] * (name == "marian-own") + ["embeddings_scaled_once"]
    assert ours.info["corrections"] == corrections

    attention = run(server, tmp_path, **body, method="attention")
    with torch.no_grad():
        weights = plain.network(
            input_ids=plain.source, decoder_input_ids=plain.target[:, :-1], output_attentions=True
        ).cross_attentions
    expected = torch.stack([each[0] for each in weights]).permute(3, 2, 0, 1)  # [source, generated, layer, head]
    assert_scores(attention, expected)

    off = run(server, tmp_path, **body, method="saliency", corrections=False)
    np.testing.assert_allclose(scores(off).numpy(), scores(theirs).numpy(), rtol=1e-4, atol=1e-6)
    assert off.info["corrections"] == []
    assert all(each in off.info["warnings"][0] for each in corrections)


def test_a_model_that_computes_something_else_from_embeddings_is_refused(server, model_dir):
    """FSMT makes no causal mask if its decoder gets embeddings, and that cannot be corrected.

    Its configuration shows it before the queue; trying a model that is loaded shows it of every model.
    """
    family(model_dir, "fsmt")
    body = {"model": "fsmt", "method": "saliency", "input_text": TEXT, "generated_text": TARGET}
    answer = server.client.post("/attribution/jobs", json=body)
    assert answer.status_code == 422
    assert "no causal mask" in answer.json()["errors"][0]["detail"]
    engine = AttributionEngine(Settings(model_dirs=(str(model_dir),)))
    with pytest.raises(UnsupportedByModel, match="other logits from its embeddings"):
        engine.run(AttributionRequest(**body), device="cpu", report=lambda _: None, should_cancel=lambda: False)


@pytest.mark.parametrize("method", ["saliency", "occlusion", "attention"])
def test_reformer_is_refused_before_the_queue(server, model_dir, method):
    """It failed with advice to train it."""
    family(model_dir, "reformer")
    body = {"model": "reformer", "method": method, "input_text": TEXT, "generated_text": f"{TEXT} {TARGET}"}
    answer = server.client.post("/attribution/jobs", json=body)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/method"
    assert "training mode alone" in answer.json()["errors"][0]["detail"]


@pytest.mark.parametrize(
    "method", ["lime", "gradient_shap", pytest.param("discretized_integrated_gradients", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(server, model_dir, tmp_path, method, dtype):
    """With equal draws, scores are close to those of the same weights in float32."""
    path, kind = family(model_dir, "llama"), getattr(torch, dtype)
    arguments = {"n_samples": 8} if method in {"lime", "gradient_shap"} else {"n_steps": 8}
    call = {"generated_texts": forced("llama"), "attribution_args": arguments}
    if (method, dtype) != ("lime", "float16"):  # Inseq fails for all others
        with pytest.raises((RuntimeError, TypeError), match=r"dtype|BFloat16"):
            reference.attribute(path, TEXT, method, init_args={"model_kwargs": {"dtype": kind}}, **call)
    rounded = tmp_path / "rounded"
    AutoModelForCausalLM.from_pretrained(path, dtype=kind).float().save_pretrained(rounded)
    AutoTokenizer.from_pretrained(path).save_pretrained(rounded)
    expected = scores(reference.attribute(rounded, TEXT, method, seed=2, **call))
    ours = run(
        server, tmp_path, model="llama", method=method, input_text=TEXT, generated_text=forced("llama"), dtype=dtype,
        attribution_args=arguments, seed=2,
    )  # fmt: skip
    difference = (scores(ours) - expected).nan_to_num().norm() / expected.nan_to_num().norm()
    assert difference < (0.1 if dtype == "bfloat16" else 0.03)
    assert ours.info["corrections"] == ["half_precision_inputs"]


@pytest.mark.slow
def test_discretized_paths_in_pieces(server, model_dir, tmp_path):
    """Inseq fails with internal_batch_size; in pieces of it, the scores are those of one forward with all points."""
    path, method = family(model_dir, "gpt2"), "discretized_integrated_gradients"
    pieces = {"n_steps": 8, "internal_batch_size": 3}
    with pytest.raises(KeyError, match="method"):
        reference.attribute(path, TEXT, method, generated_texts=forced("gpt2"), attribution_args=dict(pieces))
    theirs = reference.attribute(path, TEXT, method, generated_texts=forced("gpt2"), attribution_args={"n_steps": 8})
    ours = run(
        server, tmp_path, model="gpt2", method=method, input_text=TEXT, generated_text=forced("gpt2"),
        attribution_args=pieces, engine="inseq",
    )  # fmt: skip
    assert_scores(ours, scores(theirs), rtol=1e-5)  # the sums of eight points in other pieces
    assert ours.info["corrections"] == ["discretized_path_pieces"]


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("gradient_shap", {"n_samples": 8}),
        pytest.param("discretized_integrated_gradients", {"n_steps": 8}, marks=pytest.mark.slow),
    ],
)
def test_convergence_delta(server, model_dir, tmp_path, method, arguments):
    """Deltas are sum - (f(input) - f(baseline)); Inseq swaps the ends for DIG, uses one sample for gradient SHAP."""
    path = family(model_dir, "gpt2")
    plain = Plain(path, TEXT, forced("gpt2"))
    with torch.no_grad():
        ends = [
            float(plain.probability(plain.logits(step), step))
            - float(plain.probability(plain.logits(step, plain.embedded(step, baseline=True)), step))
            for step in plain.steps
        ]
    asked = {**arguments, "return_convergence_delta": True}
    theirs = reference.attribute(path, TEXT, method, generated_texts=forced("gpt2"), attribution_args=dict(asked))
    expected = (scores(theirs).nansum((0, 2)) - torch.tensor(ends)).numpy()
    assert not np.allclose(theirs[0].step_scores["deltas"].numpy(), expected, rtol=0.05)
    ours = run(
        server, tmp_path, model="gpt2", method=method, input_text=TEXT, generated_text=forced("gpt2"),
        attribution_args=asked,
    )  # fmt: skip
    np.testing.assert_allclose(ours[0].step_scores["deltas"].numpy(), expected, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(ours.info["convergence"][0]["delta"], expected, rtol=1e-3, atol=1e-6)
    assert ours.info["corrections"] == ["convergence_delta"]


def test_reagent_needs_no_download(server, tmp_path):
    """ReAGent runs without nltk data, which Inseq downloads; a token has one word class, known words the true one."""
    unseen = shutil.copytree(BUNDLED / LOOKUP, tmp_path / "unseen")  # word classes are cached by this name
    with pytest.raises(LookupError, match="averaged_perceptron_tagger"):
        inseq.load_model(str(unseen), "reagent", device="cpu")
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED / LOOKUP)
    classes = word_classes(tokenizer)
    ids = sorted(index for each in classes.values() for index in each)
    assert ids == list(range(tokenizer.vocab_size))
    words = {tag: {tokenizer.decode([index]).strip() for index in indices} for tag, indices in classes.items()}
    assert {"Anna", "Ben"} <= words["NNP"]
    assert "." in words["PUNCT"]
    assert {"tea", "milk"} <= words["NN"]
    assert "plums" in words["NNS"]
    arguments = {"max_probe_steps": 20, "num_probes": 2}
    job_id = server.run(model=LOOKUP, method="reagent", input_text=PROMPT, attribution_args=arguments)
    assert server.result(job_id)["info"]["corrections"] == ["reagent_word_classes"]


def test_reagent_with_added_tokens(server, model_dir, tmp_path):
    """ReAGent works for tokens with ids after the base vocabulary, such as Llama 3's BOS; Inseq fails."""
    path = model_dir / "chat-llama3"
    if not path.exists():
        chat_models.build(path.name, path)
    arguments = {"max_probe_steps": 20, "num_probes": 2, "stopping_condition_top_k": 320}
    text, target = "<|begin_of_text|>The quick", "<|begin_of_text|>The quick fox"
    with pytest.raises(IndexError):
        reference.attribute(path, text, "reagent", init_args=arguments, generated_texts=target)
    ours = run(
        server, tmp_path, model=path.name, method="reagent", input_text=text, generated_text=target,
        attribution_args=arguments,
    )  # fmt: skip
    assert ours.info["corrections"] == ["reagent_added_tokens", "reagent_word_classes"]
    assert not scores(ours)[: ours[0].attr_pos_start].isnan().any()
    assert scores(ours).nansum() != 0


def test_reagent_replaces_added_tokens_by_their_like(model_dir):
    """A replacement has the word class of the token that it replaces; added tokens are a class of their own."""
    from inseq.attr.feat import FeatureAttribution

    from attribution.corrections.reagent import correct_added_tokens, seed_word_classes
    from attribution.corrections.registry import Ledger

    path = model_dir / "chat-llama3"
    if not path.exists():
        chat_models.build(path.name, path)
    model = inseq.load_model(str(path), "dummy", device="cpu")
    seed_word_classes(model.tokenizer, path.name)
    method = FeatureAttribution.load("reagent", attribution_model=model)
    ids = torch.arange(len(model.tokenizer))[None]
    correct_added_tokens(method, model.tokenizer, ids, Ledger(enabled=True))
    classes = {index: tag for tag, each in word_classes(model.tokenizer).items() for index in each}
    sampler = method.method.rationalizer.importance_score_evaluator.token_replacer.sampler
    for _ in range(20):
        replaced = sampler(ids)[0].tolist()
        assert [classes.get(index, "added") for index in replaced] == [
            classes.get(index, "added") for index in ids[0].tolist()
        ]


def test_reagent_draws_within_a_word_class(monkeypatch):
    """Also a draw of the largest float32 below 1, which Inseq rounds up to the next class, or behind all of them."""
    from inseq.attr.feat import FeatureAttribution

    from attribution.corrections.reagent import correct_draws, seed_word_classes

    model = inseq.load_model(str(BUNDLED / LOOKUP), "dummy", device="cpu")
    seed_word_classes(model.tokenizer, LOOKUP)
    method = FeatureAttribution.load("reagent", attribution_model=model)
    ids = torch.arange(model.tokenizer.vocab_size)[None]
    classes = {index: tag for tag, each in word_classes(model.tokenizer).items() for index in each}
    replacer = method.method.rationalizer.importance_score_evaluator.token_replacer
    theirs, ledger = replacer.sampler, Ledger(enabled=True)
    correct_draws(method, ledger)
    torch.manual_seed(0)
    expected = theirs(ids)
    torch.manual_seed(0)
    assert torch.equal(replacer.sampler(ids), expected)
    assert ledger.applied == []
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.full(shape, 1 - 2**-24))
    with pytest.raises(IndexError):
        theirs(ids)
    assert [classes[index] for index in replacer.sampler(ids)[0].tolist()] == [
        classes[index] for index in ids[0].tolist()
    ]
    assert ledger.applied == ["reagent_draws"]


def test_half_precision_is_not_the_default(server):
    info = server.result(server.run(model=PHRASEBOOK, method="saliency", input_text=SENTENCE))["info"]
    assert info["dtype"] == "float32"
    assert info["corrections"] == []


@pytest.mark.parametrize("is_mixing", [False, True])
def test_a_layer_runs_alone_only_where_that_is_the_same(monkeypatch, is_mixing):
    """A block whose feed-forward layer also reads the position before is run in the whole model, token by token."""
    model = inseq.load_model(str(BUNDLED / LOOKUP), "value_zeroing", device="cpu")
    value_zeroing_correction.correct_value_zeroing(model.attribution_method, model, Ledger(enabled=True))
    if is_mixing:
        for block in model.model.transformer.h:
            block.mlp.register_forward_hook(lambda _, __, output: output + output.roll(1, 1))
    forwards = []
    model.model.register_forward_pre_hook(lambda *_: forwards.append(1))

    def attributed():
        forwards.clear()
        with lean_forwards(model):  # no cache, as in a job
            target = model.attribute(PROMPT, generated_texts=f"{PROMPT} tea.", show_progress=False)
        return target.sequence_attributions[0].target_attributions

    found = attributed()
    assert (len(forwards) > 3) is is_mixing

    def refuse(*_, **__):
        raise layer_reruns.NotRerunnable

    monkeypatch.setattr(layer_reruns, "distances", refuse)
    # A distance is 1 minus a cosine near 1, whose sum of products rounds by about 1e-7; an order of its own, by tens of it.
    torch.testing.assert_close(found, attributed(), rtol=0, atol=2e-6, equal_nan=True)
    assert len(forwards) > 3
