"""`n_steps: "auto"`: the scores equal those with the number of steps that it reached, and add up."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from attribution.engine import AttributionEngine
from attribution.inseq_loop.completeness import Step
from attribution.results import stored_form
from attribution.run.refinement_search import RefinementSearch
from models import AttributionRequest, Stage
from problems import Cancelled
from settings import Settings
from tests.conftest import BUNDLED, LOOKUP, PHRASEBOOK, PROMPT, SENTENCE
from tests.first_principles import Plain
from tests.test_corrections_methods import run, scores

TARGET = PROMPT + " milk. Ben"
BODY = {"model": LOOKUP, "method": "integrated_gradients", "input_text": PROMPT, "generated_text": TARGET}


def refined(server, tmp_path, **more):
    return run(server, tmp_path, **BODY | {"n_steps": "auto"} | more)


def test_the_steps_are_doubled_until_the_scores_add_up(server, tmp_path):
    ours = refined(server, tmp_path, completeness_tolerance=0.01)
    (found,) = ours.info["convergence"]
    *before, reached = found["n_steps"]
    assert before, "the first attempt was enough: this needs a smaller tolerance"
    assert found["n_steps"] == [25 * 2**attempt for attempt in range(len(before) + 1)]
    assert min(found["largest_relative"][:-1]) > 0.01 >= found["largest_relative"][-1] == max(found["relative"])
    assert ours.info["arguments"]["attribution_args"]["n_steps"] == reached
    assert ours.info["warnings"] == []
    plain = Plain(BUNDLED / LOOKUP, PROMPT, TARGET)
    expected = plain.scores(lambda step: plain.integrated(step, int(reached)))
    largest = float(expected.nan_to_num().abs().max())
    torch.testing.assert_close(scores(ours), expected, rtol=0, atol=1e-4 * largest, equal_nan=True)


@pytest.mark.parametrize("method", [
    "integrated_gradients", "layer_integrated_gradients",
    pytest.param("discretized_integrated_gradients", marks=pytest.mark.slow),
])  # fmt: skip
def test_in_inseqs_loop_as_with_the_number_that_was_reached(server, tmp_path, method):
    body = {
        "model": PHRASEBOOK, "method": method, "input_text": SENTENCE, "generated_text": "il gatto",
        "engine": "inseq", "step_scores": ["probability"],
    }  # fmt: skip
    ours = run(server, tmp_path, **body, n_steps="auto", completeness_tolerance=0.2)
    reached = int(ours.info["convergence"][0]["n_steps"][-1])
    given = run(server, tmp_path, **body, n_steps=reached, internal_batch_size=50)
    largest = float(scores(given).nan_to_num().abs().max())
    torch.testing.assert_close(scores(ours), scores(given), rtol=0, atol=1e-6 * largest, equal_nan=True)
    probability = [each.sequence_attributions[0].step_scores["probability"] for each in (ours, given)]
    torch.testing.assert_close(*probability, rtol=0, atol=1e-6)


def test_each_text_takes_what_it_needs(server):
    texts = {
        "input_text": [PROMPT, "Tom likes bread. Tom likes"],
        "generated_text": [TARGET, "Tom likes bread. Tom likes bread."],
    }
    body = BODY | texts | {"n_steps": "auto", "completeness_tolerance": 0.01}
    together = server.result(server.run(**body))["info"]
    alone = [
        server.result(server.run(**body | {"input_text": text, "generated_text": target}))["info"]
        for text, target in zip(*texts.values(), strict=True)
    ]
    took = [each["convergence"][0]["n_steps"][-1] for each in alone]
    assert [each["n_steps"][-1] for each in together["convergence"]] == took
    stated = together["arguments"]["attribution_args"]["n_steps"]
    assert stated == (took if len(set(took)) == 2 else took[0])


def test_what_cannot_be_reached_is_warned_of(server, tmp_path):
    ours = refined(server, tmp_path, completeness_tolerance=1e-12, generated_text=PROMPT + " milk")
    (warning,) = ours.info["warnings"]
    assert "more points gained nothing" in warning  # rounding is left
    assert "above the tolerance of 0.00%" in warning
    reached = int(ours.info["convergence"][0]["n_steps"][-1])
    assert f"ended with {reached} points" in warning


@pytest.mark.parametrize(("more", "pointer", "words"), [
    ({"method": "saliency"}, "/n_steps", "has no n_steps"),
    ({"method": "sequential_integrated_gradients"}, "/n_steps", "gradients does not promise that. Send a number."),
    ({"attribution_args": {"multiply_by_inputs": False}}, "/n_steps", "with these arguments"),
    ({"method": "layer_integrated_gradients", "attribution_args": {"target_layer": "transformer.h.1.mlp"}}, "/n_steps", "with these arguments"),
    ({"n_steps": 20, "completeness_tolerance": 0.1}, "/completeness_tolerance", "leave it out"),
    ({"method": None, "methods": ["saliency", "integrated_gradients"], "n_steps": 20, "completeness_tolerance": 0.1},
     "/completeness_tolerance", "leave it out"),
    ({"n_steps": "automatic"}, "/n_steps", "'auto'"),
    ({"completeness_tolerance": 0}, "/completeness_tolerance", "greater than 0"),
    ({"attribution_args": {"n_steps": 20}}, "/n_steps", "differ"),
])  # fmt: skip
def test_refused(server, more, pointer, words):
    answer = server.client.post("/attribution/jobs", json=BODY | {"n_steps": "auto"} | more)
    assert answer.status_code == 422
    errors = {each["pointer"]: each["detail"] for each in answer.json()["errors"]}
    assert words in errors.get(pointer, ""), errors


def test_in_a_comparison_for_the_methods_that_have_steps(server):
    body = BODY | {"method": None, "methods": ["saliency", "integrated_gradients"], "n_steps": "auto"}
    job_id = server.run(**body, completeness_tolerance=0.02)
    assert server.job(job_id)["request"]["attribution_args"] == {
        "saliency": {},
        "integrated_gradients": {"n_steps": "auto"},
    }
    result = server.client.get(f"/attribution/jobs/{job_id}/results?method=integrated_gradients").json()
    assert result["info"]["convergence"][0]["largest_relative"][-1] <= 0.02


def test_an_estimate_counts_three_attempts(server):
    def estimate(n_steps):
        return server.client.post(
            "/attribution/estimate", json=BODY | {"n_steps": n_steps, "internal_batch_size": 50}
        ).json()

    found, each = estimate("auto"), [estimate(n_steps) for n_steps in (25, 50, 100)]
    assert found["forward_passes"] == sum(one["forward_passes"] for one in each)
    assert found["backward_passes"] == sum(one["backward_passes"] for one in each)
    assert "25, 50, 100" in found["warnings"][0]


def test_a_cancelled_search_keeps_the_last_whole_attempt(tmp_path):
    engine = AttributionEngine(Settings(data_dir=tmp_path))
    # No attempt reaches this tolerance.
    body = BODY | {"n_steps": "auto", "completeness_tolerance": 1e-12, "engine": "inseq"}
    offered, fractions = [], [0.0]

    def report(progress):
        if progress.stage is Stage.ATTRIBUTING:
            fractions.append(progress.fraction)

    with pytest.raises(Cancelled):
        engine.run(
            engine.check(AttributionRequest(**body)), device="cpu", report=report, offer_partial=offered.append,
            should_cancel=lambda: fractions[-1] > 0.6,  # within the second attempt, which counts from a half
        )  # fmt: skip
    assert fractions == sorted(fractions)
    (partial,) = (stored_form.decode(part.content) for part in offered[0]() if part.kind == "raw")
    assert partial.info["partial"] == {"steps_done": 3, "steps_total": 3}
    assert partial.info["arguments"]["attribution_args"]["n_steps"] == 25
    alone = engine.run(
        engine.check(AttributionRequest(**body | {"n_steps": 25, "completeness_tolerance": None})), device="cpu",
        report=lambda _: None, should_cancel=lambda: False,
    )  # fmt: skip
    assert torch.equal(scores(partial).nan_to_num(), scores(stored_form.decode(alone[0].content)).nan_to_num())


# The search alone


def step(relative):
    return Step(total=relative, size=1.0, at_input=0.0, at_baseline=0.0)


def searched(search, errors):
    """Run a search whose attempts have these errors, in order."""
    remaining = iter(errors)
    for n_steps in search.attempts():
        search.note(n_steps, [step(next(remaining)), step(0.0)])
    return search


def test_the_limit_is_never_exceeded():
    search = searched(RefinementSearch(0.01, most=120), [0.4, 0.3, 0.2, 0.1])
    assert search.n_steps == [25, 50, 100]
    assert "the server's limit" in search.warning()
    assert searched(RefinementSearch(0.01, most=7), [0.4]).n_steps == [7]


def test_one_attempt_without_gain_is_no_end():
    search = searched(RefinementSearch(0.01, most=2000), [0.3, 0.4, 0.2, 0.005])
    assert search.n_steps == [25, 50, 100, 200]
    assert search.warning() is None


def test_two_attempts_without_gain_are():
    search = searched(RefinementSearch(1e-9, most=10**6), [0.3, 0.001, 0.0011, 0.001])
    assert search.n_steps == [25, 50, 100, 200]
    assert search.describe() == {"n_steps": [25, 50, 100, 200], "largest_relative": [0.3, 0.001, 0.0011, 0.001]}


def test_scores_that_are_no_numbers_have_not_converged():
    search = searched(RefinementSearch(0.05, most=2000), [float("nan")] * 7)
    assert search.warning() is not None
    assert np.isnan(search.errors).all()
