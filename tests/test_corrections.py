"""Corrections of texts, steps and step functions: Inseq's value or failure, first principles' value, and ours.

`test_corrections_methods` has the attribution methods. The first part of a test fails once Inseq is correct; then
remove the correction.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import set_seed

from tests import reference
from tests.conftest import BUNDLED, LOOKUP, PHRASEBOOK, PROMPT, SENTENCE
from tests.families import FAMILIES, build
from tests.first_principles import Plain
from tests.test_corrections_methods import assert_scores, run, scores

FORCED = PROMPT + " milk. Ben"
TRANSLATED = "il gatto rosso vede un cane"


@pytest.mark.parametrize("name", ["crossentropy", "perplexity"])
def test_crossentropy_of_one_sequence(server, name):
    with pytest.raises(Exception, match=r"dim|shape|batch|target|Expected"):
        reference.attribute(BUNDLED / LOOKUP, PROMPT, "dummy", generated_texts=FORCED, step_scores=[name])

    entropies = -Plain(BUNDLED / LOOKUP, PROMPT, FORCED).log_probabilities()
    expected = entropies if name == "crossentropy" else np.exp(entropies)

    job = {"model": LOOKUP, "input_text": PROMPT, "generated_text": FORCED, "step_scores": [name]}
    for method in ("dummy", "saliency"):
        result = server.result(server.run(method=method, **job))
        np.testing.assert_allclose(result["sequence_attributions"][0]["step_scores"][name], expected, rtol=1e-4)
        corrections = ["crossentropy_single_sequence", "perplexity_of_nats"]
        assert result["info"]["corrections"] == corrections[: 1 + (name == "perplexity")]
    attributed = server.result(
        server.run(method="occlusion", model=LOOKUP, input_text=PROMPT, generated_text=FORCED, attributed_fn=name)
    )
    assert attributed["info"]["attributed_fn"] == f"{name}_fn"


def test_dropout_scores_leave_the_next_step_alone(server):
    """Inseq leaves the model in train mode, so later probabilities have dropout; ours are computed without dropout."""
    names, target = ["mc_dropout_prob_avg", "probability"], TRANSLATED
    theirs = reference.attribute(BUNDLED / PHRASEBOOK, SENTENCE, "dummy", generated_texts=target, step_scores=names)
    expected = Plain(BUNDLED / PHRASEBOOK, SENTENCE, target).probabilities()

    assert not np.allclose(theirs.sequence_attributions[0].step_scores["probability"], expected, rtol=1e-3)
    ours = server.result(
        server.run(model=PHRASEBOOK, method="dummy", input_text=SENTENCE, generated_text=target, step_scores=names)
    )
    np.testing.assert_allclose(ours["sequence_attributions"][0]["step_scores"]["probability"], expected, rtol=1e-4)
    first = theirs.sequence_attributions[0].step_scores["mc_dropout_prob_avg"][0]  # Inseq's first step is right
    np.testing.assert_allclose(ours["sequence_attributions"][0]["step_scores"]["mc_dropout_prob_avg"][0], first, 1e-4)
    assert "mc_dropout_restores_eval" in ours["info"]["corrections"]


@pytest.mark.parametrize(("model", "text", "target", "contrast"), [
    (LOOKUP, PROMPT, FORCED, PROMPT + " tea. Emma"),
    (PHRASEBOOK, SENTENCE, TRANSLATED, "un cane nero vede il gatto"),
])  # fmt: skip
def test_contrastive_function_with_integrated_gradients(server, tmp_path, model, text, target, contrast):
    """Scores equal the integrated gradients of P(target) - P(contrast), both given the target's prefix."""
    arguments = {"contrast_targets": contrast}
    with pytest.raises(ValueError, match="Contrastive batch size"):
        reference.attribute(
            BUNDLED / model, text, "integrated_gradients", generated_texts=target, attributed_fn="contrast_prob_diff",
            attributed_fn_args=dict(arguments), attribution_args={"n_steps": 20},
        )  # fmt: skip
    plain = Plain(BUNDLED / model, text, target)
    other = Plain(BUNDLED / model, text, contrast).target[0]

    def difference(logits, step):
        probabilities = logits.softmax(-1)
        return probabilities[:, plain.target[0, step]] - probabilities[:, other[step]]

    ours = run(
        server, tmp_path, model=model, method="integrated_gradients", input_text=text, generated_text=target, n_steps=20,
        attributed_fn="contrast_prob_diff", attributed_fn_args=arguments,
    )  # fmt: skip
    assert_scores(ours, plain.scores(lambda step: plain.integrated(step, 20, difference)))
    assert ours.info["corrections"] == ["contrast_expanded_rows"]


