"""Situations from public bug reports on tools like this one: each a request over HTTP, and its right value from plain
Transformers, or the refusal that helps.

Sources are where a situation was met; nothing else was taken from them.
"""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers as t

from attribution_client import AttributionClient
from tests import chat_models
from tests.conftest import BUNDLED, LOOKUP, PHRASEBOOK, SENTENCE
from tests.families import FAMILIES, SMALL, Family, build, build_family
from tests.first_principles import Plain
from tests.test_network_state import Fresh, assert_equals_plain

ROBERTA = Family(
    t.RobertaConfig,
    t.RobertaForCausalLM,
    {**SMALL, "is_decoder": True, "type_vocab_size": 1},
    {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"},
)


def completed(server, body, **view):
    """The result of a request that must complete."""
    return server.result(server.run(**body), **view)


def problem(server, body):
    """The problem of a request that must be refused, at once or by its job."""
    answer = server.client.post("/attribution/jobs", json=body)
    if answer.status_code != 202:
        return answer.json()
    job = server.wait(answer.json()["job_id"])
    assert job["status"] == "failed", job
    return job["error"]


def chat_model(model_dir, name):
    """A chat model of the server's directory, built where a test first needs it."""
    folder = model_dir / name
    return folder if folder.exists() else chat_models.build(name, folder)


def test_perplexity(server):
    """huggingface/evaluate#241: a perplexity with base 2."""
    body = {
        "model": LOOKUP, "method": "dummy", "input_text": "Anna likes", "generated_text": "Anna likes tea.",
        "step_scores": ["perplexity", "crossentropy", "probability"],
    }  # fmt: skip
    probabilities = Plain(BUNDLED / LOOKUP, body["input_text"], body["generated_text"]).probabilities()
    scores = completed(server, body)["sequence_attributions"][0]["step_scores"]
    np.testing.assert_allclose(scores["perplexity"], 1 / probabilities, rtol=1e-4)
    np.testing.assert_allclose(scores["crossentropy"], -np.log(probabilities), rtol=1e-4)
    for engine in ("inseq", "single_pass"):
        attributed = body | {"method": "integrated_gradients", "attributed_fn": "perplexity", "engine": engine}
        info = completed(server, attributed)["info"]
        np.testing.assert_allclose(info["convergence"][0]["at_input"], 1 / probabilities, rtol=1e-4)
        assert "perplexity_of_nats" in info["corrections"]


def test_adapter_folder(server, model_dir):
    """lm-sys/FastChat#1806: a folder with a LoRA adapter alone, whose base model is not on this machine."""
    folder = model_dir / "lora-adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": "nobodys-base"})
    )
    body = {"model": "lora-adapter", "method": "saliency", "input_text": "hello"}
    found = problem(server, body)
    assert found["type"] == "/problems/model-unavailable"
    assert "PEFT adapter" in found["detail"]
    assert "merge" in found["detail"].lower()
    assert "'nobodys-base'" in found["detail"]
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": LOOKUP}))
    found = problem(server, body)
    assert found["type"] == "/problems/model-unavailable"
    assert "without its weights: adapter_model.safetensors is missing" in found["detail"]


def test_embeddings_scaled_in_place(server, model_dir):
    """CTRL multiplies the embeddings that it is given: torch refuses that for the leaf of a gradient."""
    folder = model_dir / "ctrl"
    if not folder.exists():
        build("ctrl", folder)
    body = {"model": "ctrl", "method": "saliency", "input_text": "the fox", "generation_args": {"max_new_tokens": 1},
            "step_scores": ["probability"]}  # fmt: skip
    plain = Fresh(folder, body["input_text"], body["input_text"])
    network = t.AutoModelForCausalLM.from_pretrained(folder)
    written = network.generate(plain.source, attention_mask=torch.ones_like(plain.source), max_new_tokens=1)
    plain.target, plain.steps = written, range(plain.first, written.shape[1])
    result = completed(server, body, granular=True)
    assert [token["token_id"] for token in result["sequence_attributions"][0]["target"]] == written[0].tolist()
    assert_equals_plain(result, plain)
    assert result["info"]["corrections"] == ["embeddings_are_not_changed"]


