"""Conversations are rendered by the tokenizer's chat template, and the template's tokens are marked."""

from __future__ import annotations

import copy
import json
import unicodedata

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from attribution.model_cache.model_source import ModelSource
from attribution.text import chat
from attribution.text.readable_tokens import readable_texts
from attribution.text.sandbox import Sandboxes, TextSandbox
from models import AttributionRequest
from problems import InputRejected
from tests import chat_models
from tests.first_principles import Plain
from tests.test_corrections_methods import assert_scores, run

MODELS = ["chat-qwen2", "chat-llama3"]
MESSAGES = [{"role": "system", "content": "user"}, {"role": "user", "content": " The quick brown "}]


@pytest.fixture(scope="module", params=MODELS)
def model(request, model_dir):
    folder = model_dir / request.param
    return folder if folder.exists() else chat_models.build(request.param, folder)


def words_of(tokens):
    return "".join(token["text"] for token in tokens if not token["template"])


def test_ids_are_those_of_the_template(server, tmp_path, model):
    """Ids equal Transformers' prompt, with special and pad tokens; scores equal those from first principles."""
    reply = " fox jumps"
    ours = run(
        server, tmp_path, model=model.name, method="saliency", messages=MESSAGES, generated_text=reply,
        step_scores=["probability"],
    )  # fmt: skip
    plain = Plain(model, "x", "x")
    prompt = plain.tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    plain.target = torch.tensor([prompt + plain.tokenizer(reply, add_special_tokens=False).input_ids])
    plain.first = len(prompt)
    plain.steps = range(plain.first, plain.target.shape[1])
    assert [token.id for token in ours[0].target] == plain.target[0].tolist()
    assert [token.id for token in ours[0].source] == prompt
    np.testing.assert_allclose(ours[0].step_scores["probability"].numpy(), plain.probabilities(), rtol=1e-4)
    assert_scores(ours, plain.scores(lambda step: plain.gradient(plain.embedded(step), step)[0].abs()))
    assert ours.info["input_texts"] == [plain.tokenizer.decode(prompt)]
    assert ours.info["generated_texts"] == [plain.tokenizer.decode(plain.target[0])]


def test_the_template_s_tokens_are_marked(server, model):
    body = {"model": model.name, "method": "saliency", "messages": MESSAGES, "generation_args": {"max_new_tokens": 3}}
    job_id = server.run(**body)
    sequence = server.result(job_id, decode_tokens=True)["sequence_attributions"][0]
    start = sequence["attr_pos_start"]
    written = ["user", " The quick brown "]
    if model.name == "chat-llama3":  # its template trims messages
        written = [each.strip() for each in written]
    assert words_of(sequence["source"]) == words_of(sequence["target"][:start]) == "".join(written)
    assert not any(token["template"] for token in sequence["target"][start:])
    assert sum(token["template"] for token in sequence["source"]) > 10
    merged = server.result(job_id, decode_tokens=True, aggregator="subwords")["sequence_attributions"][0]
    assert len(merged["target"]) < len(sequence["target"])
    assert "".join(token["text"] for token in merged["target"]) == "".join(t["text"] for t in sequence["target"])
    assert "tokens" not in server.result(job_id)["info"]


def test_a_conversation_that_ends_with_the_assistant_is_continued(server, model_dir):
    folder = model_dir / "chat-qwen2"
    if not folder.exists():
        chat_models.build("chat-qwen2", folder)
    messages = [*MESSAGES, {"role": "assistant", "content": "fox"}]
    info = server.result(
        server.run(model="chat-qwen2", method="dummy", messages=messages, generated_text=" jumps")
    )["info"]  # fmt: skip
    assert info["input_texts"][0].endswith("<|im_start|>assistant\nfox")
    assert info["generated_texts"][0].endswith("<|im_start|>assistant\nfox jumps")


def test_without_corrections_the_conversation_is_still_attributed_once(server, model):
    body = {"model": model.name, "method": "dummy", "seed": 5, "step_scores": ["logit"],
            "messages": [{"role": "user", "content": "hello  there"}],
            "generation_args": {"do_sample": True, "max_new_tokens": 6, "min_new_tokens": 6}}  # fmt: skip
    on, off = (
        server.result(server.run(**body, corrections=corrections))["sequence_attributions"][0]
        for corrections in (True, False)
    )
    assert abs(len(off["target"]) - len(on["target"])) < 12  # Inseq encodes the reply again, and drops tokens
    assert len(off["source"]) <= len(on["source"])
    # Llama 3 pads with its end of turn, and Inseq drops pad tokens: those that are left are known all the same.
    words = [token["token"] for token in on["source"] if not token["template"]]
    assert [token["token"] for token in off["source"] if not token["template"]] == words


