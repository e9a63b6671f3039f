"""The HTTP contract: jobs, views of results, the catalogue and problem documents."""

from __future__ import annotations

import gzip
import inspect
import json
import re
from datetime import datetime
from itertools import pairwise

import httpx
import inseq
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

import perturbation
from api.routes.catalogue import catalogue
from api.routes.jobs import estimate_job, get_job, jobs, submit_job, watch_job
from api.routes.results import compare_jobs, get_results, results
from api.routes.service import describe_problem, live, meta
from demo_models import smollm2
from settings import Settings
from tests import reference
from tests.conftest import BUNDLED, LOOKUP, PHRASEBOOK, PROMPT, SENTENCE, TWO_STEP
from tests.fake_engine import body, ended, in_process, until_running

JOB = {"model": LOOKUP, "method": "saliency", "input_text": PROMPT, "step_scores": ["probability"]}


@pytest.fixture(scope="module")
def done(server):
    """A completed saliency job."""
    return server.run(**JOB)


# Jobs


def test_a_job_says_where_it_is_and_what_it_runs(server):
    answer = server.client.post("/attribution/jobs", json={**JOB, "method": "deep_lift"})
    assert answer.status_code == 202
    job = answer.json()
    assert answer.headers["location"] == job["links"]["self"] == f"/attribution/jobs/{job['job_id']}"
    assert job["status"] == "pending"
    assert job["request"]["method"] == "deeplift"
    assert job["request"]["seed"] == 0
    assert job["created_at"].endswith("Z")
    job = server.wait(job["job_id"])
    times = [datetime.fromisoformat(job[name]) for name in ("created_at", "started_at", "finished_at")]
    assert times == sorted(times)
    assert job["attempt"] == 1
    assert job["progress"]["fraction"] == 1
    assert job["progress"]["steps_done"] == job["progress"]["steps_total"] > 0
    assert job["queue_position"] is None
    assert job["error"] is None


def test_shorthands_and_arguments_are_stored_as_they_run(server):
    answer = server.client.post(
        "/attribution/jobs", json={**JOB, "method": "integrated_gradients", "n_steps": 4, "internal_batch_size": 2}
    )
    request = answer.json()["request"]
    assert request["attribution_args"] == {"n_steps": 4, "internal_batch_size": 2}
    job_id = answer.json()["job_id"]
    server.wait(job_id)
    info = server.result(job_id)["info"]
    assert info["arguments"]["attribution_args"] == {
        "n_steps": 4, "internal_batch_size": 2, "method": "gausslegendre", "return_convergence_delta": False,
        "multiply_by_inputs": True,
    }  # fmt: skip
    assert (
        server.result(server.run(**request))["sequence_attributions"] == server.result(job_id)["sequence_attributions"]
    )


def test_listing_pages_are_stable_and_filtered(server, done):
    job = {"model": PHRASEBOOK, "method": "dummy", "input_text": SENTENCE, "tags": {"of": "pages"}}
    ids = [server.run(**job) for _ in range(5)]
    for other in ({"method": "saliency"}, {"model": LOOKUP}, {"tags": {"of": "no pages"}}):
        server.run(**job | other)
    parameters = {"model": PHRASEBOOK, "method": "dummy", "status": "completed", "tag": "of:pages", "limit": 2}
    seen, cursor = [], None
    while True:
        page = server.client.get("/attribution/jobs", params=parameters | ({"cursor": cursor} if cursor else {})).json()
        seen += [job["job_id"] for job in page["jobs"]]
        if len(seen) == 2:
            server.run(**job)  # a new job arrives between two pages
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == ids[::-1]
    for other in ("!!", "LTU", "MTAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMA"):  # not base64, -5, and more than 64 bits
        assert server.client.get("/attribution/jobs", params={"cursor": other}).status_code == 422
    assert server.client.get("/attribution/jobs", params={"limit": 0}).json()["errors"][0]["parameter"] == "limit"


# Results


def test_the_default_view_is_inseqs_default_aggregation(server, done):
    theirs = reference.attribute(BUNDLED / LOOKUP, PROMPT, "saliency").aggregate()
    found = server.result(done)["sequence_attributions"][0]["target_attributions"]
    expected = theirs.sequence_attributions[0].target_attributions.numpy()
    np.testing.assert_allclose(np.array(found, float), expected, rtol=1e-5, atol=1e-7)


VIEWS = {
    "function": ({"aggregator": "sum"}, {"aggregator": "sum"}),
    "not normalized": ({"normalize": "false"}, {"normalize": False}),
    # Inseq's `subwords` leaves out the last piece of the last word, so compare with `spans` of every word.
    "subwords": (
        {"aggregator": "subwords,vnorm"},
        {"aggregator": ["spans", "vnorm"], "target_spans": "words"},
    ),
    "functions": (
        {"aggregator": "subwords,scores", "aggregate_fn": "max,mean"},
        {"aggregator": ["spans", "scores"], "aggregate_fn": ["max", "mean"], "target_spans": "words"},
    ),
    "spans": (
        {"aggregator": "spans,vnorm", "aggregator_args": '{"target_spans": [[0, 4], [4, 8]]}'},
        {"aggregator": ["spans", "vnorm"], "target_spans": [(0, 4), (4, 8)]},
    ),
}