def test_a_head_with_several_predictions_of_a_position(server, model_dir):
    """ProphetNet's head predicts the next token and the one after it; without corrections, the numbers are Inseq's own."""
    folder = model_dir / "prophetnet"
    if not folder.exists():
        build("prophetnet", folder)
    body = {"model": "prophetnet", "method": "saliency", "input_text": "The quick", "generated_text": "fox jumps",
            "step_scores": ["probability"]}  # fmt: skip
    plain = Plain(folder, body["input_text"], body["generated_text"])
    for corrections in (True, False):
        assert_equals_plain(completed(server, body | {"corrections": corrections}, granular=True), plain)


def test_scores_of_dropout_without_dropout(server, model_dir):
    """`mc_dropout_prob_avg` divides by the deviation of samples, which is zero or rounding noise without dropout."""
    body = {"model": LOOKUP, "method": "dummy", "input_text": "Anna likes", "step_scores": ["mc_dropout_prob_avg"]}
    found = problem(server, body)
    assert found["errors"][0]["pointer"] == "/step_scores/0"
    assert "this model has none" in found["detail"]
    folder = model_dir / "rwkv"
    if not folder.exists():
        build("rwkv", folder)
    found = problem(server, body | {"model": "rwkv"})  # its configuration says nothing of dropout
    assert found["type"] == "/problems/unsupported-by-model"
    assert "this model has none" in found["detail"]


@pytest.mark.parametrize(
    ("said", "reply"), [("The capi", "tal of France"), ("Because", "."), ("", "Paris"), ("It is", " Paris")]
)
def test_a_reply_is_attributed_as_it_is_written(server, model_dir, said, reply):
    """ggml-org/llama.cpp#3664, huggingface/trl#1153: a dummy prefix between a prompt and its continuation."""
    folder = chat_model(model_dir, "chat-zephyr")
    question = [{"role": "user", "content": "Why?"}]
    messages = [*question, {"role": "assistant", "content": said}] if said else question
    body = {"model": "chat-zephyr", "method": "saliency", "messages": messages, "generated_text": reply,
            "step_scores": ["probability"]}  # fmt: skip
    result = completed(server, body, granular=True)
    plain = Plain(folder, "x", "x")
    prompt = plain.tokenizer.apply_chat_template(
        messages, add_generation_prompt=not said, continue_final_message=bool(said), return_dict=False
    )
    sequence = result["sequence_attributions"][0]
    ids = [token["token_id"] for token in sequence["target"]]
    assert ids[: len(prompt)] == prompt
    assert plain.tokenizer.decode(ids) == plain.tokenizer.decode(prompt) + reply
    plain.target, plain.first = torch.tensor([ids]), len(prompt)
    plain.steps = range(plain.first, len(ids))
    assert_equals_plain(result, plain)
    # The tokenizer itself writes spaces behind special tokens; the model was trained so, and the client is told.
    assert any(r"'<s><|user|> \nWhy?" in warning for warning in result["info"]["warnings"])


def test_a_tokenizer_that_ends_texts(server, model_dir):
    """huggingface/transformers#22794: a tokenizer that adds EOS."""
    chat_model(model_dir, "ends-texts")
    body = {"model": "ends-texts", "method": "dummy", "input_text": "The capital"}
    found = problem(server, body | {"generated_text": "The capital of France"})
    assert "ends each text with '</s>'" in found["detail"]
    assert "skip_special_tokens" in found["detail"]
    free = {"generation_args": {"max_new_tokens": 2, "min_new_tokens": 2}}
    assert any("'</s>'" in warning for warning in completed(server, body | free)["info"]["warnings"])
    for target in (free, {"generated_text": "The capital of France"}):
        result = completed(server, body | target | {"skip_special_tokens": True})
        assert result["info"]["warnings"] == []
        tokens = [token["token"] for token in result["sequence_attributions"][0]["source"]]
        assert "</s>" not in tokens


