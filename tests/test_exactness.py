"""Results equal Inseq called directly: all methods, decoder-only and encoder-decoder, generated and forced targets."""

from __future__ import annotations

import json
import math

import inseq
import numpy as np
import pytest

from attribution.catalogue import inseq_catalogue
from tests import reference
from tests.conftest import BUNDLED, LOOKUP, PHRASEBOOK, PROMPT, SENTENCE

# Few steps and samples, so that the tests are fast.
SETTINGS = {
    "integrated_gradients": {"n_steps": 6},
    "layer_integrated_gradients": {"n_steps": 6},
    "sequential_integrated_gradients": {"n_steps": 4},
    "discretized_integrated_gradients": {"n_steps": 4},
    "gradient_shap": {"n_samples": 4, "stdevs": 0.1},
    "lime": {"n_samples": 12},
    "reagent": {"max_probe_steps": 20, "num_probes": 2},
}
REFUSED = {(PHRASEBOOK, "reagent")}
INPUTS = {LOOKUP: PROMPT, PHRASEBOOK: SENTENCE}
TARGETS = {LOOKUP: PROMPT + " milk. Ben", PHRASEBOOK: "il cane vede un gatto"}
# With Transformers 5, Inseq 0.7.1 fails or gives zeros; `test_corrections_methods` checks our results.
BROKEN_IN_INSEQ = {
    (LOOKUP, "value_zeroing"),
    *((model, method) for model in (LOOKUP, PHRASEBOOK) for method in ("layer_integrated_gradients", "layer_deeplift")),
    (PHRASEBOOK, "layer_gradient_x_activation"),
}
# At the embedding layer, a layer method equals this method, for which Inseq is right.
SAME_AS = {
    "layer_integrated_gradients": "integrated_gradients",
    "layer_deeplift": "deeplift",
    "layer_gradient_x_activation": "input_x_gradient",
}
METHODS = inseq.list_feature_attribution_methods()
COSTLY = {"discretized_integrated_gradients"}  # `test_completeness` and others have it too


def compare(server, tmp_path, job_id, theirs):
    file = tmp_path / "result.json"
    file.write_bytes(server.client.get(f"/attribution/jobs/{job_id}/results?format=inseq").content)
    ours = inseq.FeatureAttributionOutput.load(file)
    reference.assert_same(ours, theirs)
    return ours