def test_contrast_before_attr_pos_end(server, tmp_path):
    """Equals the probability of the contrast's token at the same position, given the contrast's prefix."""
    contrast = PROMPT + " tea. Emma likes"
    target = PROMPT + " milk. Ben likes"
    plain = Plain(BUNDLED / LOOKUP, PROMPT, contrast)
    end = plain.first + 2
    arguments = {"contrast_targets": contrast}
    theirs = reference.attribute(
        BUNDLED / LOOKUP, PROMPT, "dummy", generated_texts=target, attr_pos_end=end, step_scores=["contrast_prob"],
        step_scores_args=dict(arguments),
    )  # fmt: skip
    expected = plain.probabilities()[:2]
    assert not np.allclose(theirs[0].step_scores["contrast_prob"].numpy(), expected, rtol=0.01)
    ours = run(
        server, tmp_path, model=LOOKUP, method="dummy", input_text=PROMPT, generated_text=target, attr_pos_end=end,
        step_scores=["contrast_prob"], step_scores_args=arguments,
    )  # fmt: skip
    np.testing.assert_allclose(ours[0].step_scores["contrast_prob"].numpy(), expected, rtol=1e-4)
    assert ours.info["corrections"] == ["contrast_positions"]


def test_step_scores_keep_their_own_contrast(server, tmp_path):
    """Step scores use their own alignment; Inseq uses the attributed function's alignment for both."""
    target, own, other = FORCED, PROMPT + " tea. Emma", PROMPT + " milk tea. Emma"
    plain = Plain(BUNDLED / LOOKUP, PROMPT, other)
    first, end = plain.first, plain.first + 3
    pairs = [
        [[position, position + (position > first)] for position in range(first, end)]
    ]  # skips the additional word of the contrast
    attributed = {"contrast_targets": own}
    scored = {"contrast_targets": other, "contrast_targets_alignments": pairs}
    theirs = reference.attribute(
        BUNDLED / LOOKUP, PROMPT, "saliency", generated_texts=target, attributed_fn="contrast_prob_diff",
        attributed_fn_args=attributed | {"contrast_targets_alignments": [[(i, i) for i in range(end)]]},
        step_scores=["contrast_prob"], step_scores_args={**scored, "contrast_targets_alignments": None},
    )[0]  # fmt: skip
    expected = plain.probabilities()[[0, 2, 3]]
    assert not np.allclose(theirs.step_scores["contrast_prob"].numpy(), expected, rtol=0.01)
    body = {"model": LOOKUP, "method": "saliency", "input_text": PROMPT, "generated_text": target,
            "attributed_fn": "contrast_prob_diff", "attributed_fn_args": attributed}  # fmt: skip
    ours = run(server, tmp_path, **body, step_scores=["contrast_prob"], step_scores_args=scored)
    np.testing.assert_allclose(ours[0].step_scores["contrast_prob"].numpy(), expected, rtol=1e-4)
    assert ours.info["corrections"] == ["contrast_of_step_scores"]
    alone = run(server, tmp_path, **body)
    assert torch.equal(scores(ours).nan_to_num(), scores(alone).nan_to_num())


