"""Partial results of running, cancelled and failed jobs equal the whole result up to the last attributed token."""

from __future__ import annotations

import json

import pytest
from inseq import FeatureAttributionOutput

from attribution.engine import AttributionEngine
from attribution.results import stored_form
from jobs.store.job_store import JobStore
from models import AttributionRequest, Stage
from problems import Cancelled
from settings import Settings
from tests.conftest import LOOKUP, PHRASEBOOK, PROMPT, SENTENCE
from tests.reference import assert_same_sequence
from tests.serving import Server, until

TEXT = {LOOKUP: PROMPT, PHRASEBOOK: SENTENCE}
TARGET = {LOOKUP: f"{PROMPT} tea. Ben likes milk.", PHRASEBOOK: "il gatto rosso vede un cane"}
OTHER = {LOOKUP: f"{PROMPT} milk. Ben likes tea.", PHRASEBOOK: "il cane rosso vede un gatto"}


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return AttributionEngine(Settings(data_dir=tmp_path_factory.mktemp("data")))


def stopped_after(engine, steps, **body):
    """The partial results of a job that is cancelled after `steps` steps."""
    request = engine.check(AttributionRequest(engine="inseq", **body))
    offered, done = [], 0

    def report(progress):
        nonlocal done
        done = progress.steps_done if progress.stage is Stage.ATTRIBUTING else 0

    with pytest.raises(Cancelled):
        engine.run(
            request, device="cpu", report=report, should_cancel=lambda: done >= steps, offer_partial=offered.append
        )
    return [stored_form.decode(part.content) for part in offered[0]() if part.kind == "raw"]


def whole(engine, **body):
    request = engine.check(AttributionRequest(engine="inseq", **body))
    parts = engine.run(request, device="cpu", report=lambda _: None, should_cancel=lambda: False)
    return stored_form.decode(parts[0].content)


VARIANTS = [
    {},
    {"step_scores": ["probability", "entropy", "crossentropy"]},
    {"output_step_attributions": True, "clean_special_chars": True},
    {"attributed_fn": "contrast_prob_diff", "attributed_fn_args": {"contrast_targets": OTHER}},
    {"attr_pos_start": {LOOKUP: 11, PHRASEBOOK: 2}},
    {"attribute_target": True},
]


@pytest.mark.parametrize("more", VARIANTS, ids=lambda more: "-".join(more) or "plain")
@pytest.mark.parametrize("method", ["input_x_gradient", "occlusion"])
@pytest.mark.parametrize("model", [LOOKUP, PHRASEBOOK])
def test_the_tokens_that_are_done_are_as_if_asked_for(engine, model, method, more):
    """A partial result equals a job with `attr_pos_end` at its end, which other tests compare with Inseq."""
    more = {name: value.get(model, value) if isinstance(value, dict) else value for name, value in more.items()}
    if "attributed_fn_args" in more:
        more["attributed_fn_args"] = {"contrast_targets": OTHER[model]}
    body = {"model": model, "method": method, "input_text": TEXT[model], "generated_text": TARGET[model], **more}
    (partial,) = stopped_after(engine, 2, **body)
    (sequence,) = partial.sequence_attributions
    assert sequence.attr_pos_end - sequence.attr_pos_start == 2
    expected = whole(engine, **body, attr_pos_end=sequence.attr_pos_end)
    if "attributed_fn" in more:  # only attributed tokens have the contrast in their label
        sequence.target[sequence.attr_pos_end :] = expected.sequence_attributions[0].target[sequence.attr_pos_end :]
        start = sequence.attr_pos_start
        sequence.target[:start] = expected.sequence_attributions[0].target[:start]
    assert_same_sequence(sequence, expected.sequence_attributions[0])
    assert partial.info["partial"]["steps_done"] == 2
    assert partial.info["partial"]["steps_total"] > 2
    assert "partial" not in expected.info
    if "output_step_attributions" in more:
        assert len(partial.step_attributions) == len(expected.step_attributions) == 2
    # The other job may have one more: the correction of attr_pos_end.
    assert set(partial.info["corrections"]) <= set(expected.info["corrections"])
    apart = {"partial", "exec_time", "convergence", "corrections"}
    assert partial.info.keys() - apart == expected.info.keys() - apart
    same = partial.info.keys() - apart - {"tokens"}
    assert {name: partial.info[name] for name in same} == {name: expected.info[name] for name in same}


