"""Texts on either side of the lengths at which a model changes, against plain Transformers, prefix by prefix."""

from __future__ import annotations

import pytest
import torch
import transformers as t

from attribution.catalogue.length_changes import Effect, LengthChange, length_changes
from attribution.engine import AttributionEngine
from attribution.estimates.passes import Shape
from attribution.estimates.probe_shapes import probe_shapes
from attribution.results import stored_form
from models import AttributionRequest
from problems import InputRejected, UnsupportedByModel
from settings import Settings
from tests.families import GROUPED, LLAMA, Family, build, build_family
from tests.first_principles import Plain

LIMIT = 10  # of the families `longrope` and `dynamic-ntk`
DIGITS = "0123456789" * 70  # one token each, behind a BOS token
# Prompt and target in tokens, with BOS: the prefixes of the steps are below, on both sides of, or beyond the limit.
TEXTS = {"below": (6, 10), "straddling": (8, 14), "beyond": (12, 16)}
METHODS = ["saliency", "integrated_gradients", "occlusion", "attention"]
WINDOW = 600


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("lengths")


@pytest.fixture(scope="module")
def engine(root):
    for name in ("longrope", "dynamic-ntk"):
        build(name, root / name)
    long = {**GROUPED, "max_position_embeddings": 1000, "sliding_window": WINDOW}
    folder = root / "long-window"
    build_family(Family(t.MistralConfig, t.MistralForCausalLM, long, LLAMA, prepends_bos=True), folder)
    tokenizer = t.AutoTokenizer.from_pretrained(folder)
    tokenizer.model_max_length = 1000
    tokenizer.save_pretrained(folder)
    return AttributionEngine(Settings(data_dir=root / "data", model_dirs=(str(root),)))


def run(engine, model, method, lengths, way="auto", **more):
    prompt, target = (DIGITS[: length - 1] for length in lengths)
    body = {"model": model, "method": method, "input_text": prompt, "generated_text": target, "engine": way,
            "attribution_args": {"n_steps": 8} if method == "integrated_gradients" else {},
            "step_scores": ["probability"]} | more  # fmt: skip
    request = engine.check(AttributionRequest(**body))
    parts = engine.run(request, device="cpu", report=lambda _: None, should_cancel=lambda: False)
    return stored_form.decode(parts[0].content)


def plain_model(folder, lengths):
    """In plain Transformers; its rotary positions forget the longest text before each forward, as in a new model."""
    prompt, target = (DIGITS[: length - 1] for length in lengths)
    plain = Plain(folder, prompt, target)
    rotary = plain.network.model.rotary_emb

    def as_new(*_):
        rotary.max_seq_len_cached = rotary.original_max_seq_len
        rotary.inv_freq = rotary.original_inv_freq.clone()

    plain.network.register_forward_pre_hook(as_new)
    return plain


