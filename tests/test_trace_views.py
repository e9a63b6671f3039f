"""Traces through stored results over HTTP: numbers from first principles, spans in a query, formats, refusals."""

from __future__ import annotations

import io
import re

import httpx
import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest

from attribution_client import AttributionClient
from tests import chat_models
from tests.conftest import BUNDLED, LOOKUP, PHRASEBOOK, SENTENCE

TEXT = "Anna likes tea. Ben likes milk. Anna likes tea. Ben likes"  # 14 tokens
ANSWER = " milk. Anna likes tea. Ben likes milk"  # 9


@pytest.fixture(scope="module")
def job(server):
    return server.run(model=LOOKUP, method="input_x_gradient", input_text=TEXT, generated_text=TEXT + ANSWER)


def traced(server, job_id, trace, **asked):
    (found,) = server.result(job_id, trace=trace, **asked)["traces"]
    return found


def view(server, job_id, **parameters):
    return server.client.get(f"/attribution/jobs/{job_id}/results", params=parameters)


def total(trace):
    return sum(trace["scores"]) + trace["mass_left"] + trace["elsewhere"]


@pytest.fixture(scope="module")
def plain():
    """The shares [generated, attributed], by autograd on plain Transformers: norms of gradients times embeddings."""
    import torch

    from tests.first_principles import Plain

    model = Plain(BUNDLED / LOOKUP, TEXT, TEXT + ANSWER)
    rows = []
    for step in model.steps:
        embeddings = model.network.get_input_embeddings()(model.target[:, :step]).requires_grad_()
        probability = model.logits(step, embeddings)[0].softmax(-1)[model.target[0, step]]
        (gradient,) = torch.autograd.grad(probability, embeddings)
        sizes = (gradient * embeddings).norm(dim=-1)[0].detach().double().numpy()
        rows.append(np.pad(sizes / sizes.sum(), (0, model.target.shape[1] - step)))
    return np.array(rows), model.first


@pytest.mark.parametrize("hops", [0, 1, 2, 3, "all"])
def test_a_trace_is_the_chain_of_shares_of_plain_transformers(server, job, plain, hops):
    rows, first = plain
    found = traced(server, job, f"{first + 8}:", hops=hops)
    within, onward = rows[:8, first : first + 8], rows[8, first : first + 8]
    expected, reached, left = rows[8, :first].copy(), onward.copy(), onward
    for _ in range(8 if hops == "all" else hops):
        expected += left @ rows[:8, :first]
        left = left @ within
        reached += left
    assert found["scores"] == pytest.approx(expected, abs=2e-6)  # float32 against float32
    assert found["mass_left"] == pytest.approx(left.sum(), abs=2e-6)
    assert found["reasoning_scores"] == pytest.approx(reached, abs=4e-6)
    assert total(found) == pytest.approx(1, abs=1e-9)
    assert [hop["prompt"] for hop in found["hops"]][:1] == [pytest.approx(rows[8, :first].sum(), abs=2e-6)]
    if hops == "all":
        assert found["mass_left"] == 0
        exact = rows[8, :first] + onward @ np.linalg.solve(np.eye(8) - within, rows[:8, :first])
        assert found["scores"] == pytest.approx(exact, abs=2e-6)


def test_each_hop_and_path_says_where_it_comes_from(server, job):
    found = traced(server, job, "text[-1]:milk", decode_tokens=True)
    assert (found["from"], found["mode"]) == ({"name": "milk", "start": 22, "end": 23, "text": " milk"}, "exact")
    assert (found["through"]["start"], found["through"]["end"]) == (14, 22)
    assert [each["position"] for each in found["inputs"]] == list(range(14))
    assert [each["position"] for each in found["generated"]] == list(range(14, 23))
    assert "".join(each["text"] for each in (*found["inputs"], *found["generated"])) == TEXT + ANSWER
    before = 1.0
    for number, hop in enumerate(found["hops"]):
        assert hop["hop"] == number
        assert hop["prompt"] == pytest.approx(sum(hop["scores"]))
        assert hop["reasoning"] == pytest.approx(sum(hop["reasoning_scores"]))
        assert hop["prompt"] + hop["reasoning"] + hop["elsewhere"] == pytest.approx(before, abs=1e-12)
        before = hop["reasoning"]
    by_place = [dict(zip(range(14), each["scores"], strict=True)) for each in found["hops"]]
    for path in found["paths"]:
        first, *way, last = [each["position"] for each in path["tokens"]]
        assert last == 22
        assert all(14 <= each < 22 for each in way)
        assert path["mass"] <= by_place[len(way)][first] + 1e-12
    assert [each["mass"] for each in found["paths"]] == sorted((each["mass"] for each in found["paths"]), reverse=True)


