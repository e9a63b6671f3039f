"""Segments of the input: found on the tokens, returned with the result, and merged in every view."""

from __future__ import annotations

import csv
import io
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from attribution_client import AttributionClient
from attribution_client.merging import merged
from attribution_reading.text_units import segment_label, unit_spans
from attribution_schema.spans import Segment
from models import AttributionRequest
from tests import chat_models, families
from tests.conftest import LOOKUP, PHRASEBOOK, PROMPT, SENTENCE
from tests.serving import until

BODY = {"model": LOOKUP, "method": "saliency", "input_text": PROMPT, "generated_text": f"{PROMPT} tea."}
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Anna likes tea. Ben likes milk."},
]


def names_and_tokens(result, sequence=0):
    return [(each["name"], each["start"], each["end"]) for each in result["info"]["segments"][sequence]]


def merged_rows(result, side="target"):
    sequence = result["sequence_attributions"][0]
    return list(zip(sequence[side], sequence[f"{side}_attributions"], strict=False))


# What is selected


@pytest.mark.parametrize(
    ("segments", "found"),
    [
        ([{"text": "Anna likes tea."}], [("Anna likes tea.", 0, 4)]),
        ([{"text": "Ben likes milk.", "name": "b"}, {"text": "Anna likes tea."}], [("Anna likes tea.", 0, 4), ("b", 4, 8)]),
        ([{"characters": [0, 16]}, {"characters": [16, 32]}], [("Anna likes tea.", 0, 4), ("Ben likes milk.", 4, 8)]),
        ([{"text": "Anna", "occurrence": 0}, {"text": "Anna", "occurrence": -1}], [("Anna", 0, 1), ("Anna (2)", 8, 9)]),
        ([{"between": ["tea.", "Anna"]}], [("Ben likes milk.", 4, 8)]),
        ([{"after": "milk."}], [("Anna likes", 8, 10)]),
        ([{"start": 4, "end": 8, "name": "Ben"}], [("Ben", 4, 8)]),
        ("sentences", [("Anna likes tea.", 0, 4), ("Ben likes milk.", 4, 8), ("Anna likes", 8, 10)]),
        ("paragraphs", [(PROMPT, 0, 10)]),
        ("messages", [(PROMPT, 0, 10)]),
    ],
)  # fmt: skip
def test_segments_are_found_and_returned(server, segments, found):
    result = server.result(server.run(**BODY, segments=segments))
    assert names_and_tokens(result) == found
    assert result["info"]["warnings"] == []
    assert {each["side"] for each in result["info"]["segments"][0]} == {"target"}
    by_token = {at: name for name, start, end in found for at in range(start, end)}
    tokens = result["sequence_attributions"][0]["target"]
    assert [each.get("segment") for each in tokens] == [*(by_token.get(at, "") for at in range(10)), None, None]


def test_a_segment_is_rounded_outward_and_this_is_said(server):
    result = server.result(server.run(**BODY, segments=[{"text": "nna likes t"}]))
    assert names_and_tokens(result) == [("Anna likes tea", 0, 3)]
    (warning,) = result["info"]["warnings"]
    assert warning == "segments[0] begins or ends within a token: 'Anna likes tea' is attributed for 'nna likes t'."


def test_characters_are_those_of_the_input(server, model_dir):
    """SentencePiece puts a space before a text, and other tokenizers a special token; neither counts."""
    segments = [{"characters": [4, 7]}, {"characters": [17, 22]}]
    result = server.result(server.run(model=PHRASEBOOK, method="saliency", input_text=SENTENCE, segments=segments))
    assert [each[0] for each in names_and_tokens(result)] == [SENTENCE[4:7], SENTENCE[17:22]]
    assert {each["side"] for each in result["info"]["segments"][0]} == {"source"}
    if not (model_dir / "llama").exists():
        families.build("llama", model_dir / "llama")
    text = "The quick brown fox"
    body = {"model": "llama", "method": "saliency", "input_text": text, "generated_text": f"{text} jumps"}
    result = server.result(server.run(**body, segments=[{"characters": [4, 9]}, {"start": 0, "end": 1}]))
    assert [each[0] for each in names_and_tokens(result)] == ["<s>", "quick"]


