"""Texts of public bug reports on tools like this one, over HTTP: ids and text are the tokenizer's, scores those of first
principles. `test_field_cases` has the requests.

Sources are where a situation was met; nothing else was taken from them.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers as t

from tests import chat_models
from tests.families import build
from tests.first_principles import Plain
from tests.serving import Server
from tests.test_network_state import assert_equals_plain

# Of the largest score. Sums of some hundred products in another order differ by about ten units of float32's last place
# (1.2e-7), and a gradient passes a few such sums; the network has two layers.
ROUNDING = 1e-5
TEXTS = {
    # pytorch/captum#1360: characters of several tokens
    "joined emoji": "a \U0001f469\u200d\U0001f469\u200d\U0001f467 b",
    "chinese": "法国的首都是",
    "arabic": "عاصمة فرنسا",
    "combining": "cafe\u0301 na\u0308ive",
    "byte order mark": "\ufeffThe quick",
    "zero width space": "The\u200bquick",
    # shap/shap#3660: an extra sign in front of words
    "words": "The quick brown",
    # huggingface/transformers#13038: blanks
    "blanks alone": "   ",
    "spaces in front": "   The quick",
    "lines": "The\r\nquick\n\n",
    "tabs and NUL": "The\tquick\x00brown",
    # inseq-team/inseq#190: from the token that begins texts alone
    "begin token": "<|endoftext|>",
}


@pytest.fixture(scope="module")
def gpt2(model_dir):
    folder = model_dir / "gpt2"
    return folder if folder.exists() else build("gpt2", folder)


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_is_attributed_as_it_is_written(server, gpt2, name):
    text, length = TEXTS[name], {"max_new_tokens": 2, "min_new_tokens": 2, "do_sample": False}
    job = server.run(
        model="gpt2", method="saliency", input_text=text, generation_args=length, step_scores=["probability"]
    )
    result = server.result(job, granular=True, decode_tokens=True)
    plain = Plain(gpt2, text, text)
    plain.target = plain.network.generate(plain.source, attention_mask=torch.ones_like(plain.source), **length)
    plain.steps = range(plain.first, plain.target.shape[1])
    sequence = result["sequence_attributions"][0]
    assert [token["token_id"] for token in sequence["target"]] == plain.target[0].tolist()
    assert_equals_plain(result, plain)
    # Each token of a character that needs several has its text; so the readable text has them all, once or more.
    texts = [token["text"] for token in sequence["source"]]
    if len(text.encode()) == len(text):
        assert "".join(texts) == text
    else:
        assert "".join(dict.fromkeys("".join(texts))) == "".join(dict.fromkeys(text))
    assert result["info"]["warnings"] == []


def test_one_token_by_several_methods(server, gpt2):
    """pytorch/captum#1322: a target of one token."""
    text, target = "The quick brown", "The quick brown fox"
    plain = Plain(gpt2, text, target)
    plain.target = plain.target[:, : plain.first + 1]
    plain.steps = range(plain.first, plain.first + 1)
    body = {"model": "gpt2", "input_text": text, "generated_text": target, "attr_pos_end": plain.first + 1}

    def scores(method, **arguments):
        job = server.run(**body, method=method, attribution_args=arguments)
        found = server.result(job, granular=True)["sequence_attributions"][0]["target_attributions"]
        return np.array(found, dtype=float)[: plain.first]

    expected = plain.scores(lambda step: plain.integrated(step, 20)).numpy()[: plain.first]
    largest = np.abs(expected).max()
    of_layer = scores("layer_integrated_gradients", n_steps=20)
    np.testing.assert_allclose(scores("integrated_gradients", n_steps=20), expected, atol=ROUNDING * largest)
    np.testing.assert_allclose(of_layer, expected, atol=ROUNDING * largest)
    with torch.no_grad():
        maps = torch.stack(plain.network(plain.source, output_attentions=True).attentions, -1)[0, :, -1]
        clear = plain.probability(plain.logits(plain.first), plain.first)
        rows = plain.embedded(plain.first).repeat(plain.first, 1, 1)
        rows[range(plain.first), range(plain.first)] = plain.embedded(plain.first, baseline=True)[0]
        occluded = clear - plain.probability(plain.logits(plain.first, rows), plain.first)
    np.testing.assert_allclose(scores("attention")[:, 0], maps.permute(1, 2, 0), atol=ROUNDING)  # shares of 1
    found = scores("occlusion")[:, 0]
    np.testing.assert_allclose(found, occluded.abs(), atol=ROUNDING * float(clear))