SPANS = {
    "22:23": (22, 23),
    "22:": (22, 23),
    "text[1]:milk": (22, 23),
    "text[-1]: milk": (22, 23),
    "after:likes tea": (19, 23),
    "between:Anna, Ben": (17, 20),
    "characters:32:37": (22, 23),
    '{"between": [".", "."], "occurrence": 0}': (16, 19),
    ":": (14, 23),
}


@pytest.mark.parametrize("written", SPANS)
def test_a_span_is_written_in_a_query(server, job, written):
    found = traced(server, job, written)
    assert (found["from"]["start"], found["from"]["end"]) == SPANS[written]
    assert total(found) == pytest.approx(1, abs=1e-9)


def test_what_is_neither_answer_nor_reasoning_is_reported(server, job, plain):
    rows, first = plain
    found = traced(server, job, "22:23", through="20:22", hops="all")
    others = found["elsewhere_scores"]
    assert others[6:] == [0, 0, 0]
    assert sum(others) == pytest.approx(found["elsewhere"])
    assert found["elsewhere"] > 0.01
    passed = rows[8, first + 6 : first + 8] @ np.linalg.inv(np.eye(2) - rows[6:8, first + 6 : first + 8])
    assert others[:6] == pytest.approx(rows[8, first : first + 6] + passed @ rows[6:8, first : first + 6], abs=2e-6)
    assert total(found) == pytest.approx(1, abs=1e-9)
    assert traced(server, job, "22:23")["elsewhere"] == 0


def test_another_answer_is_another_trace_and_one_of_several_tokens_is_one_thing(server, job, plain):
    rows, first = plain
    one, other = (traced(server, job, each)["scores"] for each in ("22:23", "14:15"))
    assert max(abs(a - b) for a, b in zip(one, other, strict=True)) > 0.01
    # Without reasoning between: the first token, and the second with what it gives to the first.
    both = traced(server, job, "14:16")
    assert both["through"] is None
    assert len(both["hops"]) == 1
    expected = rows[0, :first] * (1 + rows[1, first]) / 2 + rows[1, :first] / 2
    assert both["scores"] == pytest.approx(expected, abs=2e-6)


def test_scores_are_aggregated_before_they_are_shares(server, job):
    dots = traced(server, job, "22:23", aggregator="mean", hops=0)["scores"]
    matrix = server.result(job, aggregator="mean")["sequence_attributions"][0]["target_attributions"]
    column = [abs(row[-1]) for row in matrix[:22]]
    assert dots == pytest.approx([each / sum(column) for each in column[:14]], rel=1e-5)
    merged = server.result(job, aggregator="sentences")["sequence_attributions"][0]
    start = merged["attr_pos_start"]
    found = traced(server, job, f"{len(merged['target']) - 1}:", aggregator="sentences", decode_tokens=True)
    assert len(found["inputs"]) == start
    assert "".join(each["text"] for each in found["inputs"]) == TEXT
    assert total(found) == pytest.approx(1, abs=1e-9)


def test_the_table_has_a_row_for_each_token_of_the_input_and_hop(server, job):
    found = traced(server, job, "22:23", through="20:22", decode_tokens=True)
    asked = {"trace": "22:23", "through": "20:22", "decode_tokens": True}
    table = pyarrow.csv.read_csv(io.BytesIO(view(server, job, format="csv", **asked).content)).to_pylist()
    parquet = pyarrow.parquet.read_table(io.BytesIO(view(server, job, format="parquet", **asked).content))
    assert parquet.to_pylist() == [each | {"text": each["text"]} for each in table]
    inputs = [each for each in table if each["part"] == "input"]
    assert [(each["hop"], each["position"]) for each in inputs] == [
        (hop, position) for hop in range(len(found["hops"])) for position in range(14)
    ]
    assert [each["score"] for each in inputs] == [score for hop in found["hops"] for score in hop["scores"]]
    elsewhere = {each["position"]: each["score"] for each in table if each["part"] == "elsewhere"}
    assert elsewhere == {14 + at: score for at, score in enumerate(found["elsewhere_scores"]) if score}
    assert sum(each["score"] for each in table) == pytest.approx(1, abs=1e-9)
    assert {each["text"] for each in table} >= {"Anna", " milk"}


