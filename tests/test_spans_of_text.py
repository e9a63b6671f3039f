"""Parts of a text, found on its tokens: by positions, characters and text, rounded outward to whole tokens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from attribution.text.spans import SelectableText
from attribution_schema.spans import Span, TextSelection
from problems import InputRejected

TOKENS = ["Why", "?", "<think>", " One", " and", " one", ".", "</think>", " Tw", "o", ".", "<end>"]
NOTES = [{"text": each, **({"special": True} if each[0] == "<" else {})} for each in TOKENS]
TEXT = SelectableText(NOTES, 3, len(NOTES), "the generated text")  # the template opened the thought


def found(**selection):
    warnings = []
    span = TEXT.find(TextSelection(**selection), "spans[0]", warnings)
    return (span.start, span.end), span.text, warnings


@pytest.mark.parametrize(
    ("selection", "tokens"),
    [
        ({"start": 4, "end": 6}, (4, 6)),
        ({"end": 5}, (3, 5)),
        ({"start": 9}, (9, 12)),
        ({"text": " and one"}, (4, 6)),
        ({"text": "and one"}, (4, 6)),  # a blank at the beginning of a token is no other text
        ({"after": "</think>"}, (8, 11)),  # without the special token at the end
        ({"after": "<think>"}, (3, 11)),
        ({"between": ["<think>", "</think>"]}, (3, 7)),
        ({"between": [" One", "."]}, (4, 6)),
        ({"after": "<think> One"}, (4, 11)),  # begins in the prompt
        ({"between": ["k> One and", "."]}, (5, 6)),
        ({"text": ".", "occurrence": -1}, (10, 11)),
        ({"characters": [0, 4]}, (3, 4)),
        ({}, (3, 11)),
    ],
)
def test_a_part_is_found(selection, tokens):
    span, text, warnings = found(**selection)
    assert span == tokens
    assert text == "".join(TOKENS[slice(*tokens)])
    assert warnings == []


def test_a_marker_that_ends_the_prompt_selects_from_the_beginning():
    """Blanks and special tokens may stand between it and the text, words may not."""
    notes = [{"text": each} for each in ["Q", ": A", ":", " ", "x"]]
    notes.insert(4, {"text": "<s>", "special": True})
    for first, marker in ((5, "A:"), (5, ":"), (5, " A: "), (4, ": ")):
        text = SelectableText(notes, first, len(notes), "the generated text")
        assert text.find(TextSelection(after=marker), "spans[0]", []).start == first
    with pytest.raises(InputRejected, match="only before it"):
        SelectableText(notes, 5, len(notes), "the generated text").find(TextSelection(after="Q:"), "spans[0]", [])


def test_what_is_not_exact_is_said():
    span, text, (warning,) = found(text="w")
    assert (span, text) == ((8, 9), " Tw")
    assert warning == "spans[0] begins or ends within a token: 'Tw' is attributed for 'w'."
    span, _, (warning,) = found(text=".")
    assert span == (6, 7)
    assert "occurs 2 times; the first was taken" in warning


@pytest.mark.parametrize(
    ("selection", "reason"),
    [
        ({"text": "Three"}, "'Three' does not occur in the generated text, which is ' One and one.</think> Two.<end>'"),
        ({"between": ["</think>", "<think>"]}, "'<think>' does not occur behind '</think>'"),
        ({"start": 2, "end": 4}, "the positions 2 to 4, and those of the generated text are 3 to 12"),
        ({"start": 12}, "the positions 12 to 12"),
        ({"characters": [3, 99]}, "ends at character 99, and the generated text has 31"),
        ({"text": ".", "occurrence": 2}, "'.' occurs 2 times; there is no occurrence 2"),
        ({"after": "<end>"}, "selects nothing"),
        ({"after": "Why"}, "'Why' does not occur in the generated text, only before it, with other text behind it"),
        ({"between": ["?<", "</think>"]}, "only before it, with other text behind it"),
        ({"after": "<think>", "occurrence": 0}, "only before it"),  # occurrences are those in the text
    ],
)
def test_what_is_not_there_is_refused(selection, reason):
    with pytest.raises(InputRejected, match=r"^spans\[0\]") as refused:
        found(**selection)
    assert reason in str(refused.value)


def test_a_character_of_several_tokens_is_whole():
    notes = [{"text": " a"}, {"text": "é"}, {"text": "é", "continues": True}, {"text": "b"}]
    text = SelectableText(notes, 0, 4, "the input")
    for characters, tokens in (([0, 3], (0, 3)), ([2, 3], (1, 3)), ([3, 4], (3, 4))):
        span = text.find(TextSelection(characters=characters), "segments[0]", [])
        assert (span.start, span.end) == tokens


@given(st.lists(st.text(min_size=1, max_size=4), min_size=1, max_size=12), st.data())
def test_any_characters_are_inside_the_tokens_found_and_no_token_is_too_many(pieces, data):
    text = SelectableText([{"text": each} for each in pieces], 0, len(pieces), "it")
    whole = "".join(pieces)
    begin = data.draw(st.integers(0, len(whole) - 1))
    stop = data.draw(st.integers(begin + 1, len(whole)))
    span = text.find(TextSelection(characters=(begin, stop)), "spans[0]", [])
    start = len("".join(pieces[: span.start]))
    end = len("".join(pieces[: span.end]))
    assert start <= begin < stop <= end
    assert begin < start + len(pieces[span.start])
    assert stop > end - len(pieces[span.end - 1])


@pytest.mark.parametrize(
    ("selection", "reason"),
    [
        ({"text": "a", "after": "b"}, "is selected by text and by after"),
        ({"occurrence": 1}, "occurrence says which"),
        ({"start": 3, "end": 3}, "start must be less than end"),
        ({"characters": [3, 3]}, "characters are the offsets"),
    ],
)
def test_a_part_is_selected_in_one_way(selection, reason):
    with pytest.raises(ValidationError, match=reason):
        Span(**selection)