def test_segments_of_a_conversation_are_of_its_rendered_text(server, model_dir):
    folder = model_dir / "chat-qwen2"
    if not folder.exists():
        chat_models.build("chat-qwen2", folder)
    body = {"model": "chat-qwen2", "method": "saliency", "messages": CHAT, "generated_text": " Tea"}
    result = server.result(server.run(**body, segments=[{"text": "Ben likes milk.", "name": "b"}]), decode_tokens=True)
    tokens = result["sequence_attributions"][0]["target"]
    rendered = result["info"]["input_texts"][0]
    ((_, start, end),) = names_and_tokens(result)
    assert "".join(each["text"] for each in tokens[start:end]).strip() == "Ben likes milk."
    at = rendered.index("Ben likes")
    same = server.result(server.run(**body, segments=[{"characters": [at, at + 15], "name": "b"}]))
    assert names_and_tokens(same) == [("b", start, end)]
    units = server.result(server.run(**body, segments="messages"), decode_tokens=True)
    assert [each[0] for each in names_and_tokens(units)] == ["system 0", "user 1"]
    for (_, start, end), message in zip(names_and_tokens(units), CHAT, strict=True):
        assert "".join(each["text"] for each in tokens[start:end]) == message["content"]


@pytest.mark.parametrize(
    ("segments", "reason"),
    [
        ([{"text": "Carla"}], "segments[0]: 'Carla' does not occur in the input"),
        ([{"text": "Anna"}, {"after": "Dora"}], "segments[1]: 'Dora' does not occur"),
        ([{"start": 0, "end": 99}], "segments[0] has the positions 0 to 99, and those of the input are 0 to 10"),
        ([{"characters": [3, 90]}], "segments[0] ends at character 90, and the input has 42"),
        ([{"text": "Anna likes"}, {"text": "likes tea"}], "overlap: both have the token at position 1"),
    ],
)
def test_a_selection_that_does_not_fit_fails_the_job(server, segments, reason):
    job = server.wait(server.submit(**BODY, segments=segments))
    assert job["status"] == "failed"
    assert job["error"]["type"] == "/problems/input-rejected"
    assert reason in job["error"]["detail"]
    estimate = server.client.post("/attribution/estimate", json=BODY | {"segments": segments})
    assert estimate.status_code == 422
    assert reason in estimate.json()["detail"]


def test_a_selection_that_does_not_fit_fails_before_the_model_writes(server):
    body = {"model": LOOKUP, "method": "shapley", "input_text": PROMPT, "segments": [{"text": "Carla"}]}
    job = server.wait(server.submit(**body))
    assert "does not occur" in job["error"]["detail"]
    assert job["progress"]["generated_text"] is None


