# ruff: noqa: RUF001 - other scripts
"""Words, lines, sentences, paragraphs and messages: which tokens they merge, and what becomes of the scores."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from uniseg.sentencebreak import sentence_boundaries

from attribution.text.turns import turns_of
from attribution_client import AttributionClient
from attribution_client.merging import merged as merged_by_client
from attribution_reading import text_units
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


CHARACTERS = "a A1.?!,:;-)(\"'\u2019 \u00a0\n\r\u2029\u0301\u200d\u00ad漢…"  # of every kind that the rules know


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("piece", [*CHARACTERS, "        ", ". ", ".)", " (", "a\u0301", "\n ", "1.", "🇦"])
def test_the_work_grows_with_the_text_and_not_with_its_square(unit, piece):
    """The lines of Python that run are counted."""

    def work(count):
        lines = 0

        def trace(_frame, event, _argument):
            nonlocal lines
            lines += event == "line"
            return trace

        notes = [{"text": piece} for _ in range(count)]
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            unit_spans(notes, unit)
        finally:
            sys.settrace(before)
        return lines

    work(1)  # of the first call, which fills caches
    assert work(200) < 2.5 * work(100)


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


LATER = {
    "sentences": ["Anna likes tea.", " Ben likes milk.", " Anna likes", " tea.", " Ben likes milk."],
    "lines": [PROMPT, " tea.", " Ben likes milk."],
    "paragraphs": [PROMPT, " tea.", " Ben likes milk."],
    "messages": [PROMPT, " tea.", " Ben likes milk."],
    # Words of this tokenizer begin at its marks, and the full stop has none.
    "subwords": ["Anna", " likes", " tea.", " Ben", " likes", " milk.", " Anna", " likes", " tea.", " Ben", " likes", " milk."],
    "spans": ["Anna", " likes", " tea", ".", " Ben", " likes milk.", " Anna", " likes", " tea", ".", " Ben", " likes milk", "."],
}  # fmt: skip


@pytest.mark.parametrize("unit", LATER)
def test_tokens_behind_the_attributed_ones_are_merged_too(server, unit):
    """They have no scores, but they are in the text: here ten tokens, two that are attributed, and four more."""
    text = f"{PROMPT} tea. Ben likes milk."
    job_id = server.run(
        model=LOOKUP, method="input_x_gradient", input_text=PROMPT, generated_text=text, attr_pos_start=10, attr_pos_end=12
    )  # fmt: skip
    (whole,) = server.result(job_id, aggregator="sum")["sequence_attributions"]
    asked = {"aggregator": f"sum,{unit}", "decode_tokens": True, "aggregate_fn": ",sum"}
    if unit == "spans":
        asked["aggregator_args"] = '{"target_spans": [[5, 8], [13, 15]]}'
    (merged,) = server.result(job_id, **asked)["sequence_attributions"]
    assert [token["text"] for token in merged["target"]] == LATER[unit]
    start, end = merged["attr_pos_start"], merged["attr_pos_end"]
    lengths = [len(each.replace(".", " .").split()) for each in LATER[unit]]
    ends = np.cumsum(lengths).tolist()
    assert (start, end) == (ends.index(10) + 1, ends.index(12) + 1)
    scores, found = (np.array(each["target_attributions"], float) for each in (whole, merged))
    assert found.shape == (end, end - start)
    for row, (last, length) in enumerate(zip(ends[:start], lengths, strict=False)):
        parts = scores[last - length : last]
        expected = parts.sum(axis=0) if end - start == 2 else [parts.sum()]
        assert found[row] == pytest.approx(expected, rel=1e-5)
    asked = {name: value for name, value in asked.items() if name != "decode_tokens"} | {"format": "html"}
    assert server.client.get(f"/attribution/jobs/{job_id}/results", params=asked).status_code == 200


WHOLE = f"{PROMPT} tea. Ben likes milk."
ANSWERS = {
    "a later token": {"generated_text": WHOLE, "attr_pos_start": 13, "attr_pos_end": 14},
    "a contrast": {
        "generated_text": WHOLE, "attr_pos_start": 14, "attr_pos_end": 15, "attributed_fn": "contrast_prob_diff",
        "attributed_fn_args": {"contrast_targets": f"{PROMPT} tea. Ben likes tea."},
    },
    "a span": {"generated_text": WHOLE, "spans": [{"text": "milk.", "name": "drink"}]},
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERS)
def test_the_prompt_ends_where_it_does_in_the_text(server, name):
    """Not at the first attributed token: a unit has tokens of the prompt or of the answer."""
    job_id = server.run(model=LOOKUP, method="saliency", input_text=PROMPT, **ANSWERS[name])
    (whole,) = server.result(job_id, decode_tokens=True)["sequence_attributions"]
    prompt = [token["text"] for token in whole["target"] if token.get("prompt")]
    assert "".join(prompt) == PROMPT
    assert prompt == [token["text"] for token in whole["target"][: len(prompt)]]
    assert [token["text"] for token in whole["target"] if token.get("span")] == (["drink"] if name == "a span" else [])
    assert [token["contrast"] for token in whole["target"] if "contrast" in token] == [" tea"] * ("contrast" in name)
    (merged,) = server.result(job_id, decode_tokens=True, aggregator="messages")["sequence_attributions"]
    texts = [token["text"] for token in merged["target"] if token.get("prompt")]
    assert "".join(texts) == PROMPT
    with AttributionClient(server.url) as client:  # and the client does what the server does
        (theirs,) = client.results(job_id, decode_tokens=True).sequence_attributions
    found = [(token.text, token.prompt, token.span) for token in merged_by_client(theirs, "messages").target]
    assert found == [(token["text"], token.get("prompt"), token.get("span")) for token in merged["target"]]


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


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "B", ".", "!", " ", "(", "\u0301", "\n", "1", ","]), st.sampled_from([1, 2, 9, 12])
        )
    )
)
def test_sentences_of_long_runs_are_those_of_the_library(runs):
    """Runs are shortened before the library sees them, and its boundaries stay where they are."""
    text = "".join(character * times for character, times in runs)
    assert list(text_units._sentences(text)) == list(sentence_boundaries(text))


@pytest.mark.parametrize("run", [" ", "(", "’", "\u0301", "(\u0301", "\u200d"])
def test_a_long_run_costs_no_time_that_grows_with_its_square(monkeypatch, run):
    seen = []
    monkeypatch.setattr(text_units, "sentence_boundaries", lambda text: seen.append(text) or sentence_boundaries(text))
    assert list(text_units._sentences(f"One.{run * 20_000} Two.")) != []
    assert len(seen[0]) < 200


@pytest.mark.parametrize(("start", "end"), [(10, 12), (12, 15), (13, 14)])
@pytest.mark.parametrize("unit", UNITS)
def test_units_where_a_part_of_the_answer_is_attributed(server, unit, start, end):
    """Units behind the last attributed token are merged too, and none has tokens of both prompt and answer."""
    prompt = "Anna likes tea. Ben likes milk. Anna likes"
    job = server.run(
        model=LOOKUP, method="saliency", input_text=prompt, generated_text=f"{prompt} tea. Ben likes milk.",
        attr_pos_start=start, attr_pos_end=end,
    )  # fmt: skip
    answer = server.client.get(f"/attribution/jobs/{job}/results", params={"aggregator": unit, "decode_tokens": True})
    assert answer.status_code == 200, answer.text
    (sequence,) = answer.json()["sequence_attributions"]
    texts = [each["text"] for each in sequence["target"]]
    assert "".join(texts) == f"{prompt} tea. Ben likes milk."
    assert any("".join(texts[:count]) == prompt for count in range(len(texts)))  # a unit ends with the prompt
    assert (
        server.client.get(f"/attribution/jobs/{job}/results", params={"aggregator": unit, "format": "html"}).status_code
        == 200
    )
    words = server.client.get(f"/attribution/jobs/{job}/results", params={"aggregator": "subwords"})
    assert words.status_code == 200, words.text


def test_what_a_template_says_by_itself_is_no_words_of_the_first_message():
    """A default system prompt, as of Qwen, Llama and SmolLM, also where roles have capital letters."""
    pieces = [
        "<s>",
        "system",
        "\n",
        "Be",
        " nice",
        "</s>",
        "\n",
        "<s>",
        "User",
        "\n",
        "Hi",
        "</s>",
        "\n",
        "<s>",
        "Assistant",
        "\n",
    ]
    text = "".join(pieces)
    ends = np.cumsum([len(each) for each in pieces]).tolist()
    offsets = list(zip([0, *ends[:-1]], ends, strict=True))
    special = [each.startswith("<") for each in pieces]
    words = text.index("Hi")
    found = turns_of([{"role": "user", "content": "Hi"}], text, [(words, words + 2)], offsets, special)
    assert [(each.number, each.role) for each in found.of_tokens] == [(-1, "system")] * 7 + [(0, "user")] * 6 + [
        (1, "assistant")
    ] * 3
    alone = turns_of(
        [{"role": "user", "content": "Hi"}],
        text[words - 9 :],
        [(9, 11)],
        [(a - words + 9, b - words + 9) for a, b in offsets[7:]],
        special[7:],
    )
    assert {each.number for each in alone.of_tokens} == {0, 1}


CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
# For each conversation: the turns, each with its number and its role; a template's own system prompt comes before them.
OTHER_TURNS = {
    "a default system prompt": ("chat-default-prompt", [("user", "Hi")], {
        (-1, "system"): "<|im_start|>system\nYou help the user.<|im_end|>\n",
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