def test_notes_follow_tokens_that_are_left_out(server, model):
    job_id = server.run(
        model=model.name, method="saliency", messages=[{"role": "user", "content": "The quick brown fox"}],
        generated_text=" jumps over é 漢字",
    )  # fmt: skip
    whole = server.result(job_id, decode_tokens=True)["sequence_attributions"][0]
    spans = {"target_spans": [[12, 16]]}
    cut = server.result(job_id, decode_tokens=True, aggregator="scores,slices", aggregator_args=json.dumps(spans))[
        "sequence_attributions"
    ][0]
    start = whole["attr_pos_start"]
    assert cut["target"] == [*whole["target"][12:16], *whole["target"][start:]]
    merged = server.result(job_id, decode_tokens=True, aggregator="subwords")["sequence_attributions"][0]
    last = {"token": "Ġæ¼¢åŃĹ", "token_id": -1, "text": " 漢字"}
    assert merged["target"][-1] == last | {"template": False, "turn": 1, "role": "assistant"}


def test_variables_reach_the_template(server, model_dir):
    folder = model_dir / "chat-qwen2"
    if not folder.exists():
        chat_models.build("chat-qwen2", folder)
    body = {"model": "chat-qwen2", "method": "dummy", "messages": MESSAGES, "generated_text": "fox"}
    (text,) = server.result(server.run(**body, chat_template_args={"enable_thinking": False}))["info"]["input_texts"]
    assert text.endswith("<think></think>")


def test_several_conversations(server, model):
    conversations = [MESSAGES, [{"role": "user", "content": "fox"}]]
    body = {"model": model.name, "method": "saliency"}
    together = server.result(server.run(**body, messages=conversations, generated_text=["a", "b"]))
    for index, target in enumerate("ab"):
        alone = server.result(server.run(**body, messages=conversations[index], generated_text=target))
        assert together["sequence_attributions"][index] == alone["sequence_attributions"][0]


def test_a_template_that_refuses_is_told(server, model_dir):
    if not (model_dir / "chat-llama3").exists():
        chat_models.build("chat-llama3", model_dir / "chat-llama3")
    job = server.wait(
        server.submit(model="chat-llama3", method="saliency", messages=[{"role": "tool", "content": "x"}])
    )
    assert job["error"]["type"] == "/problems/input-rejected"
    assert "there are no tools here" in job["error"]["detail"]


def test_template_arguments_cannot_be_taken_over(server, model):
    """`chat_template_args` cannot set the parameters of `apply_chat_template` itself."""
    for name in ("tokenize", "chat_template", "add_generation_prompt", "conversation"):
        problem = server.refusal(
            model=model.name, method="saliency", messages=MESSAGES, chat_template_args={name: "{{ 1 }}"}
        )
        assert problem["errors"][0]["pointer"] == f"/chat_template_args/{name}"


# What messages may have besides a text, where the template has it

ROLES = (
    "{% for m in messages %}{% if m.role == 'assistant' and m.tool_calls %}<call>{% for c in m.tool_calls %}"
    "{{ c.function.name }}({{ c.function.arguments | tojson }}){% endfor %}{% if m.content %}{{ m.content }}{% endif %}"
    "{% elif m.role == 'tool' %}<{{ m.name or 'tool' }}>{{ m.content }}"
    "{% else %}<{{ m.role }}{% if m.name %}:{{ m.name }}{% endif %}>{{ m.content }}{% endif %};{% endfor %}"
)
DROPS_TOOLS = (
    "{% for m in messages %}{% if m.role == 'user' %}[{{ m.content }}]{% elif m.role == 'assistant' %}"
    "({{ m.content }}){% endif %}{% endfor %}"
)
PARTS_ALONE = (
    "{% for m in messages %}{{ m.role }}:{% for part in m.content %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% endif %}{% endfor %};{% endfor %}"
)
EITHER = (
    "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
    "{{ part.text }}{% endfor %}{% endif %};{% endfor %}"
)
CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add", "arguments": {"a": 1}}}]}
ANSWER = {"role": "tool", "content": "3", "name": "add", "tool_call_id": "1"}
HI = {"role": "user", "content": "hi"}


def rendered(model_folders, sandbox_of, template, messages):
    tokenizer = copy.copy(model_folders["chat-qwen2"])
    tokenizer.chat_template = template
    given = AttributionRequest(model="m", method="dummy", messages=messages).conversations[0]
    return chat.render(tokenizer, [each.for_template() for each in given], {}, sandbox_of("chat-qwen2"))


