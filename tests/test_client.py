"""The client against a real server, and against one that misbehaves."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from types import SimpleNamespace

import httpx
import numpy as np
import pandas as pd
import pytest
import tenacity

import client as facade
from attribution_client import calls
from client import (
    AsyncAttributionClient,
    AttributionCancelled,
    AttributionClient,
    AttributionFailed,
    AttributionRequest,
    Busy,
    Conflict,
    Estimate,
    InvalidRequest,
    JobStatus,
    NotFound,
    ServerFailed,
    ServerUnreachable,
    Unauthorized,
    WaitTimedOut,
    rank_correlation,
    to_frame,
    top_token_overlap,
    top_tokens,
)
from tests import reference
from tests.conftest import BUNDLED, LOOKUP, PHRASEBOOK, PROMPT, SENTENCE
from tests.misbehaving import CUT, RESET, misbehaving
from tests.serving import ROOT, Server, until

JOB = {"model": LOOKUP, "method": "saliency", "input_text": PROMPT, "step_scores": ["probability"]}
# Long enough to be watched and cancelled: a forward for each of thousands of samples.
LONG = {"model": LOOKUP, "method": "lime", "input_text": PROMPT, "attribution_args": {"n_samples": 2000}}


@pytest.fixture(scope="module")
def client(server):
    with AttributionClient(server.url) as made:
        yield made


@pytest.fixture(scope="module")
def done(client):
    return client.wait(client.submit(**JOB))


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    """A server without torch, whose jobs take as long as they are told."""
    with Server(tmp_path_factory.mktemp("slow"), module="tests.fake_engine") as running:
        yield running


def told(action):
    return {"model": "m", "method": "saliency", "input_text": action}


# Importing


def test_importing_is_quick_and_needs_neither_torch_nor_pandas():
    code = (
        "import sys, time; start = time.process_time(); import client; taken = time.process_time() - start;"
        "print(taken, *sorted({'torch', 'inseq', 'pandas', 'matplotlib', 'fastapi', 'main'} & sys.modules.keys()))"
    )
    printed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    seconds, *loaded = printed.split()
    assert loaded == []
    assert float(seconds) < 3  # of the processor: well under one


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
@pytest.mark.parametrize("options", [{}, {"decode_tokens": True}, {"aggregator": "sum", "normalize": False}], ids=str)
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
    # The client's own arithmetic and the server's agree.
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
    """Fields that this client does not know of, in the job and in its request, which is strict where it is sent."""
    job = client.job(done)
    document = job.model_dump(mode="json") | {"weather": "fine"}
    document["request"]["colour"] = "blue"
    answer = httpx.Response(200, json=document)
    assert calls.job("x").read(answer) == job


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
    assert client.models()["bundled"] == [LOOKUP, PHRASEBOOK]


def test_views_as_files(client, done):
    assert client.view(done, "html").startswith(b"<!DOCTYPE html>")
    assert client.view(done, "csv", table="step_scores").startswith(b'"sequence","generated_position"')
    assert json.loads(client.view(done, "json"))["info"]["model_name"] == LOOKUP


def test_delete_forgets_a_job(client):
    job = client.wait(client.submit(**JOB))
    client.delete(job)
    with pytest.raises(NotFound):
        client.job(job)


def test_top_tokens_are_the_largest(client):
    result = client.attribute(PHRASEBOOK, "saliency", SENTENCE)
    found = top_tokens(result, 2)
    (sequence,) = result.sequence_attributions
    for step, position in enumerate(range(sequence.attr_pos_start, sequence.attr_pos_end)):
        scores = np.abs(np.array(sequence.source_attributions, float)[:, step])
        rows = found[found["generated_position"] == position]
        assert rows["attributed_position"].tolist() == np.argsort(-scores)[:2].tolist()
        assert rows["rank"].tolist() == [1, 2]
    words = found[found["rank"] == 1].set_index("generated_token")["attributed_token"]
    assert words["▁gatto"] == "▁cat"
    assert words["▁rosso"] == "▁red"
    assert len(top_tokens(result, 3, generated=1)) == 3


# What goes wrong


def test_a_refused_request_says_where(client):
    with pytest.raises(InvalidRequest) as refused:
        client.submit(model=LOOKUP, method="nonsense", input_text=PROMPT)
    assert refused.value.status == 422
    assert refused.value.errors[0].pointer == "/method"
    assert "nonsense" in str(refused.value)
    with pytest.raises(NotFound):
        client.job("nope")


def test_a_failed_job_says_why(slow):
    with AttributionClient(slow.url) as client:
        with pytest.raises(AttributionFailed, match="The text says fail") as failed:
            client.attribute(**told("fail"))
        assert failed.value.problem.type == "/problems/input-rejected"
        assert failed.value.job.status is JobStatus.FAILED
        with pytest.raises(Conflict):
            client.results(failed.value.job)


def test_waiting_has_an_end(slow):
    with AttributionClient(slow.url) as client:
        job = client.submit(**told("forever"))
        slow.wait_until_attributing(job.job_id)
        started = time.monotonic()
        with pytest.raises(WaitTimedOut) as late:
            client.wait(job, timeout=1)
        assert 0.9 < time.monotonic() - started < 60
        assert isinstance(late.value, TimeoutError)
        assert late.value.job.status is JobStatus.RUNNING
        assert client.cancel(job).job_id == job.job_id
        with pytest.raises(AttributionCancelled):
            client.wait(job)
        assert client.cancel(job).status is JobStatus.CANCELLED  # and stays so
        ended = client.wait(client.submit(**told("hello")))
        with pytest.raises(Conflict):
            client.cancel(ended)


def test_keys(tmp_path):
    with Server(tmp_path, module="tests.fake_engine") as running:
        made = subprocess.run(
            [sys.executable, "main.py", "--data-dir", str(tmp_path), "keys", "create", "ann"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        key = next(word for word in made.stdout.split() if len(word) > 30)
        with AttributionClient(running.url) as client, pytest.raises(Unauthorized, match="API key"):
            client.models()
        with AttributionClient(running.url, key) as client:
            assert client.models() == {}


def test_server_and_key_come_from_the_environment(slow, monkeypatch):
    monkeypatch.setenv("INSEQ_API_URL", slow.url)
    monkeypatch.setenv("INSEQ_API_KEY", "secret")
    with misbehaving(slow.url) as proxy, AttributionClient(proxy.url) as client:
        client.methods()
        assert proxy.seen[0][3]["Authorization"] == "Bearer secret"
    with AttributionClient() as client:
        assert client.methods() == []


# Retries


def test_a_retry_never_doubles_a_job(slow):
    with misbehaving(slow.url) as proxy, AttributionClient(proxy.url) as client:
        tag = f"once:{time.time_ns()}"
        name, value = tag.split(":")
        proxy.plan = [RESET, (503, {}), CUT, CUT]  # the third and fourth made the job, and nobody heard
        job = client.submit(**told("hello"), tags={name: value})
        assert [each[1] for each in proxy.seen] == ["POST"] * 5
        assert len({each[3]["Idempotency-Key"] for each in proxy.seen}) == 1
        assert [each.job_id for each in client.jobs(tag=tag)] == [job.job_id]


def test_retry_after_is_honoured(slow):
    with misbehaving(slow.url) as proxy, AttributionClient(proxy.url) as client:
        in_two_seconds = lambda: (503, {"Retry-After": formatdate(time.time() + 2, usegmt=True)})  # noqa: E731
        proxy.plan = [(429, {"Retry-After": "1"}), in_two_seconds]
        client.methods()
        assert len(proxy.seen) == 3
        assert proxy.gaps[0] >= 1.0
        assert proxy.gaps[1] >= 0.9  # a date has whole seconds


def test_pauses_grow_and_differ(slow, monkeypatch):
    """The pauses as they are asked for: a busy machine takes longer ones."""
    pauses: list[float] = []
    monkeypatch.setattr(tenacity.nap, "time", SimpleNamespace(sleep=pauses.append))
    with misbehaving(slow.url) as proxy, AttributionClient(proxy.url) as client:
        proxy.plan = [RESET] * 8
        client.methods()
        assert len(proxy.seen) == 9
    assert all(0 <= pause <= min(10, 0.25 * 2**attempt) for attempt, pause in enumerate(pauses))
    assert len(set(pauses)) == 8
    assert max(pauses) > 0.25  # the longest that the first can be


def test_giving_up_keeps_the_servers_reason(slow):
    with misbehaving(slow.url) as proxy, AttributionClient(proxy.url, retry_seconds=0.5) as client:
        proxy.plan = [(429, {"Retry-After": "60"})]
        started = time.monotonic()
        with pytest.raises(Busy) as busy:
            client.methods()
        assert busy.value.retry_after == 60
        assert time.monotonic() - started < 50  # a pause longer than the patience is not begun
        proxy.plan = [(503, {})] * 50
        with pytest.raises(ServerFailed, match="503"):
            client.methods()
        proxy.plan = [RESET] * 50
        with pytest.raises(ServerUnreachable, match="does not answer"):
            client.methods()


def test_what_is_wrong_is_not_tried_again(slow):
    with misbehaving(slow.url) as proxy, AttributionClient(proxy.url) as client:
        with pytest.raises(NotFound):
            client.job("nope")
        proxy.plan = [(500, {})]
        with pytest.raises(ServerFailed):
            client.methods()
        assert len(proxy.seen) == 2


def test_a_lost_answer_to_a_delete_is_no_failure(slow):
    with misbehaving(slow.url) as proxy, AttributionClient(proxy.url) as client:
        job = client.wait(client.submit(**told("hello")))
        proxy.plan = [CUT]
        client.delete(job)
        with pytest.raises(NotFound):
            client.delete(job)


def test_waiting_outlives_the_server(tmp_path):
    """The server dies under a job; it comes back, and so does the one who waits."""
    with Server(tmp_path, module="tests.fake_engine") as running, misbehaving(running.url) as proxy:
        client = AttributionClient(proxy.url)
        job = client.submit(**told("sleep:3"))
        proxy.plan = [None, RESET, (503, {}), RESET]  # the job, its stream, and two looks at it
        found: list = []
        waiting = threading.Thread(target=lambda: found.append(client.wait(job)))
        waiting.start()
        until(lambda: not proxy.plan)
        running.kill()
        running.start()
        proxy.upstream = running.url
        waiting.join(120)
        assert [each.status for each in found] == [JobStatus.COMPLETED]
        client.close()


def test_waiting_follows_and_does_not_poll(slow):
    with misbehaving(slow.url) as proxy, AttributionClient(proxy.url) as client, ThreadPoolExecutor(1) as pool:
        job = client.submit(**told("forever"))
        waiting = pool.submit(client.wait, job)
        until(lambda: len(proxy.seen) == 3)
        time.sleep(1)
        slow.settle()
        with pytest.raises(AttributionCancelled):
            waiting.result()
        assert len(proxy.seen) == 3  # submitted, looked at once, followed to its end


# Asynchronous


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


def test_the_asynchronous_client_tries_again_and_stops_waiting(slow):
    async def work(proxy):
        async with AsyncAttributionClient(proxy.url) as client:
            proxy.plan = [RESET, (429, {"Retry-After": "0"}), CUT]
            job = await client.submit(**told("forever"))
            with pytest.raises(WaitTimedOut):
                await client.wait(job, timeout=0.5)
            await client.cancel(job)
            with pytest.raises(AttributionCancelled):
                await client.wait(job)
            with pytest.raises(AttributionFailed):
                await client.attribute(**told("fail"))

    with misbehaving(slow.url) as proxy:
        asyncio.run(work(proxy))
        posts = [each for each in proxy.seen if each[1:3] == ("POST", "/attribution/jobs")]
        assert len(posts) == 5
