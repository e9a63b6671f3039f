"""A reply's tokens behind a conversation's spell both, for every kind of tokenizer and ending of a template."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from attribution.text.continuation import change_behind, change_of, continued, spelled
from attribution.text.readable_tokens import readable_texts
from tests.tiny_tokenizers import CHANGES_TEXT, KINDS, tiny_tokenizer

ENDINGS = ["<|assistant|>", "<|assistant|>\n", "assistant:", "assistant: ", "[/INST]", "<s>", "a"]
letters = st.sampled_from("abce tT.\n'é漢\u0301🙂<\u2581")
words = st.lists(letters | st.sampled_from([" capital", "France", "  ", "\n\n"]), min_size=1, max_size=6).map("".join)
conversations = st.lists(st.tuples(st.sampled_from(["<|user|>\n", "<|assistant|>", "user: "]), words), max_size=3)


def rendered(turns, ending, continued_turn):
    return "<s>" + "".join(f"{role}{text}</s>\n" for role, text in turns) + ending + continued_turn


@settings(max_examples=150)
@given(st.sampled_from(sorted(KINDS)), conversations, st.sampled_from(ENDINGS), st.just("") | words, words)
@example("metaspace always", [("<|user|>\n", "Why?")], "<|assistant|>\n", "The capi", "tal of France")
@example("metaspace always", [], "<|assistant|>", "", "Because")
@example("prepended", [], "<|assistant|>", "Because", ".")
@example("prepended", [], "assistant: ", "", "Because")
@example("byte level with a prefix", [], "<|assistant|>", "The capi", "tal")
def test_the_tokens_spell_prompt_and_reply(kind, turns, ending, continued_turn, reply):
    tokenizer = tiny_tokenizer(kind)
    prompt = rendered(turns, ending, continued_turn)
    ids = tokenizer(prompt, add_special_tokens=False).input_ids
    found = continued(tokenizer, prompt, ids, reply)
    text = spelled(tokenizer, ids + found.ids)
    is_told = any("changes generated_text" in each for each in found.warnings)
    assert (text == spelled(tokenizer, ids) + reply) is not is_told
    assert not is_told or kind in CHANGES_TEXT or "\u2581" in reply  # SentencePiece's own sign for a space
    # What the tokenizer does to the conversation itself is told, too.
    assert (spelled(tokenizer, ids) == prompt) is (change_of(tokenizer, prompt) is None)
    if ids + found.ids != tokenizer(prompt + reply, add_special_tokens=False).input_ids:
        assert found.warnings


@settings(max_examples=50)
@given(st.sampled_from(sorted(KINDS)), words, words)
def test_a_change_of_plain_text_is_told(kind, prompt, rest):
    tokenizer = tiny_tokenizer(kind)
    ids, before = (tokenizer(each, add_special_tokens=False).input_ids for each in (prompt + rest, prompt))
    expected = spelled(tokenizer, before) + rest
    assert (spelled(tokenizer, ids) == expected) is (change_behind(tokenizer, prompt, prompt + rest) is None)


@pytest.mark.parametrize(
    ("kind", "prompt", "reply", "words"),
    [
        ("byte level of lower case", "user: ", "Paris", "'user: paris' for 'user: Paris'"),
        ("metaspace always", "user: hi<|assistant|>", "Paris", "'|assistant|> Paris' for '|assistant|>Paris'"),
        ("byte level", "The capi", "tal", "' capital'"),
    ],
)
def test_a_warning_shows_the_difference(kind, prompt, reply, words):
    tokenizer = tiny_tokenizer(kind)
    (warning,) = continued(tokenizer, prompt, tokenizer(prompt, add_special_tokens=False).input_ids, reply).warnings
    assert words in warning


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_replacement_character_is_readable(kind):
    """U+FFFD itself, and not only the sign of bytes that cannot be decoded."""
    tokenizer = tiny_tokenizer(kind)
    ids = tokenizer("a\ufffdé \ufffd", add_special_tokens=False).input_ids
    texts, continues = readable_texts(tokenizer, ids)
    assert "".join(text for index, text in enumerate(texts) if index not in continues).strip() == "a\ufffdé \ufffd"


def test_a_byte_alone_stays_as_it_is():
    tokenizer = tiny_tokenizer("byte level")
    ids = tokenizer("\ufffd", add_special_tokens=False).input_ids
    assert readable_texts(tokenizer, ids[:2]) == (["\u00ef", "\u00bf"], [])