def expected(plain, method):
    """[attributed, generated(, hidden)] by definition, each step from a forward of its own prefix."""

    def occluded(step):
        x, b = plain.embedded(step), plain.embedded(step, baseline=True)
        whole = plain.probability(plain.logits(step, x), step)
        rows = [torch.cat([x[:, :j], b[:, j : j + 1], x[:, j + 1 :]], 1) for j in range(step)]
        return torch.stack([whole - plain.probability(plain.logits(step, row), step) for row in rows]).abs()

    of_step = {
        "saliency": lambda step: plain.gradient(plain.embedded(step), step)[0].abs(),
        "integrated_gradients": lambda step: plain.integrated(step, 8),
        "occlusion": occluded,
    }[method]
    return plain.scores(of_step).squeeze(-1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("place", TEXTS)
@pytest.mark.parametrize("model", ["longrope", "dynamic-ntk"])
def test_rescaled_positions(engine, root, model, place, method):
    """Each step has the positions of its own prefix; the single pass runs where all steps have the same."""
    prompt, target = TEXTS[place]
    ours = run(engine, model, method, (prompt, target))
    plain = plain_model(root / model, (prompt, target))
    (sequence,) = ours.sequence_attributions
    assert sequence.step_scores["probability"].numpy() == pytest.approx(plain.probabilities(), rel=1e-4)
    warned = any("rescales all positions" in each for each in ours.info["warnings"])
    moves = place == "straddling" or (place == "beyond" and model == "dynamic-ntk")
    assert warned == (method == "attention" and moves)
    if method == "attention":
        return
    theirs = expected(plain, method)
    assert torch.equal(sequence.target_attributions.isnan(), theirs.isnan())
    off = (sequence.target_attributions - theirs).nan_to_num().abs().max() / theirs.nan_to_num().abs().max()
    assert off < 1e-4
    assert ours.info["engine"] == ("inseq" if moves else "single_pass")
    if moves:
        assert "rescales all positions" in ours.info["engine_check"]["reason"]
        with pytest.raises(UnsupportedByModel, match="rescales all positions"):
            run(engine, model, method, (prompt, target), way="single_pass")


def test_dynamic_positions_have_their_own_limit(engine):
    """They are made for `factor` times max_position_embeddings."""
    assert run(engine, "dynamic-ntk", "dummy", (38, 40)).sequence_attributions[0].attr_pos_end == 40
    with pytest.raises(InputRejected, match="the model allows 40"):
        run(engine, "dynamic-ntk", "dummy", (38, 41))


class LooksAheadWhenLong(torch.nn.Module):
    """Not causal in texts longer than the window alone."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + hidden[:, -1:] if hidden.shape[1] > WINDOW else hidden


def test_long_texts_are_probed_at_their_length(engine):
    """Behind 512 tokens too, where the text has enough steps for a probe to cost less than Inseq's loop."""
    method, windows = "occlusion", {"attribution_args": {"sliding_window_shapes": [300, 32], "strides": 300}}
    few = run(engine, "long-window", method, (WINDOW + 1, WINDOW + 4), **windows).info
    assert few["engine"] == "inseq"
    assert "take longer than Inseq's loop" in few["engine_check"]["reason"]
    for first in (WINDOW - 4, WINDOW + 1):
        check = run(engine, "long-window", method, (first, first + 10), **windows).info
        assert check["engine"] == "single_pass"
        assert check["engine_check"]["probe_tokens"] > WINDOW
    # Once it was probed, short texts have the verdict too.
    assert run(engine, "long-window", method, (WINDOW + 1, WINDOW + 4), **windows).info["engine"] == "single_pass"


@pytest.mark.parametrize("first", [WINDOW - 4, WINDOW + 1])
def test_what_only_long_texts_show_is_found(engine, first):
    with engine._models.lease("long-window", device="cpu", dtype="float32") as loaded:
        ahead = LooksAheadWhenLong()
        handle = loaded.network.model.layers[0].register_forward_hook(lambda _module, _arguments, output: ahead(output))
        verdicts = dict(loaded.verdicts)
        loaded.verdicts.clear()
    try:
        assert run(engine, "long-window", "saliency", (20, 24)).info["engine"] == "single_pass"
        info = run(engine, "long-window", "saliency", (first, first + 10)).info
        assert info["engine"] == "inseq"
        assert "other numbers" in info["engine_check"]["reason"]
    finally:
        handle.remove()
        loaded.verdicts.clear()
        loaded.verdicts.update(verdicts)


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        (t.MistralConfig(sliding_window=7), [LengthChange(7)]),
        (t.Qwen2Config(use_sliding_window=False), []),
        (t.LlamaConfig(), []),
        (t.GPTNeoConfig(window_size=16), [LengthChange(16)]),
        (t.LEDConfig(attention_window=[6, 8]), [LengthChange(6), LengthChange(8)]),
        (t.LongT5Config(local_radius=5, global_block_size=3), [LengthChange(3), LengthChange(5)]),
        (t.BigBirdPegasusConfig(block_size=2, num_random_blocks=1), [LengthChange(2), LengthChange(14)]),
        (t.Llama4TextConfig(attention_chunk_size=9), [LengthChange(9)]),
        (t.RecurrentGemmaConfig(attention_window_size=11), [LengthChange(11)]),
        (t.Mamba2Config(chunk_size=12), [LengthChange(12)]),
        (
            t.Phi3Config(
                sliding_window=5,
                original_max_position_embeddings=20,
                rope_parameters={"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 48,
                                 "long_factor": [2.0] * 48},
            ),
            [LengthChange(5), LengthChange(20, Effect.RESCALED_ONCE)],
        ),
        (
            t.LlamaConfig(
                max_position_embeddings=9,
                rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
            ),
            [LengthChange(9, Effect.RESCALED_ALWAYS)],
        ),
    ],
    ids=lambda each: each.model_type if hasattr(each, "model_type") else "",
)  # fmt: skip
def test_lengths_in_configurations(config, changes):
    assert length_changes(config) == changes


@pytest.mark.parametrize(
    ("lengths", "text", "shapes"),
    [
        ((), (30, 60), [Shape(0, 6, 9)]),
        ((8,), (3, 9), [Shape(0, 6, 9)]),  # the last step has eight tokens before it
        ((4,), (2, 5), [Shape(0, 2, 5)]),
        ((8,), (3, 20), [Shape(0, 7, 11)]),
        ((8,), (9, 20), [Shape(0, 9, 12)]),
        ((2,), (9, 20), [Shape(0, 6, 9)]),
        ((8, 600), (9, 20), [Shape(0, 9, 12)]),
        ((8, 600), (9, 700), [Shape(0, 9, 12), Shape(0, 599, 603)]),
        ((8, 600), (3, 700), [Shape(0, 7, 11), Shape(0, 599, 603)]),
        ((8, 600), (601, 700), [Shape(0, 601, 604)]),
    ],
)  # fmt: skip
def test_probes_stand_to_each_length_as_the_text_does(lengths, text, shapes):
    changes = [LengthChange(each) for each in lengths]
    assert probe_shapes(changes, [Shape(0, *text)], limit=1000, is_encoder_decoder=False) == shapes


@pytest.mark.parametrize(
    ("text", "shape"), [((5, 1, 4), (8, 1, 4)), ((9, 1, 4), (12, 1, 4)), ((9, 1, 20), (12, 7, 11))]
)  # fmt: skip
def test_probes_of_encoder_decoders(text, shape):
    found = probe_shapes([LengthChange(8)], [Shape(*text)], limit=None, is_encoder_decoder=True)
    assert found == [Shape(*shape)]
