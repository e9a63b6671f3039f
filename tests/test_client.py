"""The client against a real server."""

from __future__ import annotations

import asyncio
import inspect
import json
import subprocess
import sys
import time

import httpx
import numpy as np
import pandas as pd
import pytest

import attribution_client as facade
from attribution_client import (
    AsyncAttributionClient,
    AttributionClient,
    AttributionRequest,
    Estimate,
    InvalidRequest,
    JobStatus,
    NotFound,
    calls,
    rank_correlation,
    to_frame,
    top_token_overlap,
    top_tokens,
)
from tests import reference
from tests.conftest import BUNDLED, LOOKUP, PHRASEBOOK, PROMPT, SENTENCE
from tests.serving import ROOT

JOB = {"model": LOOKUP, "method": "saliency", "input_text": PROMPT, "step_scores": ["probability"]}


@pytest.fixture(scope="module")
def client(server):
    with AttributionClient(server.url) as made:
        yield made


@pytest.fixture(scope="module")
def done(client):
    return client.wait(client.submit(**JOB))


# Importing


def test_importing_is_quick_and_needs_neither_torch_nor_pandas():
    code = (
        "import sys, time; start = time.process_time(); import attribution_client; taken = time.process_time() - start;"
        "print(taken, *sorted({'torch', 'inseq', 'pandas', 'matplotlib', 'fastapi', 'main'} & sys.modules.keys()))"
    )
    printed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    seconds, *loaded = printed.split()
    assert loaded == []
    assert float(seconds) < 3  # processor time; usually well under 1