def test_positions_that_leave_out_the_padding(server, model_dir):
    """huggingface/transformers#15736: positions of ids and of embeddings differ; here for a decoder that starts with
    the pad token, and a decoder-only text that begins with it.
    """
    folder = model_dir / "m2m100-pad"
    if not folder.exists():
        build_family(replace(FAMILIES["m2m100"], extra={"decoder_start_token_id": "pad_token"}), folder)
    body = {"model": "m2m100-pad", "method": "saliency", "input_text": "The quick", "generated_text": "fox"}
    found = problem(server, body)
    assert found["type"] == "/problems/unsupported-by-model"
    assert "Its decoder starts with the padding token" in found["detail"]
    folder = model_dir / "roberta"
    if not folder.exists():
        build_family(ROBERTA, folder)
    body = {"model": "roberta", "method": "saliency", "generation_args": {"max_new_tokens": 1, "min_new_tokens": 1}}
    completed(server, body | {"input_text": "The quick"})
    found = problem(server, body | {"input_text": "<pad>The quick"})
    assert found["type"] == "/problems/input-rejected"
    assert "'<pad>'" in found["detail"]


def test_a_replacement_character(server):
    """pytorch/captum#1360: U+FFFD in a text, the character that stands for bytes that cannot be decoded."""
    body = {"model": LOOKUP, "method": "dummy", "input_text": "caf\ufffd is", "generation_args": {"max_new_tokens": 1}}
    tokens = completed(server, body, decode_tokens=True)["sequence_attributions"][0]["source"]
    # Each of its bytes has its text, as with every character of several tokens.
    assert [token["text"] for token in tokens if "\ufffd" in token["text"]] == ["\ufffd"] * 3
    assert not any("\u00ef" in token["text"] for token in tokens)


def contrastive(contrast, *, alignments=None, force=None):
    """The arguments of a contrastive function."""
    found = {"contrast_targets": contrast}
    found |= {} if alignments is None else {"contrast_targets_alignments": alignments}
    return found if force is None else found | {"contrast_force_inputs": force}


def step_functions(server, *, contrastive_only=True):
    functions = server.client.get("/attribution/step_functions").json()["step_functions"]
    return [each["name"] for each in functions if each["is_contrastive"] or not contrastive_only]


def test_a_contrast_without_context(server):
    """inseq-team/inseq PR#207, Betswish/MIRAGE#1: the probability of a reply with its context, and of the reply alone."""
    body = {"model": LOOKUP, "method": "dummy", "input_text": "Anna likes", "generated_text": "Anna likes tea."}
    at_start = [[[2, 0], [3, 1]]]
    names = step_functions(server)
    assert {"pcxmi", "kl_divergence", "contrast_prob"} <= set(names)
    for force in (True, False, None):
        arguments = contrastive("tea.", alignments=at_start, force=force)
        refused = [body | {"step_scores": [name], "step_scores_args": arguments} for name in names]
        if force:
            refused += [body | {"method": "saliency", "attributed_fn": name, "attributed_fn_args": arguments}
                        for name in names if name.endswith("_diff") or name == "kl_divergence"]  # fmt: skip
        for each in refused:
            found = problem(server, each)
            assert found["type"] == "/problems/input-rejected", each
            assert "contrast position 0 has nothing before it" in found["detail"]
            assert "'<|endoftext|>'" in found["detail"]
    # As the refusal says: with BOS before it.
    arguments = contrastive("<|endoftext|>tea.", alignments=[[[2, 1], [3, 2]]])
    plain = Plain(BUNDLED / LOOKUP, "<|endoftext|>", "<|endoftext|>tea.")
    sequence = completed(server, body | {"step_scores": ["contrast_prob"], "step_scores_args": arguments})
    scores = sequence["sequence_attributions"][0]["step_scores"]["contrast_prob"]
    np.testing.assert_allclose(scores, plain.probabilities(), rtol=1e-4)
    # Attributed without the contrast's own inputs, only the contrast's token is read: that has a value.
    arguments = contrastive("tea.", alignments=at_start)
    completed(
        server, body | {"method": "saliency", "attributed_fn": "contrast_prob_diff", "attributed_fn_args": arguments}
    )