def test_the_page_shows_answer_reasoning_and_input(server, job):
    asked = {"format": "html", "trace": "22:23", "through": "20:22", "hops": 1}
    answer = view(server, job, **asked)
    found = traced(server, job, "22:23", through="20:22", hops=1)
    html = answer.text
    assert re.findall(r'<h2 class="role">(.*?)</h2>', html) == ["Answer", "Reasoning", "Prompt"]
    assert f"{sum(found['scores']):.1%} of the answer came to the input" in html
    assert f"{found['elsewhere']:.1%} ended on other generated tokens" in html
    assert f"{found['mass_left']:.1%} is left on the reasoning" in html
    best = max(found["scores"])
    assert f'title="{ {0: "Anna"}.get(found["scores"].index(best), "milk") }: {best:.6g}"' in html
    assert "script-src" not in answer.headers["content-security-policy"]
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["etag"] != view(server, job, **asked | {"hops": 2}).headers["etag"]
    assert answer.headers["etag"] != view(server, job, format="html").headers["etag"]


def test_a_trace_of_each_text(server):
    job_id = server.run(
        model=LOOKUP, method="saliency", input_text=[TEXT, "Anna likes tea. Anna likes"],
        generated_text=[TEXT + ANSWER, "Anna likes tea. Anna likes tea. Anna likes tea"],
    )  # fmt: skip
    traces = server.result(job_id, trace="after:likes")["traces"]
    assert [each["sequence"] for each in traces] == [0, 1]
    assert [len(each["inputs"]) for each in traces] == [14, 6]
    assert [total(each) for each in traces] == [pytest.approx(1, abs=1e-9)] * 2
    refused = view(server, job_id, trace="text:milk")
    assert refused.status_code == 422
    assert "trace (text 2): 'milk' does not occur" in refused.json()["detail"]
    (alone,) = server.result(job_id, trace="text[0]:milk", sequence=0)["traces"]
    assert (alone["sequence"], alone["from"]["start"]) == (0, 14)
    (other,) = server.result(job_id, trace="after:likes", sequence=1)["traces"]
    assert other == traces[1]


def test_the_decoder_side_is_traced_to_the_source(server):
    job_id = server.run(model=PHRASEBOOK, method="input_x_gradient", input_text=SENTENCE, attribute_target=True)
    result = server.result(job_id)["sequence_attributions"][0]
    start, end = result["attr_pos_start"], result["attr_pos_end"]
    found = traced(server, job_id, f"{end - 1}:{end}")
    matrix = np.array(
        [*result["source_attributions"], *result["target_attributions"][: end - 1]], float
    )  # null becomes NaN
    sizes = np.nan_to_num(np.abs(matrix)).T
    rows, inputs = sizes / sizes.sum(axis=1, keepdims=True), len(result["source"]) + start
    within = rows[:-1, inputs:]
    exact = rows[-1, :inputs] + rows[-1, inputs:] @ np.linalg.solve(np.eye(len(within)) - within, rows[:-1, :inputs])
    assert found["scores"] == pytest.approx(exact, abs=1e-6)
    assert [each["side"] for each in found["inputs"]] == ["source"] * len(result["source"]) + ["target"] * start
    html = view(server, job_id, trace=f"{end - 1}:{end}", format="html").text
    assert re.findall(r'<h2 class="role">(.*?)</h2>', html) == ["Answer", "Reasoning", "Source", "Target"]
    without = server.run(model=PHRASEBOOK, method="input_x_gradient", input_text=SENTENCE)
    refused = view(server, without, trace=":")
    assert refused.status_code == 422
    assert "attribute_target=true" in refused.json()["detail"]


def test_a_comparison_is_traced_by_one_method(server):
    job_id = server.run(
        model=LOOKUP, methods=["saliency", "input_x_gradient"], input_text=TEXT, generated_text=TEXT + ANSWER
    )
    refused = view(server, job_id, trace="22:23")
    assert refused.status_code == 422
    assert refused.json()["detail"] == ("A trace is of one method: say which with method=saliency|input_x_gradient.")
    found = {each: traced(server, job_id, "22:23", method=each) for each in ("saliency", "input_x_gradient")}
    assert found["saliency"]["scores"] != found["input_x_gradient"]["scores"]


def test_tokens_of_the_template_get_no_share_if_asked(server, model_dir):
    if not (folder := model_dir / "chat-qwen2").exists():
        chat_models.build("chat-qwen2", folder)
    job_id = server.run(
        model="chat-qwen2", method="saliency", messages=[{"role": "user", "content": "The quick brown fox."}],
        generated_text=" The fox jumps over the dog.",
    )  # fmt: skip
    all_of_it, kept = (traced(server, job_id, "after:jumps", without_template=each) for each in (False, True))
    marks = [bool(each.get("template") or each.get("special")) for each in kept["inputs"]]
    assert (all_of_it["dropped"], kept["dropped"]) == (None, sum(marks))
    assert any(marks)
    assert {score for score, mark in zip(kept["scores"], marks, strict=True) if mark} == {0}
    assert min(score for score, mark in zip(all_of_it["scores"], marks, strict=True) if mark) > 0
    assert total(kept) == pytest.approx(1, abs=1e-9)
    html = view(server, job_id, trace="after:jumps", without_template=True, format="html").text
    assert f"{sum(marks)} special and template tokens got no share." in html
    assert re.findall(r'<h2 class="role">(.*?)</h2>', html) == ["Answer", "Reasoning", "user", "assistant"]