def test_every_name_of_the_facade_is_there():
    for name in facade.__all__:
        assert getattr(facade, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        _ = facade.nonsense


# Jobs


def test_attribute_is_submit_wait_results(client):
    result = client.attribute(
        LOOKUP, "saliency", PROMPT, step_scores=["probability"], view={"aggregator": ["subwords", "vnorm"]}
    )
    (sequence,) = result.sequence_attributions
    assert [token.token for token in sequence.target][-1] == "Ġtea."
    assert result.info["attribution_method"] == "saliency"


def test_the_numbers_are_inseqs(client, done):
    theirs = reference.attribute(BUNDLED / LOOKUP, PROMPT, "saliency", step_scores=["probability"])
    expected = theirs.aggregate().sequence_attributions[0].target_attributions.numpy()
    typed = np.array(client.results(done).sequence_attributions[0].target_attributions, float)
    np.testing.assert_allclose(typed, expected, rtol=1e-5, atol=1e-7)
    frame = client.to_frame(done)
    for row in frame.itertuples():
        found = expected[row.attributed_position, row.generated_position - 10]
        np.testing.assert_allclose(row.score, found, rtol=1e-5, atol=1e-7)
    assert len(frame) == np.isfinite(expected).sum()
    reference.assert_same(client.to_inseq(done), theirs)


@pytest.mark.parametrize("table", ["attributions", "step_scores"])
@pytest.mark.parametrize("options", [{}, {"decode_tokens": False}, {"aggregator": "sum", "normalize": False}], ids=str)
def test_a_frame_of_a_result_is_the_servers(client, table, options):
    job = client.submit(
        model=PHRASEBOOK, method="saliency", input_text=[SENTENCE, "a king buys the old hat"], attribute_target=True,
        step_scores=["probability", "entropy"], reuse=True,
    )  # fmt: skip
    client.wait(job)
    result = client.results(job, **options)
    ours, theirs = to_frame(result, table), client.to_frame(job, table=table, **options)
    names = sorted(ours)
    pd.testing.assert_frame_equal(ours[names], theirs[names])
    assert len(ours) > 20
    assert ours.attrs["info"] == theirs.attrs["info"] == result.info


def test_granular_frames(client, done):
    frame = client.to_frame(done, granular=True)
    assert frame["embedding_dimension"].nunique() == 96
    with pytest.raises(ValueError, match=r"client\.to_frame"):
        to_frame(client.results(done, granular=True))


def test_a_comparison_is_one_job(client):
    methods = ["saliency", "integrated_gradients"]
    found = client.compare(LOOKUP, methods, PROMPT, attribution_args={"integrated_gradients": {"n_steps": 5}})
    assert [each.method for each in found.comparison] == methods
    job = next(client.jobs())
    assert job.request.method_names == methods
    one = client.results(job, method="saliency")
    assert one.sequence_attributions == found.comparison[0].sequence_attributions
    # The client computes the same agreement as the server.
    told = rank_correlation(found).loc["saliency", "integrated_gradients"]
    assert told == pytest.approx(found.agreement[0].spearman)
    overlap = top_token_overlap(found, found.agreement[0].k).loc["saliency", "integrated_gradients"]
    assert overlap == pytest.approx(found.agreement[0].top_overlap)


def test_an_estimate_is_typed(client):
    told = client.estimate(model=LOOKUP, method="saliency", input_text=PROMPT, generated_text=f"{PROMPT} tea.")
    assert isinstance(told, Estimate)
    assert told.backward_passes == told.inputs[0].attributed_tokens == 2
    assert told.fits
    assert told.seconds.total > 0


def test_a_newer_server_may_say_more(client, done):
    """The client ignores unknown fields of a job and of its request, but refuses them in requests that it sends."""
    job = client.job(done)
    document = job.model_dump(mode="json") | {"weather": "fine"}
    document["request"]["colour"] = "blue"
    answer = httpx.Response(200, json=document)
    assert calls.read_job("x").read(answer) == job


def test_requests_as_objects_and_fields(client):
    request = AttributionRequest(**JOB)
    job = client.submit(request, seed=3, tags={"study": "a"})
    assert job.request == request.model_copy(update={"seed": 3, "tags": {"study": "a"}})


def test_listing_reads_page_after_page(client):
    tag = {"page": str(time.time_ns())}
    made = [client.submit(**JOB, tags=tag).job_id for _ in range(5)]
    mine = {"tag": f"page:{tag['page']}", "page_size": 2}
    assert [job.job_id for job in client.jobs(**mine)] == made[::-1]
    for job_id in made:
        client.wait(job_id)
    other = client.wait(client.submit(**JOB | {"method": "dummy"}, tags=tag))
    filtered = client.jobs(**mine, status=JobStatus.COMPLETED, model=LOOKUP, method="saliency")
    assert [job.job_id for job in filtered] == made[::-1]
    assert [job.job_id for job in client.jobs(**mine)] == [other.job_id, *made[::-1]]
    assert list(client.jobs(**mine, status=JobStatus.FAILED)) == []


def test_an_idempotency_key_of_ones_own(client):
    key = f"run-{time.time_ns()}"
    first, second = (client.submit(**JOB, idempotency_key=key) for _ in range(2))
    assert first.job_id == second.job_id
    with pytest.raises(InvalidRequest, match="idempotency key"):
        client.submit(**JOB, seed=1, idempotency_key=key)


def test_catalogues(client):
    assert "integrated_gradients" in {method["name"] for method in client.methods()}
    assert "probability" in {function["name"] for function in client.step_functions()}
    assert {LOOKUP, PHRASEBOOK} <= set(client.models()["bundled"])  # and SmolLM2 after `make smollm2`


def test_views_as_files(client, done):
    assert client.view(done, "html").startswith(b"<!DOCTYPE html>")
    assert client.view(done, "csv", table="step_scores").startswith(b'"sequence","generated_position"')
    assert json.loads(client.view(done, "json"))["info"]["model_name"] == LOOKUP


def test_delete_forgets_a_job(client):
    job = client.wait(client.submit(**JOB))
    client.delete(job)
    with pytest.raises(NotFound):
        client.job(job)


def test_jobs_are_named_found_and_deleted_together(client, server):
    word = f"w{time.time_ns()}"
    made = [
        client.wait(client.submit(**JOB | {"method": method}, name=f"{word} {method}"))
        for method in ("saliency", "dummy")
    ]
    first = made[0]
    assert first.name == f"{word} saliency"
    changed = client.update(first, notes="seen", tags={"a": "1", "b": "2"})
    assert (changed.name, changed.notes, changed.tags) == (first.name, "seen", {"a": "1", "b": "2"})
    assert client.update(first.job_id, name=None, tags={"a": None}).tags == {"b": "2"}
    assert client.job(first).name is None
    assert [job.job_id for job in client.jobs(search=word.upper())] == [made[1].job_id]
    (pair,) = client.agreement(made)
    assert (pair.jobs, pair.methods, pair.same_tokens) == (
        tuple(job.job_id for job in made),
        ("saliency", "dummy"),
        True,
    )
    many = [*made, *(f"none-{index}" for index in range(200))]  # more than one call takes
    assert {each.error.status for each in client.cancel_many(made)} == {409}
    outcomes = client.delete_many(many)
    assert [each.outcome.value for each in outcomes] == ["done"] * 2 + ["not_found"] * 200
    assert [each.job_id for each in outcomes[:2]] == [job.job_id for job in made]

    async def work():
        async with AsyncAttributionClient(server.url) as other:
            job = await other.update(await other.submit(**JOB), name="asynchronous")
            assert job.name == "asynchronous"
            assert await other.agreement([await other.wait(job)]) == []
            return [await other.cancel_many([job]), await other.delete_many([job])]

    assert [each.outcome.value for (each,) in asyncio.run(work())] == ["conflict", "done"]


def test_top_tokens_are_the_largest(client):
    result = client.attribute(PHRASEBOOK, "saliency", SENTENCE)
    found = top_tokens(result, 2)
    (sequence,) = result.sequence_attributions
    for step, position in enumerate(range(sequence.attr_pos_start, sequence.attr_pos_end)):
        scores = np.abs(np.array(sequence.source_attributions, float)[:, step])
        rows = found[found["generated_position"] == position]
        assert rows["attributed_position"].tolist() == np.argsort(-scores)[:2].tolist()
        assert rows["rank"].tolist() == [1, 2]
    words = found[found["rank"] == 1].set_index("generated_text")["attributed_text"]
    assert words[" gatto"] == " cat"
    assert words[" rosso"] == " red"
    assert len(top_tokens(result, 3, generated=1)) == 3


def test_no_reader_gets_a_tokenizers_marks_unasked(client, done):
    """Decoded texts are beside the raw tokens unless the caller says otherwise."""
    result = client.results(done)
    shown = [top_tokens(result), client.to_frame(done), to_frame(result)]
    assert [token.text for token in result.sequence_attributions[0].target][8:11] == [" Anna", " likes", " tea"]
    for table in shown:
        assert set(table["generated_text"]) == {" tea", "."}
        assert {" Anna", " likes", " tea", "Anna"} <= set(table["attributed_text"])
    assert "Ġ" not in top_tokens(result).to_string()
    both = client.compare(LOOKUP, ["saliency", "attention"], PROMPT)
    assert both.comparison[1].sequence_attributions[0].target[10].text == " tea"
    # Raw tokens are there still, and alone for who wants no texts.
    assert set(shown[1]["generated_token"]) == {"Ġtea", "."}
    raw = client.results(done, decode_tokens=False)
    assert {token.text for token in raw.sequence_attributions[0].target} == {None}
    assert set(top_tokens(raw)["generated_text"]) == {"Ġtea", "."}
    assert "generated_text" not in client.to_frame(done, decode_tokens=False)


# Asynchronous


def test_both_clients_have_the_same_methods():
    """Names, parameters and documentation are equal, except that iterators are asynchronous."""

    def surface(client):
        members = vars(client).items()
        public = {name: member for name, member in members if not name.startswith("_")}
        return {
            name: (inspect.getdoc(member), str(inspect.signature(member)).replace("AsyncIterator", "Iterator"))
            for name, member in public.items()
        }

    blocking, awaited = surface(AttributionClient), surface(AsyncAttributionClient)
    assert blocking == awaited
    assert all(documentation for documentation, _ in blocking.values())
    parameters = [list(inspect.signature(each).parameters) for each in (AttributionClient, AsyncAttributionClient)]
    assert parameters[0] == parameters[1]


def test_the_asynchronous_client_does_the_same(server, client):
    async def work():
        async with AsyncAttributionClient(server.url) as other:
            mine = {**JOB, "tags": {"by": "asynchronous"}}
            results = await asyncio.gather(*(other.attribute(**mine, seed=seed) for seed in range(3)))
            job = await other.submit(**mine)
            assert (await other.wait(job, timeout=60)).status is JobStatus.COMPLETED
            frame = await other.to_frame(job)
            inseqs = await other.to_inseq(job)
            listed = [each.job_id async for each in other.jobs(page_size=2, tag="by:asynchronous")]
            assert listed[0] == job.job_id
            assert (await other.job(job)).job_id == job.job_id
            names = [each["name"] for each in await other.methods()]
            assert await other.step_functions()
            assert await other.models()
            await other.delete(job)
            with pytest.raises(NotFound):
                await other.job(job)
        return results, frame, inseqs, listed, names

    results, frame, inseqs, listed, names = asyncio.run(work())
    assert len({json.dumps(each.model_dump()["sequence_attributions"]) for each in results}) == 1
    pd.testing.assert_frame_equal(frame, to_frame(results[0]))
    assert len(inseqs.sequence_attributions) == 1
    assert len(listed) == len(set(listed)) == 4
    assert names == [method["name"] for method in client.methods()]
