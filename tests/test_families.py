"""Tiny random models of many architectures, over HTTP: results equal Inseq's where Inseq is right.

`test_corrections_methods` has the cases in which Inseq is wrong.
"""

from __future__ import annotations

import inseq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from tests import reference
from tests.families import FAMILIES, build, family_params

TEXT, TARGET = "The quick brown", "fox jumps over"
# In Inseq, the decoder's input embeddings of these models are scaled twice, so all results differ.
WRONG_IN_INSEQ = {"marian", "pegasus"}
# On the path from the baseline, gradients of these random models vary too much for 300 steps.
STEEP = {"t5", "qwen2", "qwen3"}


@pytest.fixture(scope="module", params=family_params())
def family(request, model_dir):
    """A family whose model is in the server's model directory."""
    folder = model_dir / request.param
    if not folder.exists():
        build(request.param, folder)
    return request.param


@pytest.fixture(scope="module", params=family_params(*(name for name in FAMILIES if name not in WRONG_IN_INSEQ)))
def right_family(request, model_dir):
    """A family for which Inseq is right, with its model in the server's model directory."""
    folder = model_dir / request.param
    if not folder.exists():
        build(request.param, folder)
    return request.param


def forced(name):
    return TARGET if FAMILIES[name].is_encoder_decoder else f"{TEXT} {TARGET}"


def plain(folder):
    """The model and its tokenizer in plain Transformers."""
    auto = AutoModelForSeq2SeqLM if FAMILIES[folder.name].is_encoder_decoder else AutoModelForCausalLM
    network = auto.from_pretrained(folder, attn_implementation="eager").eval()
    return network, AutoTokenizer.from_pretrained(folder)


def all_but_digits(tokenizer):
    """Ids of all tokens but digits. The tokenizer merges no digits, so decoding and encoding digits keeps their ids."""
    return [index for index in range(len(tokenizer)) if not tokenizer.decode([index]).isdigit()]


def loaded(server, tmp_path, job_id):
    file = tmp_path / "result.json"
    file.write_bytes(server.client.get(f"/attribution/jobs/{job_id}/results?format=inseq").content)
    return inseq.FeatureAttributionOutput.load(file)


@pytest.mark.parametrize("method", ["saliency", "integrated_gradients", "deeplift", "occlusion", "attention"])
def test_equals_inseq(server, model_dir, tmp_path, family, method):
    arguments = {"n_steps": 4} if method == "integrated_gradients" else {}
    scores = [] if method == "attention" else ["probability", "entropy"]
    job_id = server.run(
        model=family, method=method, input_text=TEXT, generated_text=forced(family), attribution_args=arguments,
        step_scores=scores,
    )  # fmt: skip
    theirs = reference.attribute(
        model_dir / family, TEXT, method, generated_texts=forced(family), step_scores=scores,
        attribution_args=dict(arguments),
    )  # fmt: skip
    theirs.info["attribution_args"] = arguments
    if family in WRONG_IN_INSEQ:
        with pytest.raises(AssertionError):
            reference.assert_same(loaded(server, tmp_path, job_id), theirs)
    else:
        reference.assert_same(loaded(server, tmp_path, job_id), theirs)


def test_attention_has_step_scores(server, model_dir, tmp_path, right_family):
    """Inseq refuses step scores for attention. Ours equal those of `dummy`; the weights do not change."""
    job_id = server.run(
        model=right_family,
        method="attention",
        input_text=TEXT,
        generated_text=forced(right_family),
        step_scores=["probability"],
    )
    ours = loaded(server, tmp_path, job_id).sequence_attributions[0]
    plain, scored = (
        reference.attribute(
            model_dir / right_family, TEXT, method, generated_texts=forced(right_family), step_scores=scores
        )
        for method, scores in (("attention", []), ("dummy", ["probability"]))
    )
    theirs = plain.sequence_attributions[0]
    expected = scored.sequence_attributions[0].step_scores["probability"]
    reference.assert_close(ours.step_scores["probability"], expected, "probability")
    for name in ("source_attributions", "target_attributions"):
        reference.assert_close(getattr(ours, name), getattr(theirs, name), name)


def test_free_generation(server, model_dir, tmp_path, family):
    """Generated tokens are attributed, also if the tokenizer prepends BOS, for which Inseq fails."""
    arguments = {"max_new_tokens": 4}
    job_id = server.run(
        model=family, method="saliency", input_text=TEXT, generation_args=arguments, step_scores=["probability"]
    )
    output = loaded(server, tmp_path, job_id)
    sequence = output.sequence_attributions[0]
    assert 1 <= sequence.attr_pos_end - sequence.attr_pos_start <= 4
    # Probabilities of the reported ids in plain Transformers.
    ids = torch.tensor([[token.id for token in sequence.target]])
    network, tokenizer = plain(model_dir / family)
    with torch.no_grad():
        inputs = {"input_ids": tokenizer(TEXT, return_tensors="pt").input_ids, "decoder_input_ids": ids}
        logits = network(**(inputs if FAMILIES[family].is_encoder_decoder else {"input_ids": ids})).logits[0]
    expected = logits.softmax(-1)[:-1].gather(-1, ids[0, 1:, None])[sequence.attr_pos_start - 1 :, 0]
    reference.assert_close(sequence.step_scores["probability"], expected, "probability", rtol=1e-4)
    if FAMILIES[family].prepends_bos:
        with pytest.raises(AssertionError, match="must start with the input texts"):
            reference.attribute(model_dir / family, TEXT, "saliency", generation_args=arguments)
        assert "generated_ids" in output.info["corrections"]
        off = server.submit(
            model=family, method="saliency", input_text=TEXT, generation_args=arguments, corrections=False
        )
        assert "does not start with the input" in server.wait(off)["error"]["detail"]