@pytest.mark.parametrize("model", ["chat-qwen2", "chat-zephyr"])
def test_a_contrast_behind_messages_is_the_reply_alone(server, model_dir, model):
    """inseq-team/inseq#295: what a reply is compared with, behind a conversation."""
    folder = chat_model(model_dir, model)
    messages = [{"role": "user", "content": "Is Paris in France?"}]
    body = {"model": model, "method": "saliency", "messages": messages, "generated_text": "ab",
            "attributed_fn": "contrast_prob_diff", "step_scores": ["contrast_prob", "probability"]}  # fmt: skip
    plain = Plain(folder, "x", "x")
    tokenizer = plain.tokenizer
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    prompt = tokenizer(text, add_special_tokens=False).input_ids
    replies = [tokenizer.convert_tokens_to_ids(list(reply)) for reply in ("ab", "ba")]
    plain.target, plain.first = torch.tensor([prompt + replies[0]]), len(prompt)
    plain.steps = range(plain.first, plain.target.shape[1])

    def contrasted(logits, step):
        probabilities = logits.softmax(-1)
        return probabilities[:, replies[0][step - len(prompt)]] - probabilities[:, replies[1][step - len(prompt)]]

    expected = plain.scores(lambda step: plain.gradient(plain.embedded(step), step, contrasted)[0].abs())
    results = []
    for contrast in ("ba", text + "ba"):  # the reply alone, and the whole rendered text
        arguments = contrastive(contrast)
        for method in ("saliency", "integrated_gradients"):
            run = body | {"method": method, "attributed_fn_args": arguments, "step_scores_args": arguments}
            results.append(completed(server, run, granular=True)["sequence_attributions"][0])
    assert results[0]["target"] == results[2]["target"]
    assert results[1] == results[3]
    for found in (results[0], results[2]):
        scores = np.array(found["target_attributions"], dtype=float)
        largest = float(np.nanmax(expected.numpy()))
        np.testing.assert_allclose(scores, expected.numpy(), atol=1e-4 * largest, equal_nan=True)
    plain.target = torch.tensor([prompt + replies[1]])
    np.testing.assert_allclose(results[0]["step_scores"]["contrast_prob"], plain.probabilities(), rtol=1e-4)


