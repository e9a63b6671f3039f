"""Comparisons: each method has the numbers of a single job, the target is generated once, and agreement is computed."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from scipy import stats

from attribution.engine import AttributionEngine
from attribution.results import stored_form
from attribution_client import AttributionClient, rank_correlation, top_token_overlap
from attribution_reading.agreement import kendall, spearman, top_overlap
from models import AttributionRequest, Stage
from problems import Cancelled
from settings import Settings
from tests import reference
from tests.conftest import LOOKUP, PHRASEBOOK, PROMPT, SENTENCE

METHODS = ["lime", "saliency", "value_zeroing", "gradient_shap"]
ARGUMENTS = {"lime": {"n_samples": 12}, "gradient_shap": {"n_samples": 3, "stdevs": 0.1}}


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return AttributionEngine(Settings(data_dir=tmp_path_factory.mktemp("data")))


def _taken(sequences):
    """Take the candidates out of sequences, and return them."""
    return [each.pop("candidates") for each in sequences]


@pytest.mark.parametrize(
    "body",
    [
        {"model": LOOKUP, "input_text": PROMPT, "step_scores": ["probability"]},
        {"model": LOOKUP, "input_text": PROMPT, "seed": 3,
         "generation_args": {"do_sample": True, "temperature": 3.0, "max_new_tokens": 4}},
        {"model": PHRASEBOOK, "input_text": [SENTENCE, "a dog"], "generated_text": ["le chat rouge", "un chien"]},
    ],
    ids=["greedy", "sampled", "forced"],
)  # fmt: skip
def test_each_method_is_as_if_it_ran_alone(server, body):
    """Candidates too, which the first method computes for all: up to rounding, since others have other forwards."""
    job_id = server.run(**body, methods=METHODS, attribution_args=ARGUMENTS)
    whole = server.result(job_id)
    assert [each["method"] for each in whole["comparison"]] == METHODS
    for each in whole["comparison"]:
        name = each["method"]
        alone = server.result(server.run(**body, method=name, attribution_args=ARGUMENTS.get(name, {})))
        mine, other = copy.deepcopy(each["sequence_attributions"]), alone["sequence_attributions"]
        reference.assert_same_candidates(_taken(mine), _taken(other))
        assert mine == other, name
        assert each["info"]["attribution_method"] == name
        apart = {"exec_time", "engine_check"}
        assert {k: v for k, v in each["info"].items() if k not in apart} == {
            k: v for k, v in alone["info"].items() if k not in apart
        }
        one = server.result(job_id, method=name)
        assert one == {k: v for k, v in each.items() if k != "method"}
        raw = server.result(job_id, method=name, granular="true")
        assert raw["sequence_attributions"] != one["sequence_attributions"] or name == "value_zeroing"


def test_the_target_is_generated_once(engine):
    request = engine.check(AttributionRequest(model=PHRASEBOOK, methods=["saliency", "occlusion"], input_text=SENTENCE))
    seen = []
    engine.run(request, device="cpu", report=seen.append, should_cancel=lambda: False)
    assert {each.method for each in seen if each.stage is Stage.GENERATING} == {None}  # it is for both
    assert [each.method for each in seen if each.stage is Stage.ATTRIBUTING][-1] == "occlusion"
    attributing = [each for each in seen if each.stage is Stage.ATTRIBUTING]
    fractions = [each.fraction for each in seen]
    assert fractions == sorted(fractions)
    assert attributing[0].eta_seconds > attributing[-1].eta_seconds >= 0
    assert fractions[-1] == pytest.approx(1.0)


MEASURES = ("spearman", "kendall", "top_overlap")


def test_agreement_is_worked_out_again_from_the_numbers(server):
    result = server.result(server.run(model=LOOKUP, methods=["saliency", "input_x_gradient"], input_text=PROMPT))
    (told,) = result["agreement"]
    ours, theirs = (
        np.array(each["sequence_attributions"][0]["target_attributions"], dtype=float) for each in result["comparison"]
    )
    rhos, taus, overlaps = [], [], []
    for one, other in zip(ours.T, theirs.T, strict=True):
        x, y = one[~np.isnan(one)], other[~np.isnan(other)]
        rhos.append(stats.pearsonr(stats.rankdata(x), stats.rankdata(y)).statistic)
        concordant = [np.sign((x[i] - x[j]) * (y[i] - y[j])) for i in range(len(x)) for j in range(i)]
        taus.append(np.mean(concordant))  # there are no ties among these scores
        overlaps.append(len(set(np.argsort(x)[-3:]) & set(np.argsort(y)[-3:])) / 3)
    assert told["methods"] == ["saliency", "input_x_gradient"]
    assert told["spearman"] == pytest.approx(np.mean(rhos))
    assert told["kendall"] == pytest.approx(np.mean(taus))
    assert (told["top_overlap"], told["k"], told["sequence"]) == (pytest.approx(np.mean(overlaps)), 3, 0)


def test_server_and_client_find_the_same_agreement(server):
    """Server and client agree, also on a text with so few tokens that the overlap of the top 3 is undefined."""
    source, target = "the cat", ["le chat", "le"]
    body = {"model": PHRASEBOOK, "input_text": [SENTENCE, source], "generated_text": ["il gatto rosso", target[0]]}
    with AttributionClient(server.url) as client:
        job = client.wait(client.submit(**body, methods=["saliency", "attention", "occlusion"]))
        found = client.comparison(job)
    assert {pair.sequence for pair in found.agreement} == {0, 1}
    for pair in found.agreement:
        rho, overlap = rank_correlation(found, pair.sequence), top_token_overlap(found, sequence=pair.sequence)
        for ours, theirs in ((rho.loc[pair.methods], pair.spearman), (overlap.loc[pair.methods], pair.top_overlap)):
            assert theirs is None if math.isnan(ours) else ours == theirs
    assert any(pair.top_overlap is None for pair in found.agreement)
    assert any(pair.top_overlap is not None for pair in found.agreement)


def scores(columns):
    """Scores [attributed, generated] from a list of scores for each generated token."""
    return np.array(columns, np.float32).T


def test_agreement_by_hand():
    nan = math.nan
    rising, falling = scores([[1, 2, 3, 4, nan], [1, 2, 3, 4, 5]]), scores([[4, 3, 2, 1, nan], [5, 4, 3, 2, 1]])
    assert spearman(rising, falling) == kendall(rising, falling) == pytest.approx(-1)
    assert top_overlap(rising, falling) == pytest.approx((2 / 3 + 1 / 3) / 2)
    assert spearman(rising, rising) == kendall(rising, rising) == pytest.approx(1)
    assert top_overlap(rising, rising) == 1
    flat = scores([[1, 1, 1, 1, 1], [1, 1, 1, 1, 1]])
    assert (spearman(rising, flat), kendall(rising, flat)) == (None, None)
    assert top_overlap(rising, scores([[1, 2]])) is None  # different shapes have no overlap


def test_the_overlap_counts_only_where_tokens_are_left_out():
    """The top 3 of 3 tokens overlap in any order, so such steps are left out."""
    three, four = [1, 2, 3, math.nan], [1, 2, 3, 4]
    reverse = [3, 2, 1, math.nan], [4, 3, 2, 1]
    assert top_overlap(scores([three]), scores([reverse[0]]), k=3) is None
    assert top_overlap(scores([three, four]), scores(reverse), k=3) == pytest.approx(2 / 3)
    assert top_overlap(scores([three]), scores([reverse[0]]), k=2) == pytest.approx(1 / 2)


def test_a_comparison_that_stops_keeps_the_methods_that_are_done(engine):
    body = {"model": PHRASEBOOK, "methods": ["saliency", "occlusion", "lime"], "input_text": SENTENCE}
    request = engine.check(AttributionRequest(**body))
    whole = engine.run(request, device="cpu", report=lambda _: None, should_cancel=lambda: False)
    latest, offered = [None], []

    def report(progress):
        latest[0] = progress.method

    with pytest.raises(Cancelled):
        engine.run(
            request,
            device="cpu",
            report=report,
            should_cancel=lambda: latest[0] == "lime",
            offer_partial=offered.append,
        )
    parts = {part.kind: part for part in offered[-1]()}
    assert set(parts) == {"raw.0", "summary.0", "raw.1", "summary.1", "summary"}
    expected = {part.kind: part for part in whole}
    for kind in ("raw.0", "raw.1"):
        ours, theirs = (stored_form.decode(each[kind].content) for each in (parts, expected))
        (a,), (b,) = ours.sequence_attributions, theirs.sequence_attributions
        assert torch.equal(a.source_attributions, b.source_attributions)


def test_views_of_a_comparison(server):
    job_id = server.run(model=LOOKUP, methods=["saliency", "attention"], input_text=PROMPT)

    def get(**parameters):
        return server.client.get(f"/attribution/jobs/{job_id}/results", params=parameters)

    answer = get(format="csv")
    assert (answer.status_code, answer.json()["detail"]) == (
        422, "This job compares methods: say whose csv with method=saliency|attention.",
    )  # fmt: skip
    assert get(format="csv", method="attention").text.startswith('"sequence","side"')
    assert get(method="lime").status_code == 422
    path, browser = f"/attribution/jobs/{job_id}/results", {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    assert server.client.get(path, headers=browser).json() == get().json()
    page = server.client.get(path, params={"method": "saliency"}, headers=browser)
    assert page.headers["Content-Type"].startswith("text/html")
    assert server.client.get(path, headers={"Accept": "text/csv"}).status_code == 422
    assert get(granular="true").json()["agreement"] == []
    unnormalized = get(normalize="false").json()
    assert unnormalized["comparison"][0] != get().json()["comparison"][0]
    assert (
        get(method="saliency", normalize="false").json()["sequence_attributions"]
        == (unnormalized["comparison"][0]["sequence_attributions"])
    )
    etag = get().headers["ETag"]
    assert server.client.get(f"/attribution/jobs/{job_id}/results", headers={"If-None-Match": etag}).status_code == 304
    assert get(method="saliency").headers["ETag"] != get(method="attention").headers["ETag"] != etag
    single = server.run(model=LOOKUP, method="saliency", input_text=PROMPT)
    answer = server.client.get(f"/attribution/jobs/{single}/results", params={"method": "lime"})
    assert (answer.status_code, answer.json()["detail"]) == (422, "This job has no method 'lime'. It has: saliency.")


def test_an_estimate_adds_the_methods_up(server):
    def estimate(**more):
        body = {"model": LOOKUP, "input_text": PROMPT, "generated_text": f"{PROMPT} tea.", **more}
        answer = server.client.post("/attribution/estimate", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    one, other = estimate(method="saliency"), estimate(method="occlusion")
    both = estimate(methods=["saliency", "occlusion"])
    assert both["methods"] == ["saliency", "occlusion"]
    assert both["forward_passes"] == one["forward_passes"] + other["forward_passes"]
    assert both["peak_memory_bytes"] == max(one["peak_memory_bytes"], other["peak_memory_bytes"])


@pytest.mark.parametrize(
    ("body", "pointer", "word"),
    [
        ({"methods": ["saliency"]}, "/methods", "at least 2"),
        ({"methods": ["saliency", "lime"], "method": "lime"}, "/method", "either"),
        ({}, "/method", "either"),
        ({"methods": ["saliency", "deep_lift", "deeplift"]}, "/methods/2", "twice"),
        ({"methods": ["saliency", "limee"]}, "/methods/1", "did you mean 'lime'"),
        ({"methods": ["saliency", "lime"], "attribution_args": {"n_samples": 3}}, "/attribution_args/n_samples", "under"),
        ({"methods": ["saliency", "lime"], "attribution_args": {"lime": 3}}, "/attribution_args/lime", "object"),
        ({"methods": ["saliency", "lime"], "attribution_args": {"lime": {"n": 3}}}, "/attribution_args/lime/n", "no argument"),
        ({"methods": ["saliency", "lime"], "n_steps": 3}, "/n_steps", "None of these"),
        ({"methods": ["saliency", "lime"], "step_scores": ["nope"]}, "/step_scores/0", "nope"),
    ],
)  # fmt: skip
def test_what_a_comparison_cannot_be(server, body, pointer, word):
    problem = server.refusal(model=LOOKUP, input_text=PROMPT, **body)
    assert [error["pointer"] for error in problem["errors"]] == [pointer]
    assert word in problem["errors"][0]["detail"]


def test_shorthands_go_to_the_methods_that_have_them(server):
    methods, tags = ["saliency", "integrated_gradients"], {"of": "shorthands"}
    job_id = server.run(model=LOOKUP, methods=methods, input_text=PROMPT, n_steps=7, tags=tags)
    assert server.job(job_id)["request"]["attribution_args"] == {"saliency": {}, "integrated_gradients": {"n_steps": 7}}
    listed = server.client.get("/attribution/jobs", params={"method": ",".join(methods), "tag": "of:shorthands"})
    assert [job["job_id"] for job in listed.json()["jobs"]] == [job_id]


def test_jobs_agree_as_the_methods_of_a_comparison_do(server):
    methods, asked = ["saliency", "input_x_gradient"], {"model": LOOKUP, "input_text": PROMPT}
    joint = server.run(methods=methods, **asked)
    ids = [server.run(method=method, **asked) for method in methods]
    other = server.run(method="saliency", model=LOOKUP, input_text=PROMPT.replace("tea", "milk"))

    def compared(*jobs):
        answer = server.client.get("/attribution/agreement", params={"jobs": ",".join(jobs)})
        assert answer.status_code == 200, answer.text
        return answer.json()["agreement"]

    (told,) = server.result(joint)["agreement"]
    same = {"same_tokens": True, **told}
    assert told["spearman"] is not None
    assert compared(*ids) == [{"jobs": ids, **same}]
    assert compared(joint) == [{"jobs": [joint, joint], **same}]
    # A comparison's methods are compared with those of the other job, and with each other.
    assert [(each["jobs"], each["methods"]) for each in compared(joint, ids[0])] == [
        ([joint, joint], methods), ([joint, ids[0]], ["saliency", "saliency"]), ([joint, ids[0]], methods[::-1])
    ]  # fmt: skip
    assert compared(joint, ids[0])[1]["spearman"] == pytest.approx(1)
    different = {"jobs": [ids[0], other], "methods": ["saliency", "saliency"], "same_tokens": False}
    assert compared(ids[0], other) == [different | {"sequence": 0, "k": 3} | dict.fromkeys(MEASURES)]


def test_jobs_that_cannot_be_compared_are_named(server):
    slow = {"method": "sequential_integrated_gradients", "n_steps": 2000, "engine": "inseq"}
    cancelled = server.submit(model=LOOKUP, input_text=PROMPT, **slow)
    server.client.post(f"/attribution/jobs/{cancelled}/cancel")
    server.wait(cancelled)
    for jobs, status, said in (
        ("none", 404, "There is no job 'none'"),
        (cancelled, 409, f"Job {cancelled}: The job was cancelled"),
        ("", 422, "these are 0"),
        (",".join(map(str, range(9))), 422, "1 to 8 jobs"),
    ):
        answer = server.client.get("/attribution/agreement", params={"jobs": jobs})
        assert answer.status_code == status, answer.text
        assert said in answer.json()["detail"]
