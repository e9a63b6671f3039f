"""Next-token candidates: those of plain Transformers, with the probability of the step scores, in every way of a method."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from inseq import FeatureAttributionOutput
from inseq.attr.step_functions import STEP_SCORES_MAP

from attribution.catalogue import next_token
from attribution.engine import AttributionEngine
from attribution.results import stored_form
from attribution_schema.view_options import ViewOptions
from models import AttributionRequest, Stage
from problems import InvalidRequest
from settings import Settings
from tests import families, reference
from tests.conftest import BUNDLED, LOOKUP, PHRASEBOOK, PROMPT, SENTENCE
from tests.first_principles import Plain

REAL = "smollm2-135m-instruct-q4"
TEXTS = {
    "gpt2": ("The quick brown fox", "The quick brown fox jumps over"), "t5": ("The quick brown", "fox jumps over"),
    REAL: ("The capital of France", "The capital of France is Paris, and"),
}  # fmt: skip
# A way of each kind: the single pass (with and without a forward of the text of its own), Inseq's loop with the logits
# of its own forwards and without, one forward that keeps its states, and nothing attributed.
WAYS = [
    ("saliency", "single_pass"), ("saliency", "inseq"), ("integrated_gradients", "single_pass"),
    ("integrated_gradients", "inseq"), ("attention", "auto"), ("attention", "inseq"), ("lime", "auto"),
    ("dummy", "auto"), ("dummy", "inseq"),
]  # fmt: skip
ARGUMENTS = {"integrated_gradients": {"n_steps": 3}, "lime": {"n_samples": 4}}
NUMBERS = {"token", "token_id", "text", "probability", "rank", "chosen"}


@pytest.fixture(scope="module")
def engine(tmp_path_factory, model_dir):
    for name in ("gpt2", "t5"):
        if not (model_dir / name).exists():
            families.build(name, model_dir / name)
    return AttributionEngine(
        Settings(data_dir=tmp_path_factory.mktemp("data"), model_dirs=(str(model_dir),), cpu_half="native")
    )


def run(engine, *, way="auto", **body):
    request = engine.check(AttributionRequest(engine=way, **body))
    return engine.run(request, device="cpu", report=lambda _: None, should_cancel=lambda: False)


def view(engine, parts, **options):
    raw = next(part.content for part in parts if part.kind.startswith("raw"))
    return json.loads(engine.view(raw, "json", ViewOptions(**options)))["sequence_attributions"]


def chosen(candidates):
    return [next(each for each in step if each["chosen"]) for step in candidates]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("model", ["gpt2", "t5", pytest.param(REAL, marks=pytest.mark.slow)])
def test_they_are_those_of_plain_transformers(engine, model_dir, model, dtype):
    if model == REAL and not (BUNDLED / REAL).exists():
        pytest.skip("`make smollm2` makes the model")
    text, target = TEXTS[model]
    precision = getattr(torch, dtype)
    plain = Plain(BUNDLED / REAL if model == REAL else model_dir / model, text, target, precision)
    with torch.no_grad():
        expected = [plain.logits(step)[0].softmax(-1) for step in plain.steps]
    for method, way in WAYS if model != REAL and dtype == "float32" else WAYS[:2]:
        parts = run(
            engine, model=model, method=method, way=way, input_text=text, generated_text=target, dtype=dtype,
            step_scores=["probability"], candidates=7, attribution_args=ARGUMENTS.get(method, {}),
        )  # fmt: skip
        (sequence,) = view(engine, parts, decode_tokens=True)
        found = sequence["candidates"]
        assert set(sequence["step_scores"]) == {"probability"}
        # The very number of the step score, whatever the way and the precision.
        assert [each["probability"] for each in chosen(found)] == sequence["step_scores"]["probability"]
        tokens = sequence["target"][sequence["attr_pos_start"] : sequence["attr_pos_end"]]
        assert [each["token_id"] for each in chosen(found)] == [token["token_id"] for token in tokens]
        assert [each["text"] for each in chosen(found)] == [token["text"] for token in tokens]
        if dtype == "bfloat16":
            continue  # its logits differ by whole percents between kernels
        for step, probabilities in zip(found, expected, strict=True):
            likeliest = [each for each in step if each["rank"] <= 7]
            assert [each["rank"] for each in likeliest] == [1, 2, 3, 4, 5, 6, 7]
            assert [each["token_id"] for each in likeliest] == probabilities.topk(7).indices.tolist(), (method, way)
            for each in step:
                assert set(each) == NUMBERS
                assert each["probability"] == pytest.approx(float(probabilities[each["token_id"]]), rel=1e-4)
                assert each["rank"] == 1 + int((probabilities > probabilities[each["token_id"]]).sum())


def test_a_token_that_is_not_among_the_likeliest_is_the_last(engine):
    parts = run(
        engine, model="gpt2", method="saliency", input_text="The quick", candidates=1, step_scores=["probability"],
        generation_args={"do_sample": True, "temperature": 5.0, "max_new_tokens": 6},
    )  # fmt: skip
    (sequence,) = view(engine, parts)
    assert {len(step) for step in sequence["candidates"]} <= {1, 2}
    unlikely = [step for step in sequence["candidates"] if len(step) == 2]
    assert unlikely
    for first, second in unlikely:
        assert (first["rank"], first["chosen"], second["chosen"]) == (1, False, True)
        assert second["rank"] > 1
        assert first["probability"] > second["probability"]
    assert [each["probability"] for each in chosen(sequence["candidates"])] == sequence["step_scores"]["probability"]


def test_without_them(engine):
    body = {"model": LOOKUP, "method": "saliency", "input_text": PROMPT}
    assert AttributionRequest(**body).candidates == 5
    (sequence,) = view(engine, run(engine, **body, candidates=0))
    assert sequence["candidates"] is None
    checked = engine.check(AttributionRequest(**body, corrections=False))
    assert checked.candidates == 0  # nothing of ours runs
    (sequence,) = view(engine, run(engine, **body, corrections=False))
    assert sequence["candidates"] is None
    comparison = engine.check(
        AttributionRequest(**body | {"method": None}, methods=["saliency", "dummy"], corrections=False)
    )
    assert comparison.candidates == 0
    with pytest.raises(InvalidRequest, match="no step function"):
        engine.check(AttributionRequest(**body, step_scores=[next_token.NAME]))


def test_a_merged_token_has_none(engine):
    parts = run(engine, model=LOOKUP, method="saliency", input_text=PROMPT, generated_text=f"{PROMPT} tea. Ben likes")
    (whole,) = view(engine, parts)
    start = whole["attr_pos_start"]
    merged = [[start + 1, start + 3]]
    (sequence,) = view(engine, parts, aggregator="spans,scores", aggregator_args=json.dumps({"target_spans": merged}))
    assert len(whole["candidates"]) == len(sequence["candidates"]) + 1
    assert sequence["candidates"] == [whole["candidates"][0], None, *whole["candidates"][3:]]
    (sequence,) = view(  # of the prompt
        engine, parts, aggregator="spans,scores", aggregator_args=json.dumps({"target_spans": [[0, 3]]})
    )
    assert sequence["candidates"] == whole["candidates"]
    (granular,) = view(engine, parts, granular=True)
    assert granular["candidates"] == whole["candidates"]
    assert all("text" not in each for step in whole["candidates"] for each in step)


def test_inseqs_file_is_as_without_them(engine, tmp_path):
    body = {"model": PHRASEBOOK, "method": "saliency", "input_text": SENTENCE, "step_scores": ["entropy"],
            "output_step_attributions": True}  # fmt: skip
    with_them, without = (run(engine, **body, candidates=each)[0].content for each in (5, 0))
    (tmp_path / "result.json").write_bytes(engine.view(with_them, "inseq", ViewOptions()))
    loaded = FeatureAttributionOutput.load(tmp_path / "result.json")
    other = stored_form.decode(without)
    reference.assert_same_sequence(loaded[0], other[0])
    assert set(loaded[0].step_scores) == {"entropy"}
    steps = stored_form.decode(with_them).step_attributions
    assert [set(each.step_scores) for each in steps] == [{"entropy"}] * len(steps)


def test_methods_of_a_comparison_share_them(engine):
    parts = run(engine, model=LOOKUP, methods=["lime", "saliency", "attention"], input_text=PROMPT,
                attribution_args={"lime": {"n_samples": 4}})  # fmt: skip
    summary = stored_form.decode
    each = [summary(part.content).info["candidates"] for part in parts if part.kind.startswith("raw")]
    assert len(each) == 3
    assert each[0] == each[1] == each[2]
    assert len(each[0][0][0]) == 5


@pytest.mark.parametrize("method", ["saliency", "lime"])
def test_a_partial_result_has_those_of_its_steps(engine, method):
    offered, seen = [], []

    def report(progress):
        if offered and progress.stage is Stage.ATTRIBUTING:
            seen.extend(part for part in offered[0]() if part.kind == "raw")

    request = engine.check(
        AttributionRequest(model=LOOKUP, method=method, input_text=[PROMPT, "Ben likes"],
                           attribution_args=ARGUMENTS.get(method, {}))
    )  # fmt: skip
    whole = engine.run(request, device="cpu", report=report, should_cancel=lambda: False, offer_partial=offered.append)
    expected = stored_form.decode(whole[0].content).info["candidates"]
    lengths = set()
    for part in seen:
        output = stored_form.decode(part.content)
        for found, theirs, sequence in zip(
            output.info["candidates"], expected, output.sequence_attributions, strict=False
        ):
            assert len(found) == sequence.attr_pos_end - sequence.attr_pos_start
            assert found == theirs[: len(found)]
            assert next_token.NAME not in sequence.step_scores
        lengths.add(tuple(map(len, output.info["candidates"])))
    assert len(lengths) > 2


def test_of_equal_tokens_the_first_ids_are_taken_and_none_without_a_number():
    def rows(logits, targets):
        model = SimpleNamespace(output2logits=lambda output: output)
        arguments = SimpleNamespace(
            attribution_model=model, forward_output=torch.tensor(logits, dtype=torch.bfloat16),
            target_ids=torch.tensor(targets),
        )  # fmt: skip
        return [next_token.read(row, 3) for row in STEP_SCORES_MAP[next_token.NAME](arguments)]

    many = [1.0, 2.0, 2.0, 0.0] + [2.0] * 60
    first, second, third = rows([many, many, [float("nan")] * 64], [2, 63, 5])
    assert [(each.token_id, each.rank, each.chosen) for each in first] == [(1, 1, False), (2, 2, True), (4, 3, False)]
    assert [(each.token_id, each.rank, each.chosen) for each in second] == [
        (1, 1, False), (2, 2, False), (4, 3, False), (63, 62, True)
    ]  # fmt: skip
    assert len({each.probability for each in second}) == 1
    assert [(each.token_id, each.chosen) for each in third] == [(5, True)]
    (two,) = rows([[float("-inf"), 1.0]], [1])  # fewer tokens than asked for
    assert [(each.token_id, each.probability) for each in two] == [(1, 1.0)]