def test_contrasts_behind_messages_that_are_refused_or_other_conversations(server, model_dir):
    chat_model(model_dir, "chat-qwen2")
    messages = [{"role": "user", "content": "hi"}]
    body = {"model": "chat-qwen2", "method": "dummy", "messages": messages, "generated_text": "ab",
            "step_scores": ["contrast_prob"]}  # fmt: skip
    found = problem(server, body | {"step_scores_args": contrastive("abc")})
    assert "contrast_targets_alignments" in found["detail"]
    info = completed(server, body | {"step_scores_args": contrastive("ba")})
    first = info["sequence_attributions"][0]["attr_pos_start"]
    found = problem(server, body | {"step_scores_args": contrastive("ba", alignments=[[[first, 0], [first + 1, 1]]])})
    assert f"the assistant's reply alone, whose positions begin at {first}" in found["detail"]
    # A whole text with other messages: p(reply) in another conversation.
    other = "<|im_start|>assistant\nab"
    plain = Plain(model_dir / "chat-qwen2", "x", "x")
    ids = plain.tokenizer(other, add_special_tokens=False).input_ids
    start = len(ids) - 2
    plain.target, plain.steps = torch.tensor([ids]), range(start, len(ids))
    arguments = contrastive(other, alignments=[[[first, start], [first + 1, start + 1]]])
    found = completed(server, body | {"step_scores_args": arguments})["sequence_attributions"][0]["step_scores"]
    np.testing.assert_allclose(found["contrast_prob"], plain.probabilities(), rtol=1e-4)


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]}],
        [{"role": "system", "content": ""}, {"role": "user", "content": "hi"}],
        [{"role": "user", "content": "hi"}, {"role": "tool", "content": "3", "tool_call_id": "c1"}],
    ],
    ids=["parts", "empty system prompt", "tool result"],
)
def test_messages_as_chat_servers_take_them(server, model_dir, messages):
    """vllm-project/vllm#54987, google-ai-edge/LiteRT-LM#3688: content as parts; an empty system prompt, which switches
    off a template's own.
    """
    folder = chat_model(model_dir, "chat-qwen2")
    body = {"model": "chat-qwen2", "method": "dummy", "messages": messages, "generated_text": "ab"}
    job_id = server.run(**body)
    texts = [
        each | {"content": "".join(part["text"] for part in content) if isinstance(content, list) else content}
        for each in messages
        for content in [each["content"]]
    ]
    expected = t.AutoTokenizer.from_pretrained(folder).apply_chat_template(
        texts, add_generation_prompt=True, return_dict=False
    )
    result = server.result(job_id)
    assert [token["token_id"] for token in result["sequence_attributions"][0]["source"]] == expected
    assert result["info"]["warnings"] == []
    with AttributionClient(server.url) as client:  # what is stored is read back
        request = client.job(job_id).request
    assert [{"role": each.role} | each.for_template() for each in request.messages] == texts
    assert completed(server, body | {"messages": server.job(job_id)["request"]["messages"]})


@pytest.mark.parametrize(
    ("message", "pointer", "words"),
    [
        ({"content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "/content/0", "only text is attributed"),
        ({"content": [{"type": "text", "text": "a"}, {"type": "text"}]}, "/content/1/text", "required"),
        ({"content": None}, "/content", "null only beside tool_calls"),
        ({"content": 5}, "/content", "valid string"),
        ({"content": "hi", "refusal": "no"}, "/refusal", "There is no field 'refusal'"),
        ({"content": "hi", "tool_calls": [{"function": {"name": "f", "arguments": 5}}]},
         "/tool_calls/0/function/arguments", "valid"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("several", [False, True])
def test_one_error_for_a_message(server, message, pointer, words, several):
    messages = [{"role": "user"} | message, {"role": "user", "content": "hi"}]
    found = server.refusal(model=LOOKUP, method="dummy", messages=[messages] if several else messages)
    (error,) = found["errors"]
    assert error["pointer"] == f"/messages{'/0' * several}/0{pointer}"
    assert words in error["detail"]


def test_messages_that_cannot_be_rendered(server, model_dir):
    chat_model(model_dir, "chat-qwen2")
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    question = {"role": "user", "content": "hi"}
    found = server.refusal(model="chat-qwen2", method="dummy", messages=[question, call])
    assert "cannot end with tool calls" in found["errors"][0]["detail"]
    body = {"model": "chat-qwen2", "method": "dummy", "generated_text": "ab"}
    for messages, words in (
        ([question | {"name": "Ann"}], "leaves out the name of message 0"),
        ([question, call, question], "leaves out a tool call of message 1"),
    ):
        found = problem(server, body | {"messages": messages})
        assert found["type"] == "/problems/input-rejected"
        assert words in found["detail"]


def test_what_the_tokenizer_does_not_know_is_told(server):
    """A word without a token is attributed as `<unk>`: the text is another one."""
    body = {"model": PHRASEBOOK, "method": "dummy", "input_text": "the red zebra sees a dog"}
    (warning,) = completed(server, body)["info"]["warnings"]
    assert "('zebra'): '<unk>'" in warning
    known = body | {"input_text": SENTENCE}
    assert completed(server, known)["info"]["warnings"] == []
    (warning,) = completed(server, known | {"generated_text": "il gatto zebrato"})["info"]["warnings"]
    assert "parts of generated_text ('zebrato')" in warning