@pytest.mark.parametrize(
    ("template", "messages", "text"),
    [
        (ROLES, [HI, CALL, ANSWER], '<user>hi;<call>add({"a": 1});<add>3;'),
        (ROLES, [HI | {"name": "Ann"}], "<user:Ann>hi;"),
        (ROLES, [{"role": "system", "content": ""}, HI], "<system>;<user>hi;"),
        (ROLES, [{"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]}], "<user>hi;"),
        (PARTS_ALONE, [HI], "user:hi;"),
        (PARTS_ALONE, [{"role": "user", "content": [{"type": "text", "text": "hi"}]}], "user:hi;"),
        (EITHER, [HI, {"role": "user", "content": [{"type": "text", "text": "you"}]}], "hi;you;"),
        # "None" would be a text that nobody wrote.
        (DROPS_TOOLS.replace("m.content }})", "m.content }}{{ m.tool_calls[0].function.name }})"), [HI, CALL, HI],
         "[hi](add)[hi]"),
    ],
)  # fmt: skip
def test_what_a_template_has_is_rendered(model_folders, sandbox_of, template, messages, text):
    found = rendered(model_folders, sandbox_of, template, messages)
    assert found.text == text
    assert found.warnings == []
    pieces, _ = readable_texts(model_folders["chat-qwen2"], found.ids[0].tolist())
    written = "".join(piece for piece, mark in zip(pieces, found.from_template, strict=True) if not mark)
    contents = AttributionRequest(model="m", method="dummy", messages=messages).conversations[0]
    assert written == "".join(each.text or "" for each in contents)


@pytest.mark.parametrize(
    ("template", "messages", "words"),
    [
        (DROPS_TOOLS, [HI, ANSWER], "leaves out the content of message 1 (counted from 0, role 'tool')"),
        (DROPS_TOOLS, [HI | {"name": "Ann"}], "leaves out the name of message 0"),
        (DROPS_TOOLS, [HI, CALL, HI], "leaves out a tool call of message 1"),
        (DROPS_TOOLS, [{"role": "system", "content": "Be brief."}, HI], "leaves out the content of message 0"),
        (PARTS_ALONE + "{{ raise_exception('no') }}", [HI], "no"),
    ],
)
def test_what_a_template_leaves_out_is_refused(model_folders, sandbox_of, template, messages, words):
    with pytest.raises(InputRejected) as refused:
        rendered(model_folders, sandbox_of, template, messages)
    assert words in refused.value.detail


def test_a_trimmed_turn_is_told(model_folders, sandbox_of):
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "The capital of "}]
    found = chat.render(model_folders["chat-llama3"], messages, {}, sandbox_of("chat-llama3"))
    assert found.text.endswith("The capital of")
    assert "trims the assistant's turn" in found.warnings[0]


# Any text

contents = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)


def normalized(name, text):
    """Text as the tokenizer encodes it: Qwen's normalizes to NFC, Llama 3's does not."""
    return unicodedata.normalize("NFC", text) if name == "chat-qwen2" else text


@settings(deadline=None, max_examples=150)
@given(st.lists(contents, min_size=1, max_size=4), st.sampled_from(MODELS))
def test_marks_are_exact_for_any_text(model_folders, sandbox_of, texts, name):
    """The unmarked tokens join to the messages' texts. A token of both template and message counts as the message's."""
    tokenizer = model_folders[name]
    messages = [{"role": "user", "content": text} for text in texts]
    conversation = chat.render(tokenizer, messages, {}, sandbox_of(name))
    assert conversation.from_template is not None
    pieces, continues = readable_texts(tokenizer, conversation.ids[0].tolist())
    written = "".join(
        piece
        for index, (piece, template) in enumerate(zip(pieces, conversation.from_template, strict=True))
        if not template and index not in continues
    )
    expected = "".join(text.strip() if name == "chat-llama3" else text for text in texts)
    assert written == normalized(name, expected)


@settings(deadline=None, max_examples=150)
@given(contents)
@example("caf\ufffd\ufffd\u00ef\u00bf\u00bd")
def test_readable_tokens_join_to_the_text(model_folders, text):
    tokenizer = model_folders["chat-qwen2"]
    ids = tokenizer(text, add_special_tokens=False).input_ids
    pieces, continues = readable_texts(tokenizer, ids)
    assert len(pieces) == len(ids)
    joined = "".join(piece for index, piece in enumerate(pieces) if index not in continues)
    assert joined == normalized("chat-qwen2", text)


@pytest.fixture(scope="module")
def sandbox_of(model_dir):
    """A function from a model's name to its sandbox."""
    sandboxes = Sandboxes(seconds=60, memory=1024**3)
    return lambda name: TextSandbox(sandboxes, ModelSource(name, "directory", model_dir / name, "1"), lambda: False)


@pytest.fixture(scope="module")
def model_folders(model_dir):
    found = {}
    for name in MODELS:
        folder = model_dir / name
        found[name] = AutoTokenizer.from_pretrained(folder if folder.exists() else chat_models.build(name, folder))
    return found