@pytest.mark.parametrize(
    ("model", "constrained"),
    [
        pytest.param(LOOKUP, True, id=f"{LOOKUP}-constrained"),
        pytest.param(PHRASEBOOK, False, id=f"{PHRASEBOOK}-free"),
        pytest.param(LOOKUP, False, id=f"{LOOKUP}-free", marks=pytest.mark.slow),
        pytest.param(PHRASEBOOK, True, id=f"{PHRASEBOOK}-constrained", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(
    "method",
    [pytest.param(each, marks=pytest.mark.slow if each in COSTLY else ()) for each in sorted(METHODS)],
)
def test_equals_inseq(server, tmp_path, model, method, constrained):
    arguments = {"n_samples": 12} if method == "lime" else SETTINGS.get(method, {})
    body = {"model": model, "method": method, "input_text": INPUTS[model], "attribution_args": arguments, "seed": 7}
    call = {}
    if constrained:
        body["generated_text"] = call["generated_texts"] = TARGETS[model]
    if (model, method) in REFUSED:
        assert "decoder-only" in server.refusal(**body)["detail"]
        return
    job_id = server.run(**body)
    right = method
    if (model, method) in BROKEN_IN_INSEQ:
        if method not in SAME_AS:
            return
        right = SAME_AS[method]
    parameters = inseq_catalogue.methods()[right]
    inseq_arguments = {"attribution_args": {k: v for k, v in arguments.items() if k in parameters.call_parameters}}
    theirs = reference.attribute(
        BUNDLED / model, INPUTS[model], right, seed=7, init_args=arguments if method == "reagent" else {}, **call,
        **inseq_arguments,
    )  # fmt: skip
    theirs.info["attribution_args"] = arguments  # the service also lists the constructor's arguments here
    theirs.info["attribution_method"] = method
    ours = compare(server, tmp_path, job_id, theirs)
    check_json_views(server, job_id, ours, theirs)
    sequence = ours.sequence_attributions[0]
    assert sequence.attr_pos_end > sequence.attr_pos_start


def check_json_views(server, job_id, ours, theirs):
    """Check that the granular JSON view has Inseq's scores, and the default view has Inseq's default aggregation.

    That aggregation normalizes each step, which amplifies rounding in steps with small scores. So the default view is
    compared with the aggregation of our scores, which were compared with Inseq's before.
    """
    default, granular = server.result(job_id), server.result(job_id, granular=True)
    for view, sequences in (
        (default, [each.aggregate() for each in ours.sequence_attributions]),
        (granular, theirs.sequence_attributions),
    ):
        for shown, other in zip(view["sequence_attributions"], sequences, strict=True):
            assert [(t["token"], t["token_id"]) for t in shown["target"]] == [(t.token, t.id) for t in other.target]
            for name in ("source_attributions", "target_attributions"):
                assert_array(shown[name], getattr(other, name))
            for name, scores in (other.sequence_scores or {}).items():
                assert_array(shown["sequence_scores"][name], scores)


def assert_array(ours, tensor):
    assert (ours is None) == (tensor is None)
    if tensor is None:
        return
    expected = tensor.float().numpy()
    found = np.array(ours, dtype=np.float64)  # None becomes NaN
    assert found.shape == expected.shape
    np.testing.assert_allclose(
        found, expected, rtol=1e-5, atol=1e-5 * max(np.nanmax(np.abs(expected), initial=0), 1e-9)
    )


@pytest.mark.parametrize("model", [LOOKUP, PHRASEBOOK])
def test_step_scores_equal_inseq(server, tmp_path, model):
    """Compares every step function that Inseq can compute for one sequence.

    Inseq's KL divergence with `top_p` is NaN: `tests/test_step_functions.py` compares ours with its definition.
    """
    names = ["logit", "probability", "entropy", "top_p_size", "pcxmi", "contrast_prob", "contrast_logits_diff",
             "contrast_logits", "contrast_prob_diff", "in_context_pvi"]  # fmt: skip
    contrast = TARGETS[model].replace("milk", "tea").replace("gatto", "libro")
    arguments = {"top_p": 0.7, "contrast_targets": contrast}
    body = {"generated_text": TARGETS[model], "step_scores": names, "step_scores_args": arguments}
    job_id = server.run(model=model, method="saliency", input_text=INPUTS[model], **body)
    theirs = reference.attribute(
        BUNDLED / model, INPUTS[model], "saliency", generated_texts=TARGETS[model], step_scores=names,
        step_scores_args=dict(arguments),
    )  # fmt: skip
    theirs.info["step_scores_args"] = arguments
    compare(server, tmp_path, job_id, theirs)


def test_contrastive_sources_and_alignments_equal_inseq(server, tmp_path):
    """Compares a longer contrast with explicit alignments, and a contrast with another source."""
    target, longer = "il cane vede un gatto", "il cane nero vede un gatto"
    alignments = [[[0, 0], [1, 1], [2, 2], [3, 4], [4, 5], [5, 6], [6, 7]]]
    cases = {
        "contrast_targets": ({"contrast_targets": longer, "contrast_targets_alignments": alignments}, "contrast_prob"),
        "contrast_sources": ({"contrast_sources": "the black dog sees a cat"}, "pcxmi"),
    }
    for name, (arguments, function) in cases.items():
        body = {"generated_text": target, "step_scores": [function], "step_scores_args": arguments}
        job_id = server.run(model=PHRASEBOOK, method="dummy", input_text="the dog sees a cat", **body)
        pairs = {"contrast_targets_alignments": [[tuple(pair) for pair in alignments[0]]]} if "targets" in name else {}
        theirs = reference.attribute(
            BUNDLED / PHRASEBOOK, "the dog sees a cat", "dummy", generated_texts=target, step_scores=[function],
            step_scores_args={**arguments, **pairs},
        )  # fmt: skip
        theirs.info["step_scores_args"] = arguments
        ours = compare(server, tmp_path, job_id, theirs)
        assert len(set(ours.sequence_attributions[0].step_scores[function].tolist())) > 1


@pytest.mark.parametrize("model", [LOOKUP, PHRASEBOOK])
@pytest.mark.parametrize("method", ["saliency", "occlusion"])
@pytest.mark.parametrize("function", ["logit", "entropy", "contrast_prob_diff"])
def test_attributed_functions_equal_inseq(server, tmp_path, model, method, function):
    contrast = TARGETS[model].replace("milk", "tea").replace("gatto", "libro")
    arguments = {"contrast_targets": contrast} if "contrast" in function else {}
    job_id = server.run(
        model=model, method=method, input_text=INPUTS[model], generated_text=TARGETS[model], attributed_fn=function,
        attributed_fn_args=arguments,
    )  # fmt: skip
    theirs = reference.attribute(
        BUNDLED / model, INPUTS[model], method, generated_texts=TARGETS[model], attributed_fn=function,
        attributed_fn_args=dict(arguments),
    )  # fmt: skip
    theirs.info["attributed_fn_args"] = arguments
    theirs.info["attribution_args"] = {}  # Inseq's occlusion adds its window here
    compare(server, tmp_path, job_id, theirs)


@pytest.mark.parametrize("method", ["integrated_gradients", "attention", "occlusion"])
def test_attribute_target_equals_inseq(server, tmp_path, method):
    body = {"attribute_target": True, "generated_text": TARGETS[PHRASEBOOK]}
    job_id = server.run(
        model=PHRASEBOOK, method=method, input_text=SENTENCE, attribution_args=SETTINGS.get(method, {}), **body
    )
    theirs = reference.attribute(
        BUNDLED / PHRASEBOOK, SENTENCE, method, attribute_target=True, generated_texts=TARGETS[PHRASEBOOK],
        attribution_args=dict(SETTINGS.get(method, {})),
    )  # fmt: skip
    theirs.info["attribution_args"] = SETTINGS.get(method, {})
    ours = compare(server, tmp_path, job_id, theirs)
    assert ours.sequence_attributions[0].target_attributions is not None


def test_several_inputs_are_one_inseq_call_each(server):
    """Each of several texts has the scores that it has alone, also with a random method; in one batch it would not."""
    texts = [PROMPT, "Clara likes soup. Emma likes rice. Emma likes"]
    settings = {"model": LOOKUP, "method": "gradient_shap", "attribution_args": SETTINGS["gradient_shap"], "seed": 3}
    together = server.result(server.run(input_text=texts, **settings))["sequence_attributions"]
    alone = [server.result(server.run(input_text=text, **settings))["sequence_attributions"][0] for text in texts]
    assert together == alone
    assert len(together) == 2


def test_options_reach_inseq(server, tmp_path):
    options = {"attr_pos_start": 11, "attr_pos_end": 12, "clean_special_chars": True, "include_eos_baseline": True}
    body = {"model": LOOKUP, "method": "input_x_gradient", "input_text": PROMPT, "generated_text": TARGETS[LOOKUP]}
    job_id = server.run(**body, **options)
    theirs = reference.attribute(
        BUNDLED / LOOKUP, PROMPT, "input_x_gradient", generated_texts=TARGETS[LOOKUP], **options
    )
    ours = compare(server, tmp_path, job_id, theirs)
    assert ours.sequence_attributions[0].attr_pos_start == 11


def test_without_special_tokens_equals_inseq(server, tmp_path):
    target, contrast = "il gatto vede un cane", "il cane vede un cane"
    source = "</s>" + SENTENCE  # Inseq also removes special tokens that are in the text
    body = {"model": PHRASEBOOK, "method": "saliency", "input_text": source, "generated_text": target,
            "step_scores": ["contrast_prob", "probability"], "step_scores_args": {"contrast_targets": contrast}}  # fmt: skip
    job_id = server.run(**body, skip_special_tokens=True)
    theirs = reference.attribute(
        BUNDLED / PHRASEBOOK, source, "saliency", generated_texts=target, skip_special_tokens=True,
        step_scores=body["step_scores"], step_scores_args={"contrast_targets": contrast},
    )  # fmt: skip
    theirs.info["step_scores_args"] = {"contrast_targets": contrast}
    ours = compare(server, tmp_path, job_id, theirs)
    assert "</s>" not in [token.token for token in ours.sequence_attributions[0].source]


@pytest.mark.parametrize("model", [LOOKUP, PHRASEBOOK])
@pytest.mark.parametrize("method", ["attention", "value_zeroing"])
def test_final_step_methods_have_step_scores(server, model, method):
    """Inseq refuses step scores for these methods. Ours equal those of `dummy`; attributions do not change."""
    body = {"model": model, "input_text": INPUTS[model], "generated_text": TARGETS[model]}
    scored = server.result(server.run(method=method, step_scores=["probability", "entropy"], **body))
    plain = server.result(server.run(method=method, **body))
    theirs = reference.attribute(
        BUNDLED / model, INPUTS[model], "dummy", generated_texts=TARGETS[model], step_scores=["probability", "entropy"]
    )
    ours, expected = scored["sequence_attributions"][0], theirs.sequence_attributions[0].step_scores
    for name in ("probability", "entropy"):
        assert_array(ours["step_scores"][name], expected[name])
    for name in ("source_attributions", "target_attributions"):
        assert ours[name] == plain["sequence_attributions"][0][name]


def test_sampling_is_reproducible_by_seed(server, tmp_path):
    generation_args = {"do_sample": True, "temperature": 3.0, "max_new_tokens": 8}
    arguments = SETTINGS["lime"]
    body = {"model": LOOKUP, "method": "lime", "input_text": "Anna", "generation_args": generation_args,
            "attribution_args": arguments}  # fmt: skip
    theirs = reference.attribute(
        BUNDLED / LOOKUP, "Anna", "lime", seed=1, generation_args=generation_args, attribution_args=dict(arguments)
    )
    theirs.info["attribution_args"] = arguments
    compare(server, tmp_path, server.run(**body, seed=1), theirs)
    first, again, other = (server.result(server.run(**body, seed=seed)) for seed in (1, 1, 2))
    assert first["sequence_attributions"] == again["sequence_attributions"]
    assert first["info"]["generated_texts"] != other["info"]["generated_texts"]


def test_json_has_null_where_inseq_has_nan(server):
    job_id = server.run(model=LOOKUP, method="saliency", input_text=PROMPT, generated_text=TARGETS[LOOKUP])
    text = server.client.get(f"/attribution/jobs/{job_id}/results").text
    assert "NaN" not in text
    rows = json.loads(text)["sequence_attributions"][0]["target_attributions"]
    start = len(rows) - len(rows[0])
    for position, row in enumerate(rows):
        assert [value is None for value in row] == [position >= start + step for step in range(len(row))]
        assert all(math.isfinite(value) for value in row if value is not None)