def test_decoder_attention_with_attr_pos_start(server, tmp_path):
    """Decoder self-attention equals plain Transformers' at all positions, also before `attr_pos_start`."""
    body = {"model": PHRASEBOOK, "method": "attention", "input_text": SENTENCE, "generated_text": TRANSLATED}
    plain = Plain(BUNDLED / PHRASEBOOK, SENTENCE, TRANSLATED)
    with torch.no_grad():
        weights = plain.network(
            input_ids=plain.source, decoder_input_ids=plain.target[:, :-1], output_attentions=True
        ).decoder_attentions
    expected = torch.stack([each[0] for each in weights]).permute(3, 2, 0, 1)  # [attended, attending, layer, head]
    theirs = reference.attribute(
        BUNDLED / PHRASEBOOK, SENTENCE, "attention", generated_texts=TRANSLATED, attr_pos_start=3
    )[0].sequence_scores["decoder_self_attentions"]
    assert theirs.shape[:2] != expected.shape[:2]
    ours = run(server, tmp_path, **body, attr_pos_start=3)
    found = ours[0].sequence_scores["decoder_self_attentions"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert ours.info["corrections"] == ["decoder_scores_from_the_start"]
    assert ours[0].source_attributions.shape[1] == ours[0].attr_pos_end - 3


@pytest.mark.parametrize("model", [LOOKUP, PHRASEBOOK])
@pytest.mark.parametrize("method", ["attention", "value_zeroing"])
def test_step_scores_of_final_step_methods(server, tmp_path, model, method):
    text, target = (PROMPT, FORCED) if model == LOOKUP else (SENTENCE, TRANSLATED)
    if (model, method) != (LOOKUP, "value_zeroing"):  # there, Inseq fails for another reason
        with pytest.raises(ValueError, match=r"tep.scores are not supported"):
            reference.attribute(BUNDLED / model, text, method, generated_texts=target, step_scores=["probability"])
    body = {"model": model, "method": method, "input_text": text, "generated_text": target}
    ours = run(server, tmp_path, **body, step_scores=["probability"])
    expected = Plain(BUNDLED / model, text, target).probabilities()
    np.testing.assert_allclose(ours[0].step_scores["probability"].numpy(), expected, rtol=1e-4)
    assert "final_step_step_scores" in ours.info["corrections"]
    alone = run(server, tmp_path, **body)
    assert torch.equal(scores(ours).nan_to_num(), scores(alone).nan_to_num())


@pytest.mark.parametrize("attribute_target", [False, True])
def test_attr_pos_end_of_an_encoder_decoder(server, tmp_path, attribute_target):
    """Positions 2 and 3 are requested; Inseq starts at 1 and has three steps."""
    body = {"attr_pos_start": 2, "attr_pos_end": 4, "attribute_target": attribute_target}
    plain = Plain(BUNDLED / PHRASEBOOK, SENTENCE, TRANSLATED)
    expected = plain.probabilities()[1:3]
    theirs = reference.attribute(
        BUNDLED / PHRASEBOOK, SENTENCE, "saliency", generated_texts=TRANSLATED, step_scores=["probability"], **body
    )[0]
    assert (theirs.attr_pos_start, theirs.attr_pos_end) == (1, 4)
    assert len(theirs.step_scores["probability"]) == 3
    ours = run(
        server, tmp_path, model=PHRASEBOOK, method="saliency", input_text=SENTENCE, generated_text=TRANSLATED,
        step_scores=["probability"], **body,
    )  # fmt: skip
    sequence = ours[0]
    assert (sequence.attr_pos_start, sequence.attr_pos_end) == (2, 4)
    assert [token.token for token in sequence.target] == [token.token for token in theirs.target]
    np.testing.assert_allclose(sequence.step_scores["probability"].numpy(), expected, rtol=1e-4)
    gradients = plain.scores(lambda step: plain.gradient(plain.embedded(step), step)[0].abs())[:, 1:3]
    assert_scores(ours, gradients)
    if attribute_target:
        assert sequence.target_attributions.shape[:2] == (4, 2)
    assert ours.info["corrections"] == ["attr_pos_end_encoder_decoder"]


@pytest.mark.parametrize("model", ["gpt2", "llama", "t5", "marian"])
def test_pad_token_inside_the_text(server, model_dir, tmp_path, model):
    """Pad tokens in the text (GPT-2 pads with its end of text) keep their row and gradient; Inseq drops them."""
    path = model_dir / model
    if not path.exists():
        build(model, path)
    pad = "<|endoftext|>" if model == "gpt2" else "</s>" if model == "llama" else "<pad>"
    text = f"The{pad} quick"
    target = "fox jumps" if FAMILIES[model].is_encoder_decoder else text + " fox jumps"
    theirs = reference.attribute(path, text, "saliency", generated_texts=target)[0]
    plain = Plain(path, text, target)
    rows = plain.source if plain.is_encoder_decoder else plain.target
    attributed = theirs.source if plain.is_encoder_decoder else theirs.target
    assert pad not in [token.token for token in attributed[1:-1]]
    ours = run(
        server, tmp_path, model=model, method="saliency", input_text=text, generated_text=target,
        step_scores=["probability"],
    )  # fmt: skip
    attributed = ours[0].source if plain.is_encoder_decoder else ours[0].target
    assert [token.id for token in attributed] == rows[0].tolist()
    np.testing.assert_allclose(ours[0].step_scores["probability"].numpy(), plain.probabilities(), rtol=1e-4)
    assert_scores(ours, plain.scores(lambda step: plain.gradient(plain.embedded(step), step)[0].abs()))
    assert "pad_tokens_inside_text" in ours.info["corrections"]


@pytest.mark.parametrize(("model", "text"), [
    ("t5", "The</s> quick"), ("bart", "The<unk> quick</s> brown"), ("phi3", "The</s> quick<s> brown"), ("opt", "The</s> x"),
])  # fmt: skip
@pytest.mark.parametrize("method", ["saliency", "integrated_gradients"])
def test_special_tokens_inside_the_text_are_tokens(server, model_dir, tmp_path, model, text, method):
    """Other special tokens are attributed as in Inseq, without a correction."""
    path = model_dir / model
    if not path.exists():
        build(model, path)
    target = "fox jumps" if FAMILIES[model].is_encoder_decoder else text + " fox jumps"
    arguments = {"n_steps": 4} if method == "integrated_gradients" else {}
    theirs = reference.attribute(path, text, method, generated_texts=target, attribution_args=dict(arguments))
    ours = run(
        server, tmp_path, model=model, method=method, input_text=text, generated_text=target, attribution_args=arguments
    )
    theirs.info["attribution_args"] = arguments
    reference.assert_same(ours, theirs)
    assert ours.info["corrections"] == []


def test_two_bos_tokens_are_told(server, model_dir, tmp_path):
    """A text that starts with BOS gets a second one from the tokenizer; one is left out, with a warning."""
    if not (model_dir / "llama").exists():
        build("llama", model_dir / "llama")
    ours = run(server, tmp_path, model="llama", method="saliency", input_text="<s>The quick",
               generated_text="<s>The quick fox")  # fmt: skip
    assert [token.token for token in ours[0].target].count("<s>") == 1
    assert ours.info["warnings"] == [
        "The text began with two BOS tokens, the tokenizer's and its own: one was left out."
    ]


def test_a_pad_token_in_front_is_no_padding(server, model_dir, tmp_path):
    """A text may start with GPT-2's end of text: Inseq attributes it correctly, so nothing is corrected."""
    path = model_dir / "gpt2"
    if not path.exists():
        build("gpt2", path)
    text, target = "<|endoftext|>The quick", "<|endoftext|>The quick fox"
    theirs = reference.attribute(path, text, "saliency", generated_texts=target)
    ours = run(server, tmp_path, model="gpt2", method="saliency", input_text=text, generated_text=target)
    reference.assert_same(ours, theirs)
    assert ours.info["corrections"] == []


def test_pad_tokens_that_the_model_itself_takes_for_padding_are_refused(server, model_dir):
    """M2M100 computes positions from ids, skipping pad tokens; with embeddings it cannot."""
    if not (model_dir / "m2m100").exists():
        build("m2m100", model_dir / "m2m100")
    job = server.wait(
        server.submit(model="m2m100", method="saliency", input_text="The<pad> quick", generated_text="fox")
    )
    assert job["error"]["type"] == "/problems/input-rejected"
    assert "'<pad>'" in job["error"]["detail"]


def test_generated_ids_are_attributed_as_they_are(server, model_dir, tmp_path):
    """The generated ids are attributed. Inseq decodes and encodes them, which may change them."""
    path = model_dir / "gpt2"
    if not path.exists():
        build("gpt2", path)
    arguments = {"do_sample": True, "temperature": 2.0, "max_new_tokens": 12}
    text = "Feature attribution"
    body = {"model": "gpt2", "method": "saliency", "input_text": text, "seed": 4, "generation_args": arguments,
            "step_scores": ["probability"]}  # fmt: skip
    plain = Plain(path, text, text)
    set_seed(4)
    written = plain.network.generate(plain.source, attention_mask=torch.ones_like(plain.source), **arguments)
    theirs = reference.attribute(path, text, "saliency", seed=4, generation_args=dict(arguments))[0]
    assert [token.id for token in theirs.target] != written[0].tolist()
    ours = run(server, tmp_path, **body)
    assert [token.id for token in ours[0].target] == written[0].tolist()
    assert ours.info["generated_texts"] == [plain.tokenizer.decode(written[0])]
    plain.target = written
    plain.steps = range(plain.first, written.shape[1])
    np.testing.assert_allclose(ours[0].step_scores["probability"].numpy(), plain.probabilities(), rtol=1e-3)
    assert ours.info["corrections"] == ["generated_ids"]
    off = run(server, tmp_path, **body, corrections=False)
    assert [token.id for token in off[0].target] == [token.id for token in theirs.target]
    assert "generated_ids" in off.info["warnings"][0]


def test_corrections_off_gives_inseq_s_own(server, tmp_path):
    """Without corrections, results have Inseq's zeros, positions and failures, and a warning names the corrections."""
    body = {"model": PHRASEBOOK, "input_text": SENTENCE, "generated_text": TRANSLATED, "corrections": False}
    theirs = reference.attribute(
        BUNDLED / PHRASEBOOK, SENTENCE, "saliency", generated_texts=TRANSLATED, attr_pos_start=2, attr_pos_end=4
    )
    ours = run(server, tmp_path, **body, method="saliency", attr_pos_start=2, attr_pos_end=4)
    reference.assert_same(ours, theirs)
    assert ours.info["corrections"] == []
    assert "attr_pos_end_encoder_decoder" in ours.info["warnings"][0]
    lookup = {"model": LOOKUP, "input_text": PROMPT, "generated_text": FORCED, "corrections": False}
    zeros = run(server, tmp_path, **lookup, method="layer_integrated_gradients", n_steps=4)
    assert not scores(zeros).nan_to_num().any()
    for more in ({"method": "dummy", "step_scores": ["crossentropy"]}, {"method": "value_zeroing"},
                 {"method": "attention", "step_scores": ["logit"]}):  # fmt: skip
        job = server.wait(server.submit(**lookup, **more))
        assert job["error"]["type"] == "/problems/attribution-failed", more


def test_every_correction_is_listed_with_its_proof(server):
    listed = server.client.get("/attribution/corrections").json()
    assert len(listed) >= 16
    for correction in listed:
        assert correction.keys() == {"name", "reason", "remedy", "proof", "inseq"}
        file, _, test = correction["proof"].partition("::")
        assert f"def {test}(" in Path(file).read_text(), correction
