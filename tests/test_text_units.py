# ruff: noqa: RUF001 - other scripts
"""Words, lines, sentences, paragraphs and messages: which tokens they merge, and what becomes of the scores."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attribution_reading.text_units import UNITS, unit_spans
from attribution_reading.unit_scores import FUNCTIONS
from tests import chat_models
from tests.conftest import LOOKUP, PHRASEBOOK, PROMPT, SENTENCE

START = {"text": "<|im_start|>", "special": True, "template": True, "turn": 0}
END = {"text": "<|im_end|>", "special": True, "template": True, "turn": 0}
NEWLINE = {"text": "\n", "template": True, "turn": 0}
REST = {"continues": True}


def notes_of(*tokens):
    return [{"text": each} if isinstance(each, str) else each for each in tokens]


def units_of(notes, unit, **more):
    return [
        "".join(note["text"] for note in notes[start:end] if "continues" not in note)
        for start, end in unit_spans(notes, unit, **more)
    ]


WORDS = {
    "punctuation is apart": (["The", " Ei", "ffel", ",", " isn", "'t", " it", "?"], ["The", " Eiffel", ",", " isn't", " it", "?"]),
    "a number": ([" 3", ".", "14", "."], [" 3.14", "."]),
    "a space of its own": (["▁".replace("▁", " "), "20", "2", "0", " ", "words"], [" 2020", " words"]),
    "line breaks are apart": ([" tower", ".\n", "\n\n", "The"], [" tower", ".\n", "\n\n", "The"]),
    "indentation is apart": (["    ", "return", " x"], ["    ", "return", " x"]),
    "a letter of two tokens": ([" ص", {"text": "ص"} | REST, "ه", {"text": "ه"} | REST, " هي"], [" صه", " هي"]),
    "a straddling token": (["go", "ing!", "Now"], ["going!", "Now"]),
    "special tokens and the template": (
        [START, {"text": "user"} | {"template": True}, {"text": "\n", "template": True}, "user", "s", END],
        ["<|im_start|>", "user", "\n", "users", "<|im_end|>"],
    ),
    "the prompt's border": ([{"text": " un", "prompt": True}, "able"], [" un", "able"]),
    "messages": ([{"text": "a", "turn": 0}, {"text": "b", "turn": 1}], ["a", "b"]),
    "a contrast's label": ([" tea", {"text": "s → z", "label": True}], [" tea", "s → z"]),
    "scripts without spaces": (["漢", "字", "か", "な"], ["漢", "字", "か", "な"]),
}  # fmt: skip


@pytest.mark.parametrize("name", WORDS)
def test_words(name):
    tokens, expected = WORDS[name]
    assert units_of(notes_of(*tokens), "words") == expected


TEXT = ["A", " tower", ".", " Is", " it", " 3", ".", "5", " m", "?", "\n", "Yes", ".", "\n\n", "Next"]
LONGER = {
    "lines": ["A tower. Is it 3.5 m?\n", "Yes.\n\n", "Next"],
    "sentences": ["A tower.", " Is it 3.5 m?\n", "Yes.\n\n", "Next"],
    "paragraphs": ["A tower. Is it 3.5 m?\nYes.\n\n", "Next"],
    "messages": ["A tower. Is it 3.5 m?\nYes.\n\nNext"],
}


@pytest.mark.parametrize("unit", LONGER)
def test_longer_units(unit):
    assert units_of(notes_of(*TEXT), unit) == LONGER[unit]
    template = [START, NEWLINE]
    chat = template + [{"text": each, "template": False, "turn": 0} for each in TEXT] + [END]
    assert units_of(chat, unit) == ["<|im_start|>", "\n", *LONGER[unit], "<|im_end|>"]


PIECES = st.sampled_from(
    ["a", " b", "c ", ".", ".\n", "\n\n", " ", "é", "漢", "'", "3", "", "\u2029", "🙂", " (", "\t"]
)
NOTES = st.lists(
    st.builds(
        lambda text, turn, special, template, rest: (
            {"text": text, "turn": turn, "template": template} | ({"special": True} if special else {}) | rest
        ),
        PIECES, st.integers(0, 1), st.booleans(), st.booleans(), st.sampled_from([{}, {}, {}, REST]),
    )
)  # fmt: skip


@given(NOTES, st.sampled_from(sorted(UNITS)), st.sets(st.integers(0, 8)))
def test_units_contain_every_token_once_and_cross_nothing(notes, unit, borders):
    spans = unit_spans(notes, unit, borders=borders)
    assert [position for start, end in spans for position in range(start, end)] == list(range(len(notes)))
    for start, end in spans:
        assert end > start
        assert len({(note["turn"], note["template"]) for note in notes[start:end]}) == 1
        assert end - start == 1 or not any("special" in note for note in notes[start:end])
        assert not any(start < border < end for border in borders)


# In results


def blocks(scores, rows, columns, function):
    """First principles: a function of all scores of a block that exist."""
    found = []
    for first, last in rows:
        cells = [
            [value for row in scores[first:last] for value in row[start:end] if value is not None]
            for start, end in columns
        ]
        found.append([function(each) if each else None for each in cells])
    return found


BY_NAME = {
    "sum": sum, "mean": np.mean, "max": max, "min": min, "absmax": lambda values: max(values, key=abs),
}  # fmt: skip


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(("model", "text"), [(LOOKUP, PROMPT), (PHRASEBOOK, SENTENCE)])
def test_the_scores_of_a_unit_are_those_of_its_tokens(server, model, text, function):
    more = {"attribute_target": True} if model == PHRASEBOOK else {"generation_args": {"max_new_tokens": 5}}
    job_id = server.run(
        model=model, method="input_x_gradient", input_text=text, step_scores=["probability", "entropy"], **more
    )
    default = "sum" if function == "absmax" else "scores"  # signed scores, so that the sign matters
    parts = {"aggregator": default, "decode_tokens": True}
    (whole,) = server.result(job_id, **parts)["sequence_attributions"]
    asked = parts | {"aggregator": f"{default},sentences", "aggregate_fn": f",{function}"}
    (merged,) = server.result(job_id, **asked)["sequence_attributions"]
    start, end = whole["attr_pos_start"], whole["attr_pos_end"]
    notes = {
        side: [token | ({"prompt": True} if model == LOOKUP and i < start else {}) for i, token in enumerate(whole[side])]
        for side in ("source", "target")
    }  # fmt: skip
    borders = {"source": (), "target": (start, end)}
    spans = {side: unit_spans(found, "sentences", borders=borders[side]) for side, found in notes.items()}
    columns = [(first - start, last - start) for first, last in spans["target"] if first >= start]
    assert len(merged["target"]) < len(whole["target"])
    for side in ("source", "target"):
        assert [token["text"] for token in merged[side]] == units_of(notes[side], "sentences", borders=borders[side])
        scores = whole[f"{side}_attributions"]
        if scores is not None:
            rows = [each for each in spans[side] if each[1] <= len(scores)]
            expected = blocks(scores, rows, columns, BY_NAME[function])
            assert merged[f"{side}_attributions"] == [
                [None if value is None else pytest.approx(value, rel=1e-5, abs=1e-9) for value in row] for row in expected
            ]  # fmt: skip
    # Step scores are merged by Inseq's functions: a word has the product of its tokens' probabilities.
    for name, by in {"probability": np.prod, "entropy": np.sum}.items():
        expected = [by(whole["step_scores"][name][first:last]) for first, last in columns]
        assert merged["step_scores"][name] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("method", ["saliency", "attention", "lime", "dummy"])
def test_a_unit_alone_comes_behind_the_method_s_own_aggregation(server, method):
    """Scores of each dimension, of each layer and head, of each token, and none at all."""
    body = {"model": LOOKUP, "method": method, "input_text": PROMPT}
    job_id = server.run(**body, **({"attribution_args": {"n_samples": 4}} if method == "lime" else {}))
    (whole,) = server.result(job_id)["sequence_attributions"]
    (merged,) = server.result(job_id, aggregator="sentences")["sequence_attributions"]
    start, end = whole["attr_pos_start"], whole["attr_pos_end"]
    assert [token["token"] for token in merged["target"][:2]] == ["AnnaĠlikesĠtea.", "ĠBenĠlikesĠmilk."]
    if method == "dummy":
        assert not merged["target_attributions"]
        return
    rows = whole["target_attributions"][:4]
    expected = sum(value for row in rows for value in row[: end - start])
    assert merged["target_attributions"][0][0] == pytest.approx(expected, rel=1e-5)


BAD = {
    "aggregator=words,scores": "Put one of words,",
    "aggregator=words,lines": "Put one of words,",
    "aggregator=words&aggregate_fn=vnorm": "words can be aggregated by sum, mean, max, min, absmax",
    "aggregator=subwords,words": "one score for each pair of tokens",
}


@pytest.mark.parametrize("query", BAD)
def test_a_wrong_use_says_what_to_do(server, done, query):
    answer = server.client.get(f"/attribution/jobs/{done}/results?{query}")
    assert answer.status_code == 422
    assert BAD[query] in answer.json()["detail"]


@pytest.fixture(scope="module")
def done(server):
    return server.run(model=LOOKUP, method="saliency", input_text=PROMPT)


# Turns

MESSAGES = [
    {"role": "system", "content": "Be brief"},
    {"role": "user", "content": "user"},
    {"role": "assistant", "content": "hi"},
    {"role": "user", "content": "The quick brown"},
]


def turn_texts(tokens):
    found = {}
    for token in tokens:
        found.setdefault((token.get("turn"), token.get("role")), []).append(token["text"])
    return {turn: "".join(texts) for turn, texts in found.items()}


TURNS = {
    "chat-qwen2": [
        "<|im_start|>system\nBe brief<|im_end|>\n",
        "<|im_start|>user\nuser<|im_end|>\n",
        "<|im_start|>assistant\nhi<|im_end|>\n",
        "<|im_start|>user\nThe quick brown<|im_end|>\n",
        "<|im_start|>assistant\n fox",
    ],
    "chat-llama3": [
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief<|eot_id|>",
        "<|start_header_id|>user<|end_header_id|>\n\nuser<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\nhi<|eot_id|>",
        "<|start_header_id|>user<|end_header_id|>\n\nThe quick brown<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n fox",
    ],
}


@pytest.mark.parametrize("name", TURNS)
def test_each_token_knows_its_turn(server, model_dir, name):
    if not (folder := model_dir / name).exists():
        chat_models.build(name, folder)
    body = {"model": name, "method": "saliency", "generated_text": " fox"}
    job_id = server.run(**body, messages=MESSAGES)
    (sequence,) = server.result(job_id, decode_tokens=True)["sequence_attributions"]
    roles = ["system", "user", "assistant", "user", "assistant"]
    assert turn_texts(sequence["target"]) == dict(zip(enumerate(roles), TURNS[name], strict=True))
    # A message is one unit, and so is each piece of the template around it.
    (merged,) = server.result(job_id, decode_tokens=True, aggregator="messages")["sequence_attributions"]
    written = [token["text"] for token in merged["target"] if not token["template"]]
    assert written == [*(message["content"] for message in MESSAGES), " fox"]
    # A conversation that ends with the assistant's turn is continued: the new tokens are of that turn.
    job_id = server.run(**body, messages=MESSAGES[:3])
    (continued,) = server.result(job_id, decode_tokens=True)["sequence_attributions"]
    assert list(turn_texts(continued["target"]).items())[-1] == (
        (2, "assistant"),
        TURNS[name][2].split("hi")[0] + "hi fox",
    )


CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
# For each conversation: the turns, each with its number and its role; a template's own system prompt is no message.
OTHER_TURNS = {
    "a default system prompt": ("chat-default-prompt", [("user", "Hi")], {
        (None, None): "<|im_start|>system\nYou help the user.<|im_end|>\n",
        (0, "user"): "<|im_start|>user\nHi<|im_end|>\n",
        (1, "assistant"): "<|im_start|>assistant\n fox",
    }),
    "a tool call": ("chat-default-prompt", [("system", "Add"), ("user", "Sum?"), ("assistant", None), ("tool", "3")], {
        (0, "system"): "<|im_start|>system\nAdd<|im_end|>\n",
        (1, "user"): "<|im_start|>user\nSum?<|im_end|>\n",
        (2, "assistant"): "<|im_start|>assistant\n<tool>add</tool><|im_end|>\n",
        (3, "tool"): "<|im_start|>tool\n3<|im_end|>\n",
        (4, "assistant"): "<|im_start|>assistant\n fox",
    }),
    "no content": ("chat-default-prompt", [("system", ""), ("user", "Sum?"), ("assistant", ""), ("user", "Ok")], {
        (0, "system"): "<|im_start|>system\n<|im_end|>\n",
        (1, "user"): "<|im_start|>user\nSum?<|im_end|>\n",
        (2, "assistant"): "<|im_start|>assistant\n<|im_end|>\n",
        (3, "user"): "<|im_start|>user\nOk<|im_end|>\n",
        (4, "assistant"): "<|im_start|>assistant\n fox",
    }),
    "a capitalised role": ("chat-capitalised", [("user", "Hi"), ("assistant", "Yo"), ("user", "Ok")], {
        (0, "user"): "<|User|>Hi",
        (1, "assistant"): "<|Assistant|>Yo<|im_end|>",
        (2, "user"): "<|User|>Ok",
        (3, "assistant"): "<|Assistant|> fox",
    }),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHER_TURNS)
def test_a_turn_is_found_in_every_template(server, model_dir, case):
    name, said, expected = OTHER_TURNS[case]
    if not (folder := model_dir / name).exists():
        chat_models.build(name, folder)
    messages = [
        {"role": role, "content": content} | ({"tool_calls": [CALL]} if content is None else {})
        for role, content in said
    ]
    job_id = server.run(model=name, method="saliency", messages=messages, generated_text=" fox")
    (sequence,) = server.result(job_id, decode_tokens=True)["sequence_attributions"]
    assert turn_texts(sequence["target"]) == expected
