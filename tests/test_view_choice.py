"""Which view of a result is sent: the `Accept` header, `format`, parameters that fit the view, and caching."""

from __future__ import annotations

import pytest

from tests.conftest import LOOKUP, PROMPT

HTML, CSV, PARQUET, JSON = "text/html", "text/csv", "application/vnd.apache.parquet", "application/json"


@pytest.fixture(scope="module")
def one(server):
    """The id of a completed job."""
    return server.run(model=LOOKUP, method="saliency", input_text=PROMPT, step_scores=["probability"])


def view(server, job_id, accept=None, **parameters):
    headers = {"Accept": accept} if accept else {}
    return server.client.get(f"/attribution/jobs/{job_id}/results", params=parameters, headers=headers)


NEGOTIATED = {
    "*/*": JSON,
    JSON: JSON,
    HTML: HTML,
    CSV: CSV,
    PARQUET: PARQUET,
    "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8": HTML,  # a browser
    "text/csv;q=0.5, application/json;q=0.4": CSV,
    "text/*": HTML,
    "application/json;q=0, */*": HTML,
    "text/csv; header=present": CSV,
    "application/json; charset=utf-8, */*;q=0.1": JSON,
    "text/html;q=0.1, */*;q=0.8": JSON,  # the most specific range determines the quality of a type
    "text/csv;q=0.7, text/*;q=0.9, text/html;q=0.5": CSV,
    "TEXT/CSV": CSV,
    "*;q=0.2, text/csv;q=0.1": JSON,  # some clients write * for */*
    # Types of equal quality, whatever the ranges: the server chooses.
    "text/html, */*": JSON,
    "text/csv;q=0.5, text/html;q=0.5": HTML,
    # Invalid parts are ignored, and the rest is used.
    "application/json, garbage": JSON,
    "garbage, */*": JSON,
    ";q=0.5, application/json": JSON,
    "application/json/x, */*": JSON,
    ", text/csv,": CSV,
    "text/html;q=abc, text/csv;q=0.1": CSV,
    "text/html;q=-1, text/csv;q=0.1": CSV,
    "text/html;q=1.5, text/csv;q=0.1": CSV,
    "text/html;q=nan, text/csv;q=0.1": CSV,
    "text/html;q=, text/csv;q=0.1": CSV,
    # Commas, semicolons and escaped quotes within quotes are text.
    'application/json;profile="x,y", text/csv;q=0.1': JSON,
    'text/html;profile="a, text/csv;b=1";q=0.1, application/json;q=0.2': JSON,
    'text/html;profile="\\",text/csv";q=0.3, application/json;q=0.2': HTML,
}


@pytest.mark.parametrize("accept", NEGOTIATED)
def test_the_accept_header_says_which_view(server, one, accept):
    answer = view(server, one, accept)
    assert answer.status_code == 200
    assert answer.headers["content-type"].split(";")[0] == NEGOTIATED[accept]
    assert {each.strip() for each in answer.headers["vary"].split(",")} == {"Accept", "Accept-Encoding"}


@pytest.mark.parametrize("accept", ["image/png, application/pdf", "garbage", "application/json;q=0", "text/csv;q=abc"])
def test_no_view_that_is_accepted_is_told(server, one, accept):
    answer = view(server, one, accept)
    assert answer.status_code == 406
    assert answer.json()["type"] == "/problems/not-acceptable"
    assert "text/html" in answer.json()["detail"]


def test_format_wins_over_the_accept_header(server, one):
    answer = view(server, one, HTML, format="csv")
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.headers["content-disposition"] == f'attachment; filename="{one}.csv"'


MISFITS = {
    "table=step_scores": "table does not apply to this view (json). It is for csv and parquet.",
    "format=html&table=attributions": "table does not apply to this view (html)",
    "format=csv&style=heatmap": "style does not apply to this view (csv)",
    "format=html&granular=true": "granular does not apply to this view (html)",
    "format=inseq&decode_tokens=true": "decode_tokens does not apply to this view (inseq)",
    "format=html&style=inseq&decode_tokens=true": "decode_tokens does not apply",
    "format=inseq&normalize=false": "for inseq with an aggregator",
    "format=csv&table=nonsense": "table",
    "format=html&style=pretty": "style",
}


@pytest.mark.parametrize("query", MISFITS)
def test_a_parameter_of_another_view_is_told(server, one, query):
    answer = server.client.get(f"/attribution/jobs/{one}/results?{query}")
    assert answer.status_code == 422
    assert MISFITS[query] in answer.json()["detail"]


def test_an_error_in_a_query_names_its_parameter(server, one):
    answer = view(server, one, aggregator="spans", aggregator_args="[1]")
    assert answer.status_code == 422
    assert [(error["parameter"], error["detail"]) for error in answer.json()["errors"]] == [
        ("aggregator_args", 'must be a JSON object, such as {"source_spans": [[0, 2]]}.')
    ]


def test_the_openapi_document_has_the_options_as_texts_and_flags(server):
    parameters = {
        each["name"]: each["schema"]
        for each in server.client.get("/openapi.json").json()["paths"]["/attribution/jobs/{job_id}/results"]["get"][
            "parameters"
        ]
        if each["in"] == "query"
    }
    assert set(parameters) == {"format", "method", "partial", "aggregator", "aggregate_fn", "aggregator_args", "normalize",
                               "granular", "decode_tokens", "table", "style", "escape_formulas",
                               "trace", "through", "hops", "without_template", "sequence"}  # fmt: skip
    assert {name for name, schema in parameters.items() if schema.get("type") == "string" and "enum" not in schema} == {
        "aggregator", "aggregate_fn", "aggregator_args"
    }  # fmt: skip


@pytest.mark.parametrize("name", ["html", "csv", "parquet"])
def test_views_are_cached_and_compressed(server, one, name):
    url = f"/attribution/jobs/{one}/results?format={name}"
    plain = server.client.get(url, headers={"Accept-Encoding": "identity"})
    zipped = server.client.get(url, headers={"Accept-Encoding": "gzip"})
    assert plain.content == zipped.content
    # Parquet files are already compressed.
    assert zipped.headers.get("content-encoding") == (None if name == "parquet" else "gzip")
    again = server.client.get(url, headers={"If-None-Match": plain.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    other = server.client.get(url + "&aggregator=sum", headers={"If-None-Match": plain.headers["etag"]})
    assert other.status_code == 200
    assert other.content != plain.content