@pytest.mark.parametrize(
    ("body", "pointer", "reason"),
    [
        ({"segments": []}, "/segments", "at least 1 item"),
        ({"segments": "chapters"}, "/segments", "'words', 'sentences'"),
        ({"segments": [{"text": "a", "start": 1}]}, "/segments/0", "selected by text and by start and end"),
        ({"segments": [{"text": "a", "name": "x"}, {"text": "b", "name": "x"}]}, "/segments", "two segments are called 'x'"),
        ({"segments": [{"text": "a", "colour": "red"}]}, "/segments/0/colour", "There is no field 'colour'. There are: name, start, end"),
        ({"method": "shapley", "segments": [{"text": "a", "pinned": True}]}, "/segments", "nothing to mask"),
        ({"method": "occlusion", "segments": "words", "attribution_args": {"strides": 2}}, "/attribution_args/strides", "single tokens"),
        ({"method": "lime", "segments": "words", "attribution_args": {"mask_token": "pad"}}, "/attribution_args/mask_token", "single tokens"),
        ({"method": "occlusion", "segments": "words", "engine": "inseq"}, "/engine", "masking parts of the input"),
        ({"method": "leave_one_out", "engine": "single_pass"}, "/engine", "masking parts of the input"),
        ({"method": "saliency", "engine": "masking"}, "/engine", "not computed by masking"),
        ({"method": "banzhaf", "corrections": False}, "/corrections", "Inseq has no banzhaf"),
        ({"method": "shapley", "attributed_fn": "kl_divergence", "attributed_fn_args": {"contrast_targets": f"{PROMPT} milk.", "contrast_force_inputs": True}}, "/attributed_fn", "runs the model itself"),
        ({"method": "shapley", "attribute_target": True}, "/attribute_target", "cannot attribute the target prefix"),
        ({"method": "shapley", "attribution_args": {"n_samples": 10**6}}, "/attribution_args/n_samples", "between 1 and 2000"),
        ({"method": "shapley", "attribution_args": {"sampling": "dice"}}, "/attribution_args/sampling", "'antithetic' or 'plain'"),
        ({"method": "leave_one_out", "attribution_args": {"n_samples": 4}}, "/attribution_args/n_samples", "takes no arguments"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(server, body, pointer, reason):
    problem = server.refusal(**BODY | body)
    assert [each["pointer"] for each in problem["errors"]] == [pointer]
    assert reason in problem["errors"][0]["detail"]


def test_a_comparison_points_at_the_method(server):
    body = {key: value for key, value in BODY.items() if key != "method"}
    problem = server.refusal(**body, methods=["saliency", "shapley"], attribution_args={"shapley": {"n_samples": 0}})
    assert problem["errors"][0]["pointer"] == "/attribution_args/shapley/n_samples"


# Every result, merged


@pytest.mark.parametrize("method", ["saliency", "occlusion", "integrated_gradients", "attention", "shapley"])
def test_every_result_is_aggregated_over_its_segments(server, method):
    segments = [{"text": "Anna likes tea.", "name": "first"}, {"text": "milk"}]
    job = server.run(**BODY | {"method": method, "segments": segments})
    tokens, merged = server.result(job), server.result(job, aggregator="segments", decode_tokens=True)
    scores = np.array(tokens["sequence_attributions"][0]["target_attributions"], float)[:10]
    rows = merged_rows(merged)
    assert [each["token"] for each, _ in rows] == ["first", "ĠBenĠlikes", "milk", ".ĠAnnaĠlikes", "Ġtea", "."]
    assert [each["text"] for each, _ in rows][:4] == ["first", " Ben likes", " milk", ". Anna likes"]
    expected = [scores[start:end].sum(0) for start, end in [(0, 4), (4, 6), (6, 7), (7, 10)]]
    sizes = [np.abs(scores[start:end]).sum(0) for start, end in [(0, 4), (4, 6), (6, 7), (7, 10)]]
    off = 4 * np.finfo(np.float32).eps * np.array(sizes)  # a sum of up to four scores, which are float32 numbers
    assert (np.abs(np.array([row for _, row in rows[:4]], float) - expected) <= off).all()


def test_segments_are_merged_where_the_source_is_a_side_of_its_own(server):
    body = {"model": PHRASEBOOK, "method": "leave_one_out", "input_text": SENTENCE}
    job = server.run(**body, segments=[{"text": "the red cat", "name": "who"}, {"text": "a dog", "name": "whom"}])
    merged, whole = server.result(job, aggregator="segments"), server.result(job)
    assert [each["token"] for each, _ in merged_rows(merged, "source")] == ["who", "▁sees", "whom", "</s>"]
    target = merged["sequence_attributions"][0]["target"]
    assert [each["token"] for each in target] == [each["token"] for each in whole["sequence_attributions"][0]["target"]]
    told = whole["info"]["masking"][0]
    for name, scores in zip(told["names"], told["scores"], strict=True):
        (row,) = [row for token, row in merged_rows(merged, "source") if token["token"] == name]
        np.testing.assert_allclose(row, scores, rtol=6e-6)  # six digits in `info`, and float32 sums here


def test_tables_and_heatmaps_have_the_names(server):
    job = server.run(**BODY, segments=[{"text": "Anna likes tea.", "name": "<first> & only"}])
    table = server.client.get(f"/attribution/jobs/{job}/results?format=csv&aggregator=segments").text
    rows = list(csv.DictReader(io.StringIO(table)))
    assert rows[0]["attributed_token"] == "<first> & only"
    page = server.client.get(f"/attribution/jobs/{job}/results?format=html&aggregator=segments").text
    assert "&lt;first&gt; &amp; only" in page
    assert "<first>" not in page


def test_a_job_without_segments_says_so(server):
    job = server.run(**BODY)
    answer = server.client.get(f"/attribution/jobs/{job}/results?aggregator=segments")
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("This job has no segments. Submit it with `segments`")


def test_each_text_has_its_segments(server):
    texts = [PROMPT, "Carla likes bread. Carla likes"]
    result = server.result(server.run(model=LOOKUP, method="leave_one_out", input_text=texts, segments="sentences"))
    assert [[name for name, *_ in names_and_tokens(result, index)] for index in range(2)] == [
        ["Anna likes tea.", "Ben likes milk.", "Anna likes"],
        ["Carla likes bread.", "Carla likes"],
    ]
    assert [each["names"] for each in result["info"]["masking"]] == [
        [name for name, *_ in names_and_tokens(result, index)] for index in range(2)
    ]


def test_the_client_merges_as_the_server_does(server):
    with AttributionClient(server.url) as client:
        job = client.submit(
            **BODY, segments=[{"text": "Anna likes tea.", "name": "first"}, {"text": "Ben likes milk."}]
        )
        job = client.wait(job.job_id)
        ours = merged(client.results(job).sequence_attributions[0], "segments")
        theirs = client.results(job, aggregator="segments").sequence_attributions[0]
        assert [each.token for each in ours.target] == [each.token for each in theirs.target]
        assert [each.text for each in ours.target] == [each.text for each in theirs.target]
        np.testing.assert_allclose(
            np.array(ours.target_attributions, float), np.array(theirs.target_attributions, float), rtol=1e-6
        )
        shown = client.results(job).show(merge="segments").html
        assert "first" in shown
        with pytest.raises(ValueError, match="no segments"):
            merged(client.results(client.wait(client.submit(**BODY).job_id)).sequence_attributions[0], "segments")


# Cost, progress, and parts of a result


@pytest.mark.parametrize(
    ("more", "passes"),
    [
        ({"method": "leave_one_out"}, 2),  # the text, and eleven rows
        ({"method": "shapley", "segments": "sentences"}, 2),  # all eight subsets
        ({"method": "shapley"}, 1 + -(-1024 // 93)),  # 1,024 positions of eleven
        ({"method": "banzhaf", "input_text": f"Carla likes bread. {PROMPT}", "generated_text": None}, None),
    ],
)
def test_an_estimate_counts_the_rows(server, more, passes):
    body = {name: value for name, value in (BODY | more).items() if value is not None}
    told = server.client.post("/attribution/estimate", json=body).json()
    assert told["engine"] == "masking"
    if passes is not None:
        assert (told["forward_passes"], told["backward_passes"]) == (passes, 0)
    more_samples = server.client.post("/attribution/estimate", json=body | {"attribution_args": {}}).json()
    assert more_samples["forward_passes"] == told["forward_passes"]


def test_progress_counts_tokens_and_a_cancel_leaves_the_finished_texts(server):
    text = " ".join(["Anna likes tea. Ben likes milk."] * 6) + " Anna likes"
    body = {
        "model": LOOKUP,
        "method": "shapley",
        "attribution_args": {"n_samples": 400},
        "generation_args": {"max_new_tokens": 2},
    }
    job = server.submit(**body, input_text=["Anna likes tea. Anna likes", text])
    server.wait_until_attributing(job)
    until(lambda: server.job(job)["progress"]["steps_done"] >= 2)
    seen = server.job(job)["progress"]
    until(lambda: server.job(job)["progress"]["fraction"] > seen["fraction"])
    server.client.post(f"/attribution/jobs/{job}/cancel")
    assert server.wait(job)["status"] == "cancelled"
    result = server.result(job, partial=True)
    assert len(result["sequence_attributions"]) == 1
    assert result["info"]["partial"] == {"steps_done": 2, "steps_total": 4}
    assert result["info"]["masking"][0]["rows"] == 64


def test_a_seed_and_other_texts_change_nothing(server):
    body = {"model": LOOKUP, "method": "shapley", "attribution_args": {"n_samples": 4}, "seed": 5}
    body["generation_args"] = {"max_new_tokens": 1}
    text = "Anna likes tea. Ben likes milk. Carla likes bread. Anna likes"
    alone = server.result(server.run(**body, input_text=text))["sequence_attributions"][0]
    beside = server.result(server.run(**body, input_text=[PROMPT, text]))["sequence_attributions"][1]
    compared = server.run(
        **body
        | {
            "method": None,
            "methods": ["saliency", "shapley"],
            "attribution_args": {"shapley": {"n_samples": 4}},
            "input_text": text,
        }
    )
    third = server.result(compared, method="shapley")["sequence_attributions"][0]
    assert alone["target_attributions"] == beside["target_attributions"] == third["target_attributions"]


# Without a server


NOTES = st.lists(
    st.builds(
        lambda segment, special, turn: (
            {"text": "a", "turn": turn} | ({"special": True} if special else {}) | ({} if segment is None else {"segment": segment})
        ),
        st.sampled_from([None, "", "one", "two"]), st.booleans(), st.integers(0, 1),
    )
)  # fmt: skip


@given(NOTES)
def test_units_of_segments_contain_every_token_once(notes):
    spans = unit_spans(notes, "segments")
    assert [at for start, end in spans for at in range(start, end)] == list(range(len(notes)))
    for start, end in spans:
        assert len({note.get("segment") for note in notes[start:end]}) == 1
        if notes[start].get("segment") is None:
            assert end - start == 1
        elif not notes[start]["segment"] and end - start > 1:
            assert not any("special" in note for note in notes[start:end])
            assert len({note["turn"] for note in notes[start:end]}) == 1
    for (_, before), (start, _) in pairwise(spans):
        name = notes[start].get("segment")
        assert not name or notes[before - 1].get("segment") != name


@pytest.mark.parametrize(
    ("name", "text", "label"),
    [
        ("Ben likes milk.", " Ben likes milk.", " Ben likes milk."),
        ("passage 2", " Ben likes milk.\n", " passage 2\n"),
        ("Ben lik…", " Ben likes milk.", " Ben likes milk."),
        ("Anna (2)", " Anna", " Anna (2)"),
    ],
)
def test_a_segment_s_label_keeps_the_blanks_of_its_text(name, text, label):
    assert segment_label(name, text) == label


def test_a_request_keeps_its_segments():
    segments = [{"text": "a", "name": "one", "pinned": True}, {"characters": [3, 9]}]
    request = AttributionRequest(model="m", method="shapley", input_text="a", segments=segments)
    assert request.segments == [Segment(text="a", name="one", pinned=True), Segment(characters=(3, 9))]
    again = AttributionRequest.model_validate_json(request.model_dump_json())
    assert again == request
    with pytest.raises(ValidationError, match="at most 2048"):
        AttributionRequest(model="m", method="shapley", input_text="a", segments=[{"text": "a"}] * 2049)
