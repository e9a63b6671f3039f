"""Invalid requests are refused with a clear reason, before they are queued if the check needs no model."""

from __future__ import annotations

import json

import pytest

from tests.conftest import LOOKUP, PHRASEBOOK, PROMPT, SENTENCE

GOOD = {"model": LOOKUP, "method": "saliency", "input_text": PROMPT}
TRANSLATE = {"model": PHRASEBOOK, "method": "saliency", "input_text": SENTENCE}
FORCED = {**GOOD, "generated_text": PROMPT + " milk."}
CHAT = {"model": LOOKUP, "method": "saliency", "messages": [{"role": "user", "content": PROMPT}]}

REFUSED = {
    # names
    "unknown method": ({**GOOD, "method": "salency"}, "/method", "did you mean 'saliency'"),
    "unknown step score": ({**GOOD, "step_scores": ["prob"]}, "/step_scores/0", "There is no step function 'prob'"),
    "corrected function by its inner name": (
        {**GOOD, "step_scores": ["corrected:perplexity"]}, "/step_scores/0", "did you mean 'perplexity'"
    ),
    "unknown attributed_fn": ({**GOOD, "attributed_fn": "logits"}, "/attributed_fn", "did you mean 'logit'"),
    "unknown field": ({**GOOD, "metod": "saliency"}, "/metod", "no field 'metod' (did you mean 'method'?)"),
    "field that is like none": ({**GOOD, "zzz": 1}, "/zzz", "There is no field 'zzz'. There are: model, methods, method,"),
    "field of a span": (
        {**GOOD, "spans": [{"text": "a", "colour": "red"}]}, "/spans/0/colour",
        "There is no field 'colour'. There are: name, start, end",
    ),
    "field named by digits": ({**GOOD, "123": 1}, "/123", "There is no field '123'."),
    "unknown field of a message": (
        {**CHAT, "messages": [{"rol": "user", "content": "x"}]}, "/messages/0/rol", "did you mean 'role'"
    ),
    "unknown field of a part of a message": (
        {**CHAT, "messages": [{"role": "user", "content": [{"type": "text", "text": "x", "lang": "en"}]}]},
        "/messages/0/content/0/lang",
        "There are: type, text.",
    ),
    "score twice": ({**GOOD, "step_scores": ["logit", "logit"]}, "/step_scores", "twice"),
    # model names are never paths
    "path": ({**GOOD, "model": "../../etc/passwd"}, "/model", "no model name"),
    "absolute path": ({**GOOD, "model": "/etc"}, "/model", "no model name"),
    "dots": ({**GOOD, "model": "a/../b"}, "/model", "no model name"),
    "new line": ({**GOOD, "model": "gpt2\n"}, "/model", "no model name"),
    # texts
    "empty input": ({**GOOD, "input_text": ""}, "/input_text", "must not be empty: write the text"),
    "no input": ({**GOOD, "input_text": []}, "/input_text", "must not be empty: write the text"),
    "empty among inputs": ({**GOOD, "input_text": ["a", ""]}, "/input_text/1", "must not be empty: write the text"),
    "empty target": ({**GOOD, "generated_text": ""}, "/generated_text", "or leave generated_text out"),
    "target for each": ({**GOOD, "input_text": ["a", "b"], "generated_text": "a b"}, "", "one text per input"),
    "other beginning": ({**GOOD, "generated_text": "Ben likes milk."}, "/generated_text", "must start with input_text"),
    # arguments
    "unknown argument": ({**GOOD, "attribution_args": {"steps": 3}}, "/attribution_args/steps", "It takes: abs"),
    "wrong type": (
        {**GOOD, "method": "integrated_gradients", "attribution_args": {"n_steps": "20"}},
        "/attribution_args/n_steps",
        "expected int",
    ),
    "shorthand not taken": ({**GOOD, "n_steps": 3}, "/n_steps", "has no n_steps"),
    "shorthand differs": (
        {**GOOD, "method": "integrated_gradients", "n_steps": 3, "attribution_args": {"n_steps": 4}},
        "/n_steps",
        "differ",
    ),
    "too many steps": ({**GOOD, "method": "integrated_gradients", "n_steps": 10**6}, "/attribution_args/n_steps", "2000"),
    "unknown generation argument": (
        {**GOOD, "generation_args": {"max_tokens": 3}},
        "/generation_args/max_tokens",
        "generate() has no argument",
    ),
    "generation type": (
        {**GOOD, "generation_args": {"max_new_tokens": "3"}},
        "/generation_args/max_new_tokens",
        "expected int",
    ),
    "no room": ({**GOOD, "generation_args": {"max_new_tokens": 0}}, "/generation_args/max_new_tokens", "between 1 and"),
    "several sequences": (
        {**GOOD, "generation_args": {"num_return_sequences": 2}},
        "/generation_args/num_return_sequences",
        "one sequence",
    ),
    "nothing to generate": ({**FORCED, "generation_args": {"max_new_tokens": 3}}, "/generation_args", "leave out"),
    "score argument": (
        {**GOOD, "step_scores": ["logit"], "step_scores_args": {"logprob": True}},
        "/step_scores_args/logprob",
        "'logit' has no argument",
    ),
    "required argument": ({**GOOD, "step_scores": ["top_p_size"]}, "/step_scores_args/top_p", "needs top_p"),
    "seed": ({**GOOD, "seed": -1}, "/seed", "greater than or equal to 0"),
    "positions": ({**GOOD, "attr_pos_start": 4, "attr_pos_end": 4}, "", "less than"),
    "negative position": ({**GOOD, "attr_pos_start": -1}, "/attr_pos_start", "greater than or equal to 0"),
    "boolean": ({**GOOD, "attribute_target": "yes please"}, "/attribute_target", "boolean"),
    # requests for which Inseq would be wrong
    "contrast with nothing": (
        {**GOOD, "step_scores": ["contrast_prob"]},
        "/step_scores_args/contrast_targets",
        "silently compare",
    ),
    "contrast with a layer": (
        {**FORCED, "method": "layer_integrated_gradients", "attributed_fn": "contrast_prob_diff",
         "attributed_fn_args": {"contrast_targets": PROMPT + " tea."}},
        "/attributed_fn",
        "Use integrated_gradients",
    ),
    "contrast of activations": (
        {**FORCED, "method": "deeplift", "attributed_fn": "kl_divergence",
         "attributed_fn_args": {"contrast_targets": PROMPT + " tea.", "contrast_force_inputs": True}},
        "/attributed_fn_args/contrast_force_inputs",
        "Use integrated_gradients",
    ),
    "contrast of another source alone": (
        {**TRANSLATE, "attributed_fn": "contrast_logits",
         "attributed_fn_args": {"contrast_sources": "the dog", "contrast_force_inputs": True}},
        "/attributed_fn",
        "contrast_logits_diff",
    ),
    "contrast encoded otherwise": (
        {**FORCED, "step_scores": ["contrast_prob"],
         "step_scores_args": {"contrast_targets": PROMPT + " tea.", "skip_special_tokens": True}},
        "/step_scores_args/skip_special_tokens",
        "of the request itself",
    ),
    "one dropout draw": (
        {**TRANSLATE, "step_scores": ["mc_dropout_prob_avg"], "step_scores_args": {"n_mcd_steps": 1}},
        "/step_scores_args/n_mcd_steps",
        "at least 2",
    ),
    "a score of dropout without dropout": (
        {**GOOD, "step_scores": ["probability", "mc_dropout_prob_avg"]}, "/step_scores/1", "rounding noise"
    ),
    "a function of dropout without dropout": (
        {**GOOD, "method": "occlusion", "attributed_fn": "mc_dropout_prob_avg"}, "/attributed_fn", "rounding noise"
    ),
    "input of the embedding": (
        {**GOOD, "method": "layer_gradient_x_activation", "attribution_args": {"attribute_to_layer_input": True}},
        "/attribution_args/attribute_to_layer_input",
        "target_layer",
    ),
    "count of many rows": (
        {**GOOD, "method": "occlusion", "attributed_fn": "top_p_size", "attributed_fn_args": {"top_p": 0.5},
         "attribution_args": {"perturbations_per_eval": 3}},
        "/attribution_args/perturbations_per_eval",
        "one row",
    ),
    "contrast alone": (
        {**FORCED, "attributed_fn": "contrast_prob",
         "attributed_fn_args": {"contrast_targets": PROMPT + " tea.", "contrast_force_inputs": True}},
        "/attributed_fn",
        "contrast_prob_diff",
    ),
    "kl": (
        {**FORCED, "attributed_fn": "kl_divergence", "attributed_fn_args": {"contrast_targets": PROMPT + " tea."}},
        "/attributed_fn_args/contrast_force_inputs",
        "contrast_force_inputs",
    ),
    "no gradient": (
        {**GOOD, "attributed_fn": "top_p_size", "attributed_fn_args": {"top_p": 0.5}}, "/attributed_fn", "no gradient"
    ),
    "function ignored": ({**GOOD, "method": "attention", "attributed_fn": "logit"}, "/attributed_fn", "would be ignored"),
    "reagent on encoder-decoder": ({**TRANSLATE, "method": "reagent"}, "/method", "decoder-only"),
    "target of lime": ({**TRANSLATE, "method": "lime", "attribute_target": True}, "/attribute_target", "cannot"),
    "language of a decoder-only": ({**GOOD, "tokenizer_args": {"src_lang": "en"}}, "/tokenizer_args", "translation"),
    "unknown tokenizer argument": ({**TRANSLATE, "tokenizer_args": {"lang": "en"}}, "/tokenizer_args/lang", "no field 'lang' (did you mean 'tgt_lang'?)"),
    "two kinds of input": ({**GOOD, "messages": [{"role": "user", "content": "x"}]}, "/input_text", "either"),
    "neither kind of input": ({"model": LOOKUP, "method": "saliency"}, "/input_text", "either input_text or messages"),
    "no messages": ({**CHAT, "messages": []}, "/messages", "at least 1"),
    "message without content": ({**CHAT, "messages": [{"role": "user"}]}, "/messages/0/content", "required"),
    "template variables without messages": ({**GOOD, "chat_template_args": {"x": 1}}, "", "for messages"),
    "messages without special tokens": ({**CHAT, "skip_special_tokens": True}, "", "leave it out"),
    "conversations and targets": ({**CHAT, "generated_text": ["a", "b"]}, "", "one text per input"),
    "contrast sources": (
        {**GOOD, "step_scores": ["contrast_prob"], "step_scores_args": {"contrast_sources": "x"}},
        "/step_scores_args/contrast_sources",
        "encoder-decoder",
    ),
    "too many inputs": ({**GOOD, "input_text": ["a"] * 65}, "/input_text", "at most 64"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_it_is_queued(server, name):
    body, pointer, words = REFUSED[name]
    before = newest(server)
    problem = server.refusal(**body)
    assert problem["type"] == "/problems/invalid-request"
    assert problem["status"] == 422
    places = {error.get("pointer", ""): error["detail"] for error in problem["errors"]}
    assert pointer in places, places
    assert words in places[pointer]
    assert "valid list" not in places[pointer]  # one reason for one value, and not one for each type that it may have
    assert newest(server) == before


def newest(server):
    """A list with the id of the newest job; empty if there is none."""
    return [job["job_id"] for job in server.client.get("/attribution/jobs", params={"limit": 1}).json()["jobs"]]


FAILED = {
    # needs the model or the tokens
    "too long": ({**GOOD, "input_text": "Anna likes tea. " * 80}, "input-rejected", "at most 256"),
    "too long for T5": ({**TRANSLATE, "input_text": "the red cat " * 60}, "input-rejected", "at most 128"),
    "no room": (
        {**GOOD, "generation_args": {"max_new_tokens": 250}}, "input-rejected", "room for 246 new tokens, not 250"
    ),
    "only the end to attribute": (
        {**GOOD, "generated_text": PROMPT + "<|endoftext|>"}, "input-rejected", "Only '<|endoftext|>' was left"
    ),
    "layer of the decoder": (
        {**TRANSLATE, "method": "layer_gradient_x_activation", "attribution_args": {"target_layer": "decoder.block.0"}},
        "input-rejected",
        "in the encoder",
    ),
    "layer without a name": (
        {**GOOD, "method": "layer_gradient_x_activation", "attribution_args": {"target_layer": ""}},
        "input-rejected",
        "one vector for each input token",
    ),
    "generation that fails": (
        {**TRANSLATE, "generation_args": {"decoder_start_token_id": 10**6}}, "input-rejected", "these generation_args"
    ),
    "unknown rule of quadrature": (
        {**GOOD, "method": "integrated_gradients", "attribution_args": {"method": "bogus"}}, "input-rejected", "bogus"
    ),
    "no chat template": (CHAT, "input-rejected", "no chat template"),
    "no languages": ({**TRANSLATE, "tokenizer_args": {"src_lang": "en"}}, "input-rejected", "takes no src_lang"),
    "unknown layer": (
        {**GOOD, "method": "layer_deeplift", "attribution_args": {"target_layer": "h.7"}}, "input-rejected", "no 'h.7'"
    ),
    "inside a token": (
        {**GOOD, "input_text": "Anna li", "generated_text": "Anna likes tea"}, "input-rejected", "inside a token"
    ),
    "nothing forced": ({**GOOD, "generated_text": PROMPT}, "input-rejected", "adds nothing"),
    "start in the prompt": ({**GOOD, "attr_pos_start": 3}, "input-rejected", "between 10 and"),
    "end too far": ({**FORCED, "attr_pos_end": 99}, "input-rejected", "between 11 and 12"),
    "contrast lengths": (
        {**FORCED, "step_scores": ["contrast_prob"], "step_scores_args": {"contrast_targets": PROMPT + " tea. Ben"}},
        "input-rejected",
        "contrast_targets_alignments",
    ),
    "contrast pair outside": (
        {**FORCED, "step_scores": ["contrast_prob"],
         "step_scores_args": {"contrast_targets": PROMPT + " tea. Ben",
                              "contrast_targets_alignments": [[[10, 10], [11, 99]]]}},
        "input-rejected",
        "[11, 99] is no pair",
    ),
    "contrast pair missing": (
        {**FORCED, "step_scores": ["contrast_prob"],
         "step_scores_args": {"contrast_targets": PROMPT + " tea. Ben", "contrast_targets_alignments": [[[10, 10]]]}},
        "input-rejected",
        "no pair for target position 11",
    ),
    "ended at once": (
        {**GOOD, "generation_args": {"forced_eos_token_id": 0, "max_new_tokens": 1}}, "nothing-generated", "min_new_tokens"
    ),
    "unknown model": ({**GOOD, "model": "no/such-model"}, "model-unavailable", "offline"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAILED)
def test_failed_with_the_reason(server, name):
    body, kind, words = FAILED[name]
    job = server.wait(server.submit(**body))
    assert job["status"] == "failed"
    assert job["error"]["type"] == f"/problems/{kind}"
    assert words in job["error"]["detail"]
    assert job["error"]["instance"] == job["links"]["self"]
    answer = server.client.get(job["links"]["results"])
    assert answer.status_code == 409
    assert answer.json()["type"] == "/problems/no-result"
    assert answer.json()["cause"] == job["error"]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_numbers_that_are_none_are_refused(server, number):
    """Python's JSON parser accepts NaN and Infinity, which are not valid JSON, so the request is refused."""
    text = json.dumps({**GOOD, "method": "gradient_shap", "attribution_args": {"stdevs": 0}})
    answer = server.client.post(
        "/attribution/jobs", content=text.replace(": 0}", f": {number}}}"), headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/attribution_args/stdevs"


def test_several_errors_are_all_told(server):
    problem = server.refusal(**{**GOOD, "step_scores": ["top_p_size"], "n_steps": 3, "generation_args": {"foo": 1}})
    assert {error["pointer"] for error in problem["errors"]} == {
        "/n_steps", "/step_scores_args/top_p", "/generation_args/foo"
    }  # fmt: skip
    assert problem["detail"].startswith("3 errors")


def test_a_failing_method_is_told_without_a_traceback(server):
    body = {**GOOD, "method": "occlusion", "attribution_args": {"sliding_window_shapes": [99, 99]}}
    job = server.wait(server.submit(**body))
    assert job["status"] == "failed"
    assert job["error"]["type"] == "/problems/input-rejected"
    assert "occlusion fails with these attribution_args: AssertionError" in job["error"]["detail"]
    assert "Traceback" not in str(job)
    told = [line for line in server.log.splitlines() if job["job_id"] in line and "job_failed" in line]
    assert len(told) == 1
    assert "Traceback" in told[0]