REFUSED = {
    "trace=zzz": "This job has no span 'zzz' (it has: none). Give positions",
    "trace=": "trace: is empty",
    "trace=between:milk": "trace: is not complete",
    "trace={": "trace: is no JSON",
    'trace={"txt": "a"}': "trace",
    "trace=text:rice": "trace: 'rice' does not occur in the generated text",
    "trace=0:2": "trace has the positions 0 to 2, and those of the generated text are 14 to 23.",
    "trace=22:23&through=20:23": "must end before trace begins, at 22",
    "trace=22:23&through=rest": "no span 'rest'",
    "trace=22:23&hops=-1": "hops: Input should be greater than or equal to 0",
    "trace=22:23&hops=some": "hops: Input should be",
    "trace=22:23&granular=true": "granular does not apply to a trace",
    "trace=22:23&normalize=false": "normalize does not apply to a trace",
    "trace=22:23&format=inseq": "A trace can be had as json, html, csv or parquet",
    "trace=22:23&format=html&style=inseq": "style does not apply to a trace",
    "trace=22:23&format=csv&table=step_scores": "table does not apply to a trace",
    "trace=22:23&sequence=1": "There is no text 1: this result has 1",
    "through=20:22": "through is for a trace",
    "hops=2": "hops is for a trace",
    "trace=22:23&aggregator=nothing": "There is no aggregator 'nothing'",
}


@pytest.mark.parametrize("query", REFUSED)
def test_what_cannot_be_traced_is_refused_with_advice(server, job, query):
    answer = server.client.get(f"/attribution/jobs/{job}/results?{query}")
    assert answer.status_code == 422, answer.text
    assert REFUSED[query] in answer.json()["detail"]


def test_a_refusal_names_the_parameter(server, job):
    for query, parameter in (("trace=text:rice", "trace"), ("trace=22:23&hops=-1", "hops"),
                             ("trace=22:23&through=21:23", "through"), ("trace=x", "trace")):  # fmt: skip
        errors = server.client.get(f"/attribution/jobs/{job}/results?{query}").json()["errors"]
        assert [each["parameter"] for each in errors] == [parameter]


def test_step_scores_alone_and_a_text_without_scores_cannot_be_traced(server):
    job_id = server.run(model=LOOKUP, method="dummy", input_text=TEXT, step_scores=["probability"])
    refused = view(server, job_id, trace=":")
    assert refused.status_code == 422
    assert "step scores only" in refused.json()["detail"]


def test_a_link_and_an_etag_serve_traces_too(server, job):
    with AttributionClient(server.url) as client:
        made = client.share(job)
    for view_format in ("json", "csv", "html"):
        query = {"trace": "22:23", "format": view_format}
        shown, owned = httpx.get(f"{made.url}/results", params=query), view(server, job, **query)
        assert (shown.status_code, shown.content) == (200, owned.content)
    again = server.client.get(
        f"/attribution/jobs/{job}/results", params=query, headers={"If-None-Match": owned.headers["etag"]}
    )
    assert again.status_code == 304


def test_a_name_is_that_of_one_of_the_requests_spans():
    from types import SimpleNamespace

    from api.span_names import with_named_spans
    from attribution_schema.spans import Span
    from models import TraceOptions

    request = SimpleNamespace(spans=[Span(name="answer", after="</think>"), Span(name="thought", start=3)])
    asked = with_named_spans(TraceOptions(trace="answer", through="thought"), request)
    assert (asked.trace.after, asked.through.start) == ("</think>", 3)


def test_a_job_of_spans_has_no_exact_trace(server):
    body = {"model": LOOKUP, "method": "input_x_gradient", "input_text": "Anna likes tea. Anna likes"}
    body |= {"generated_text": "Anna likes tea. Anna likes tea.", "spans": [{"name": "answer", "text": " tea"}]}
    refused = server.client.get(f"/attribution/jobs/{server.run(**body)}/results", params={"trace": "answer"})
    assert refused.status_code == 422
    assert '"mode": "exact"' in refused.json()["detail"]
    tokens = server.run(**body, trace={"from": "answer"})  # the spans are names
    (traced,) = server.client.get(f"/attribution/jobs/{tokens}/results", params={"trace": "answer"}).json()["traces"]
    assert (traced["from"]["name"], traced["from"]["start"], traced["from"]["end"]) == ("answer", 6, 7)
    assert sum(traced["scores"]) == pytest.approx(1, abs=1e-9)