@pytest.mark.parametrize("name", VIEWS)
def test_aggregation_equals_inseqs(server, done, name):
    parameters, arguments = VIEWS[name]
    raw = reference.attribute(BUNDLED / LOOKUP, PROMPT, "saliency").sequence_attributions[0]
    if arguments.get("target_spans") == "words":
        starts = [index for index, token in enumerate(raw.target) if not index or token.token.startswith("Ġ")]
        spans = [span for span in pairwise([*starts, len(raw.target)]) if span[1] - span[0] > 1]
        assert spans[-1][1] == len(raw.target)
        inseqs = raw.aggregate(aggregator="subwords", special_chars=("Ġ",))
        assert inseqs.target[-1].token == "."
        arguments = {**arguments, "target_spans": spans}
    theirs = raw.aggregate(**arguments)
    ours = server.result(done, **parameters)["sequence_attributions"][0]
    assert [token["token"] for token in ours["target"]] == [token.token for token in theirs.target]
    found = np.array(ours["target_attributions"], float)
    np.testing.assert_allclose(found, theirs.target_attributions.numpy(), rtol=1e-5, atol=1e-7)


BAD_VIEWS = {
    "aggregator=nonsense": "There is no aggregator 'nonsense'",
    "aggregator=scores&aggregate_fn=nonsense": "There is no aggregation function 'nonsense'",
    "aggregator=scores&aggregate_fn=max,max": "one function for each aggregator",
    "granular=true&aggregator=scores": "leave out aggregator",
    "aggregator=spans&aggregator_args=[]": "must be a JSON object",
    'aggregator=spans&aggregator_args={"nope":1}': "'nope' is not an argument",
    'aggregator=spans&aggregator_args={"target_spans":"x"}': "expected",
    'aggregator=spans&aggregator_args={"target_spans":[[0,99]]}': "cannot be aggregated",
    "format=pdf": "format",
    "granular=perhaps": "granular",
}


@pytest.mark.parametrize("query", BAD_VIEWS)
def test_a_view_that_cannot_be_is_told(server, done, query):
    answer = server.client.get(f"/attribution/jobs/{done}/results?{query}")
    assert answer.status_code == 422, answer.text
    assert BAD_VIEWS[query] in answer.json()["detail"]