def test_whole_texts_and_a_part_of_the_next(engine):
    body = {"model": PHRASEBOOK, "method": "saliency", "input_text": [SENTENCE, "a dog sees"]}
    done = whole(engine, **body)
    first = done.sequence_attributions[0]
    steps = first.attr_pos_end - first.attr_pos_start
    (partial,) = stopped_after(engine, steps + 1, **body)
    assert_same_sequence(partial.sequence_attributions[0], first)
    assert partial.sequence_attributions[1].attr_pos_end - partial.sequence_attributions[1].attr_pos_start == 1
    assert [len(each["target"]) for each in partial.info["tokens"]] == [
        len(each.target) for each in partial.sequence_attributions
    ]
    assert partial.info["partial"] == {
        "steps_done": steps + 1,
        "steps_total": sum(each.attr_pos_end - each.attr_pos_start for each in done.sequence_attributions),
    }


@pytest.mark.parametrize("method", ["attention", "value_zeroing"])
def test_methods_of_one_step_have_whole_texts_only(engine, method):
    offered = []
    request = engine.check(AttributionRequest(model=PHRASEBOOK, method=method, input_text=SENTENCE))
    seen = []
    engine.run(
        request,
        device="cpu",
        report=lambda progress: seen.append(offered[0]() if offered and progress.stage is Stage.ATTRIBUTING else []),
        should_cancel=lambda: False,
        offer_partial=offered.append,
    )
    assert seen
    assert not any(seen)


# Over HTTP

SLOW = {
    "model": LOOKUP, "method": "sequential_integrated_gradients", "input_text": PROMPT, "n_steps": 100,
    "generated_text": TARGET[LOOKUP], "engine": "inseq", "step_scores": ["probability"],
}  # fmt: skip


def partial_of(server, job_id, **more):
    return server.client.get(f"/attribution/jobs/{job_id}/results", params={"partial": "true", **more})


def until_some(server, job_id):
    def there_is_some():
        nonlocal answer
        answer = partial_of(server, job_id)
        assert answer.status_code == 200 or answer.json()["type"] == "/problems/result-not-ready", answer.text
        return answer.status_code == 200

    answer = None
    until(there_is_some)
    return answer


def columns(document):
    """Scores of each attributed token, as columns."""
    (sequence,) = document["sequence_attributions"]
    return [list(column) for column in zip(*sequence["target_attributions"], strict=True)]


@pytest.fixture(scope="module")
def whole_job(server):
    """The id of the same job, run to its end."""
    return server.run(**SLOW)