def test_a_reply_that_ends_its_turn(server, model_dir):
    """NVIDIA-NeMo/Automodel#1338: the token that ends a turn is kept, though it pads and ends texts too."""
    folder = model_dir / "chat-qwen2"
    if not folder.exists():
        chat_models.build("chat-qwen2", folder)
    messages = [{"role": "user", "content": "hi"}]
    body = {"model": "chat-qwen2", "method": "saliency", "messages": messages, "step_scores": ["probability"]}
    result = server.result(server.run(**body, generated_text="ab<|im_end|>"), granular=True)
    plain = Plain(folder, "x", "x")
    prompt = plain.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    reply = plain.tokenizer("ab<|im_end|>", add_special_tokens=False).input_ids
    assert reply[-1] == plain.tokenizer.eos_token_id
    plain.target, plain.first = torch.tensor([prompt + reply]), len(prompt)
    plain.steps = range(plain.first, plain.target.shape[1])
    assert [token["token_id"] for token in result["sequence_attributions"][0]["target"]] == prompt + reply
    assert_equals_plain(result, plain)


@pytest.mark.slow
def test_half_precision_of_a_processor_without_it(tmp_path, model_dir):
    """`bfloat16` where the processor multiplies no such matrices: in float32, with the weights rounded."""
    folder = model_dir / "gpt2-bfloat16"
    build("gpt2", folder)
    text, target = "The quick brown", "The quick brown fox"
    plain = Plain(folder, text, target)
    with torch.no_grad():
        for weights in plain.network.parameters():
            weights.copy_(weights.bfloat16())
    body = {"model": folder.name, "method": "saliency", "dtype": "bfloat16", "input_text": text,
            "generated_text": target, "step_scores": ["probability"]}  # fmt: skip
    with Server(tmp_path, INSEQ_API_MODEL_DIRS=str(model_dir), INSEQ_API_CPU_HALF="float32") as server:
        result = server.result(server.run(**body), granular=True)
    assert_equals_plain(result, plain)
    assert result["info"]["compute_dtype"] == "float32"
    assert any("float32" in each for each in result["info"]["warnings"])


@pytest.mark.slow
def test_a_default_length_of_thousands(server, model_dir):
    """huggingface/transformers#25030, as it was sent: the model's own 3,000 tokens are cut to the server's 1,024."""
    folder = model_dir / "longdefault"
    build("bloom", folder)
    config = t.GenerationConfig.from_pretrained(folder)
    config.max_length = 3000
    config.eos_token_id = None
    config.save_pretrained(folder)
    body = {"model": "longdefault", "method": "dummy", "input_text": "the fox ", "step_scores": ["probability"]}
    result = server.result(server.run(**body))
    plain = Plain(folder, body["input_text"], body["input_text"])
    expected = plain.network.generate(plain.source, attention_mask=torch.ones_like(plain.source), max_new_tokens=1024)
    sequence = result["sequence_attributions"][0]
    assert expected.shape[1] == plain.first + 1024
    assert [token["token_id"] for token in sequence["target"]] == expected[0].tolist()
    with torch.no_grad():
        logits = plain.network(expected).logits[0, plain.first - 1 : -1]
    probabilities = logits.softmax(-1).gather(-1, expected[0, plain.first :, None])[:, 0]
    np.testing.assert_allclose(sequence["step_scores"]["probability"], probabilities, rtol=ROUNDING)
    assert any("INSEQ_API_MAX_NEW_TOKENS" in each for each in result["info"]["warnings"])