@pytest.mark.parametrize("method", ["saliency", "integrated_gradients"])
def test_generated_equals_inseq_constrained(server, model_dir, tmp_path, right_family, method):
    """Attributing a generated target equals Inseq with the same target forced."""
    is_encoder_decoder = FAMILIES[right_family].is_encoder_decoder
    tokenizer = plain(model_dir / right_family)[1]
    suppressed = all_but_digits(tokenizer)
    generation_args = {"max_new_tokens": 4, "suppress_tokens": suppressed}
    if is_encoder_decoder:  # Inseq's encoded target always ends with EOS, so generation must end with it, too
        suppressed.remove(tokenizer.eos_token_id)
        generation_args |= {"forced_eos_token_id": tokenizer.eos_token_id, "min_new_tokens": 2}
    attribution_args = {"n_steps": 4} if method == "integrated_gradients" else {}
    job_id = server.run(
        model=right_family, method=method, input_text=TEXT, generation_args=generation_args,
        attribution_args=attribution_args, step_scores=["probability"],
    )  # fmt: skip
    ours = loaded(server, tmp_path, job_id)
    ids = [token.id for token in ours.sequence_attributions[0].target]
    text = tokenizer.decode(ids, skip_special_tokens=is_encoder_decoder or FAMILIES[right_family].prepends_bos)
    theirs = reference.attribute(
        model_dir / right_family, TEXT, method, generated_texts=text, attribution_args=dict(attribution_args),
        step_scores=["probability"],
    )  # fmt: skip
    assert [token.id for token in theirs.sequence_attributions[0].target] == ids, "the text does not encode to the ids"
    own = ("constrained_decoding", "generation_args", "generated_texts", "attribution_args")
    theirs.info |= {key: ours.info[key] for key in own}
    reference.assert_same(ours, theirs)


def test_value_zeroing(server, family):
    result = server.result(
        server.run(model=family, method="value_zeroing", input_text=TEXT, generated_text=forced(family))
    )
    sequence = result["sequence_attributions"][0]
    rows = sequence["source_attributions"] or sequence["target_attributions"]
    assert any(value not in (None, 0.0) for row in rows for value in row)


LAYERS = {
    "layer_integrated_gradients": "integrated_gradients",
    "layer_deeplift": "deeplift",
    "layer_gradient_x_activation": "input_x_gradient",
}


@pytest.mark.parametrize("method", LAYERS)
def test_layer_methods_at_the_embedding_are_the_methods_themselves(server, tmp_path, family, method):
    body = {"model": family, "input_text": TEXT, "generated_text": forced(family)}
    body |= {"attribution_args": {"n_steps": 4}} if "integrated" in method else {}
    ours, same = (
        loaded(server, tmp_path, server.run(**body, method=each)).sequence_attributions[0]
        for each in (method, LAYERS[method])
    )
    for name in ("source_attributions", "target_attributions"):
        reference.assert_close(getattr(ours, name), getattr(same, name), name)


def test_contrastive_integrated_gradients_add_up(server, family):
    """Scores sum to the difference of `at_input` and `at_baseline` in `info`, up to the reported delta."""
    target = forced(family)
    contrast = target.replace("fox jumps", "jumps fox")
    result = server.result(server.run(
        model=family, method="integrated_gradients", input_text=TEXT, generated_text=target, n_steps=300,
        attributed_fn="contrast_prob_diff", attributed_fn_args={"contrast_targets": contrast},
    ), granular=True)  # fmt: skip
    sequence, convergence = result["sequence_attributions"][0], result["info"]["convergence"][0]
    rows = torch.tensor(
        [[[x or 0.0 for x in cell] for cell in row]
         for row in sequence["source_attributions"] or sequence["target_attributions"]]
    )  # fmt: skip
    totals = rows.sum((0, 2))
    for index, total in enumerate(totals.tolist()):
        difference = convergence["at_input"][index] - convergence["at_baseline"][index]
        assert total - difference == pytest.approx(convergence["delta"][index], abs=1e-4 * max(1e-3, abs(total)))
    if family not in STEEP:
        assert max(convergence["relative"]) < 0.01
        assert result["info"]["warnings"] == []