def test_partial_while_running_and_kept_when_cancelled(server, tmp_path, whole_job):
    job_id = server.submit(**SLOW)
    answer = until_some(server, job_id)
    running = answer.json()
    assert "ETag" in answer.headers
    done = running["info"]["partial"]["steps_done"]
    assert 1 <= done < running["info"]["partial"]["steps_total"] == 6
    assert server.client.get(f"/attribution/jobs/{job_id}/results").status_code == 409
    server.client.post(f"/attribution/jobs/{job_id}/cancel")
    assert server.wait(job_id)["status"] == "cancelled"
    kept = partial_of(server, job_id).json()
    assert kept["info"]["partial"]["steps_done"] >= done
    for document in (running, kept):
        expected = columns(server.result(whole_job))
        for index, column in enumerate(columns(document)):
            for ours, theirs in zip(column, expected[index], strict=False):
                assert ours == theirs or ours == pytest.approx(theirs, rel=1e-5, abs=1e-7)
        (sequence,) = document["sequence_attributions"]
        assert len(sequence["step_scores"]["probability"]) == len(columns(document))
    problem = server.client.get(f"/attribution/jobs/{job_id}/results").json()
    assert problem["type"] == "/problems/no-result"
    assert "?partial=true" in problem["detail"]
    # Nothing is left of what was expected.
    assert server.job(job_id)["progress"]["eta_seconds"] is None
    # A comparison with other jobs takes no unfinished result.
    refused = server.client.get("/attribution/agreement", params={"jobs": f"{job_id},{whole_job}"}).json()
    assert refused["detail"] == f"Job {job_id}: The job was cancelled, so it has no result. Submit it again."
    # Inseq loads a partial result.
    (tmp_path / "partial.json").write_bytes(partial_of(server, job_id, format="inseq").content)
    loaded = FeatureAttributionOutput.load(tmp_path / "partial.json")
    assert loaded.sequence_attributions[0].target_attributions.shape[1] == kept["info"]["partial"]["steps_done"]
    assert server.client.delete(f"/attribution/jobs/{job_id}").status_code == 204
    assert partial_of(server, job_id).status_code == 404


def test_partial_is_kept_when_the_time_is_up(server):
    job_id = server.submit(**SLOW | {"n_steps": 1000, "timeout_seconds": 2})
    job = server.wait(job_id)
    assert (job["status"], job["error"]["type"]) == ("failed", "/problems/timed-out")
    assert job["progress"]["eta_seconds"] is None
    kept = partial_of(server, job_id)
    if job["progress"]["steps_done"] == 0:  # on a slow machine no step was done
        assert kept.status_code == 409
    else:
        assert kept.json()["info"]["partial"]["steps_done"] == job["progress"]["steps_done"]


def test_without_a_part_there_is_none(server):
    job_id = server.submit(model=LOOKUP, method="saliency", input_text="tea " * 300)
    assert server.wait(job_id)["status"] == "failed"
    answer = partial_of(server, job_id)
    assert (answer.status_code, answer.json()["type"]) == (409, "/problems/no-result")
    assert "?partial" not in answer.json()["detail"]


def test_partial_of_a_completed_job_is_its_result(server, whole_job):
    assert partial_of(server, whole_job).json() == server.result(whole_job)


def test_parts_expire_like_results(tmp_path):
    with Server(tmp_path) as server:
        job_id = server.submit(**SLOW)
        until_some(server, job_id)
        server.client.post(f"/attribution/jobs/{job_id}/cancel")
        server.wait(job_id)
        assert partial_of(server, job_id).status_code == 200
    names = [file.name for file in (tmp_path / "results").iterdir()]
    assert len(names) == 2
    store = JobStore(tmp_path)
    assert store.expire(max_age=-1, keep=10, keep_bytes=10**9) == [job_id]
    store.close()
    assert list((tmp_path / "results").iterdir()) == []
    with Server(tmp_path, module="tests.fake_engine") as server:  # reads the store alone
        answer = partial_of(server, job_id)
        assert (answer.status_code, answer.json()["type"]) == (410, "/problems/result-expired")
        answer = server.client.get(f"/attribution/jobs/{job_id}/results")
        assert (answer.status_code, answer.json()["type"]) == (409, "/problems/no-result")
        assert json.loads(answer.content)["detail"].startswith("The job was cancelled")


@pytest.mark.parametrize("method", ["attention", "value_zeroing", "saliency"])
def test_progress_over_several_texts_never_goes_back(engine, method):
    request = engine.check(
        AttributionRequest(model=PHRASEBOOK, method=method, input_text=[SENTENCE, "a dog", SENTENCE])
    )
    seen = []
    engine.run(request, device="cpu", report=seen.append, should_cancel=lambda: False)
    told = [each for each in seen if each.stage is Stage.ATTRIBUTING]
    assert [each.fraction for each in told] == sorted(each.fraction for each in told)
    assert told[-1].fraction == 1.0
    assert len({each.steps_total for each in told}) == 1