@pytest.mark.parametrize("method", ["attention", "value_zeroing", "occlusion", "saliency", "dummy"])
@pytest.mark.parametrize("model", [LOOKUP, PHRASEBOOK])
def test_inseq_loads_and_aggregates_what_it_is_given(server, tmp_path, model, method):
    """Loaded by Inseq, a result aggregates as in our JSON view; Inseq's own file loses the number of dimensions."""
    job_id = server.run(model=model, method=method, input_text={LOOKUP: PROMPT, PHRASEBOOK: SENTENCE}[model])
    file = tmp_path / "result.json"
    file.write_bytes(server.client.get(f"/attribution/jobs/{job_id}/results?format=inseq").content)
    json.loads(file.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    loaded = inseq.FeatureAttributionOutput.load(file).aggregate().sequence_attributions[0]
    ours = server.result(job_id)["sequence_attributions"][0]
    for name in ("source_attributions", "target_attributions"):
        expected = getattr(loaded, name)
        assert (expected is None) == (ours[name] is None)
        if expected is not None:
            np.testing.assert_allclose(np.array(ours[name], float), expected.numpy(), rtol=1e-6)


def test_step_attributions_are_returned_when_asked_for(server):
    result = server.result(server.run(**JOB, output_step_attributions=True))
    steps, sequence = result["step_attributions"], result["sequence_attributions"][0]
    assert len(steps) == sequence["attr_pos_end"] - sequence["attr_pos_start"] + 1  # the EOS that Inseq drops
    assert steps[0]["target"][0][0] == sequence["target"][sequence["attr_pos_start"]]
    assert len(steps[0]["target_attributions"][0]) == sequence["attr_pos_start"]
    assert server.client.get(f"/attribution/jobs/{server.run(**JOB)}/results").json()["step_attributions"] is None


def test_results_are_compressed_and_cached(server, done):
    url = f"{server.url}/attribution/jobs/{done}/results"
    with httpx.Client() as client:
        zipped = client.get(url, headers={"Accept-Encoding": "gzip"})
        plain = client.get(url, headers={"Accept-Encoding": "identity"})
        assert zipped.headers["content-encoding"] == "gzip"
        assert "content-encoding" not in plain.headers
        assert zipped.json() == plain.json()
        assert int(zipped.headers["content-length"]) < len(plain.content)
        etag = plain.headers["etag"]
        assert etag == zipped.headers["etag"]
        again = client.get(url, headers={"If-None-Match": etag})
        assert (again.status_code, again.content) == (304, b"")
        other = client.get(url, params={"granular": "true"}, headers={"If-None-Match": etag})
        assert other.status_code == 200
        assert other.headers["etag"] != etag


def test_the_default_view_is_stored_as_it_is_sent(server, done):
    """The response is the stored file, decompressed, so a read computes nothing."""
    (file,) = (server.data_dir / "results").glob(f"{done}.*.summary")
    answer = server.client.get(f"/attribution/jobs/{done}/results", headers={"Accept-Encoding": "identity"})
    assert gzip.decompress(file.read_bytes()) == answer.content


def test_the_record_says_how_to_get_the_result_again(server, done):
    info = server.result(done)["info"]
    assert info["model_name"] == LOOKUP
    assert re.fullmatch(r"[0-9a-f]{12}", info["model_revision"])
    assert (info["attribution_method"], info["attributed_fn"]) == ("saliency", "probability_fn")
    assert (info["seed"], info["dtype"], info["device"], info["engine"]) == (0, "float32", "cpu", "single_pass")
    assert info["arguments"]["attribution_args"] == {"abs": True}
    assert info["corrections"] == []
    assert info["versions"]["inseq"] == "0.7.1"
    assert {"torch", "transformers", "captum"} <= info["versions"].keys()
    assert info["input_texts"] == [PROMPT]
    assert info["generated_texts"][0].startswith(PROMPT + " tea")


# The catalogue


def test_the_catalogue_is_inseqs_and_has_the_methods_of_masks(server):
    methods = server.client.get("/attribution/methods").json()["methods"]
    assert [each["name"] for each in methods] == sorted(
        [*inseq.list_feature_attribution_methods(), *perturbation.METHODS]
    )
    functions = server.client.get("/attribution/step_functions").json()["step_functions"]
    # Other tests in this process register our corrected functions with Inseq, with a colon in the name.
    theirs = [name for name in inseq.list_step_functions() if ":" not in name]
    assert [function["name"] for function in functions] == sorted(theirs)
    aggregators = server.client.get("/attribution/aggregators").json()
    of_inseq = [each["name"] for each in aggregators["aggregators"] if not each.get("is_unit")]
    assert of_inseq == sorted({*inseq.list_aggregators()} - {"pair"})
    units = [each["name"] for each in aggregators["aggregators"] if each.get("is_unit")]
    assert units == ["words", "lines", "sentences", "paragraphs", "messages", "segments"]
    assert all(entry["description"] for entry in [*methods, *functions, *aggregators["aggregators"]])
    steps = next(method for method in methods if method["name"] == "integrated_gradients")["parameters"][0]
    words = ("title", "description")
    assert {name: value for name, value in steps.items() if name not in words} == {
        "name": "n_steps", "type": "int", "required": False, "default": 50, "multiplies_cost": True,
    }  # fmt: skip
    assert steps["title"] == "Steps"


def test_the_catalogue_names_the_operation_that_inseq_runs(server):
    """Parameters in the catalogue, read without a model, equal those of methods loaded with a model."""
    from attribution.catalogue import inseq_catalogue

    model = inseq.load_model(str(BUNDLED / LOOKUP), "dummy", device="cpu")
    for name, method in inseq_catalogue.methods().items():
        if name in {"reagent", "dummy", "discretized_integrated_gradients", *perturbation.METHODS}:
            continue
        loaded = model.get_attribution_method(name)
        assert loaded.is_final_step_method == method.is_final_step, name
        accepted = inspect.signature(loaded.method.attribute).parameters
        own = inseq_catalogue._parameters(loaded.method.attribute)
        assert own.items() <= method.call_parameters.items()
        assert set(own) <= set(accepted)


def test_models_in_memory_are_told(server, done):
    answer = server.client.get("/attribution/models").json()
    assert set(answer["bundled"]) - {smollm2.NAME} == {LOOKUP, TWO_STEP, PHRASEBOOK}  # `make smollm2` adds one
    (entry,) = [each for each in answer["loaded"] if each["name"] == LOOKUP and each["dtype"] == "float32"]
    assert (entry["class"], entry["device"], entry["is_encoder_decoder"]) == ("GPT2LMHeadModel", "cpu", False)
    assert entry["bytes"] == 282_432 * 4


# Problems


def problem(answer, status):
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["status"] == status
    assert {"type", "title", "detail"} <= body.keys()
    return body


def test_every_error_is_a_problem_document(server):
    client = server.client
    post = lambda content, **headers: client.post(  # noqa: E731
        "/attribution/jobs", content=content, headers={"Content-Type": "application/json"} | headers
    )
    assert problem(client.get("/nowhere"), 404)["type"] == "/problems/not-found"
    assert "allow" in client.put("/attribution/jobs").headers
    problem(client.delete("/attribution/jobs"), 405)
    assert problem(client.get("/attribution/jobs/nope"), 404)["type"] == "/problems/job-not-found"
    assert problem(client.get("/attribution/jobs/nope/results"), 404)["type"] == "/problems/job-not-found"
    assert problem(post("{not json"), 400)["type"] == "/problems/malformed-body"
    assert problem(post('"text"'), 422)["errors"][0]["pointer"] == ""
    assert problem(post(b'{"model": "\\ud800"}'), 422)
    assert problem(post("model=x", **{"Content-Type": "text/plain"}), 415)
    assert problem(post(" " * 5_000_000), 413)["type"] == "/problems/body-too-large"
    assert problem(client.get("/health/live", headers={"Host": "evil.example"}), 400)["type"] == "/problems/wrong-host"
    missing = problem(post("{}"), 422)
    assert {error["pointer"] for error in missing["errors"]} == {"/model", "/method", "/input_text"}


def test_a_body_too_large_is_refused_while_it_is_read(server):
    """A request without Content-Length is refused once its body exceeds the limit."""

    def endless():
        for _ in range(2000):
            yield b" " * 65536

    try:
        answer = server.client.post(
            "/attribution/jobs", content=endless(), headers={"Content-Type": "application/json"}
        )
    except httpx.WriteError:
        return  # the server may close the connection first
    problem(answer, 413)


def test_problem_types_are_described(server):
    for path in ("/attribution/jobs/nope",):
        kind = server.client.get(path).json()["type"]
        described = server.client.get(kind).json()
        assert described["type"] == kind
        assert described["status"] == 404


def test_responses_carry_an_id_and_are_not_sniffed(server):
    answers = [server.client.get("/health/live") for _ in range(2)]
    assert len({answer.headers["x-request-id"] for answer in answers}) == 2
    assert answers[0].headers["x-content-type-options"] == "nosniff"


def test_health(server):
    assert server.client.get("/health/live").json() == {"status": "ok"}
    assert server.client.get("/health/ready").json() == {"status": "ok"}


def test_the_openapi_document_describes_errors_too(server):
    document = server.client.get("/openapi.json").json()
    responses = document["paths"]["/attribution/jobs"]["post"]["responses"]
    assert {"202", "413", "415", "422", "503"} <= responses.keys()
    assert "application/problem+json" in responses["422"]["content"]
    assert "HTTPValidationError" not in json.dumps(document)
    assert "Problem" in document["components"]["schemas"]


def test_no_route_runs_on_the_event_loop():
    """Routes are plain functions, which FastAPI runs in threads, as they use models, the disk and JSON.

    Some are coroutines: a client that waits for a job occupies no thread, slow work runs on threads of its own, and what
    needs no thread answers while all threads are busy.
    """
    coroutines = {get_job, watch_job, submit_job, estimate_job, get_results, compare_jobs, live, describe_problem}
    for route in (*jobs.routes, *results.routes, *catalogue.routes, *meta.routes):
        if route.endpoint not in coroutines:
            assert not inspect.iscoroutinefunction(route.endpoint), route.path


def test_metrics(tmp_path):
    """Metrics count requests by route without ids, jobs by method and model, and jobs in the queue."""

    with in_process(Settings(data_dir=tmp_path)) as client:
        for text in ("hello", "fail"):
            ended(client, client.post("/attribution/jobs", json=body(text)).json()["job_id"])
        until_running(client, client.post("/attribution/jobs", json=body("hold")).json()["job_id"])
        client.post("/attribution/jobs", json=body("hello"))
        client.get("/attribution/jobs/nope")
        client.get("/no/such/page")
        answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    samples = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for metric in text_string_to_metric_families(answer.text)
        for sample in metric.samples
    }
    assert samples["inseq_api_jobs", "pending"] == samples["inseq_api_jobs", "running"] == 1
    assert samples["inseq_api_job_seconds_count", "completed", "m", "saliency"] == 1
    assert samples["inseq_api_job_seconds_count", "failed", "m", "saliency"] == 1
    assert samples["inseq_api_http_requests_total", "/attribution/jobs/{job_id}", "404", "GET"] == 1
    assert samples["inseq_api_http_requests_total", "/attribution/jobs", "202", "POST"] == 4
    assert samples["inseq_api_http_requests_total", "404", "GET", "unmatched"] == 1
    assert samples[("inseq_api_model_cache_bytes",)] == 10
    assert samples[("inseq_api_watchers",)] == 0
    assert samples[("process_resident_memory_bytes",)] > 10**7
