"""Fuzzing over HTTP: no request causes a 5xx, and every error is a problem document.

schemathesis makes requests from the served OpenAPI document; Hypothesis makes bodies with a few wrong fields.
"""

from __future__ import annotations

import json

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.specs.openapi.checks import positive_data_acceptance

from models import Problem
from tests.conftest import LOOKUP
from tests.serving import Server


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    with Server(tmp_path_factory.mktemp("fuzz"), module="tests.checking_engine") as server:
        yield server


@pytest.fixture(scope="module")
def schema(app):
    return schemathesis.openapi.from_url(f"{app.url}/openapi.json")


def test_the_api_keeps_to_its_own_document(schema):
    """Responses have the statuses, media types, headers and bodies of the OpenAPI document (schemathesis' checks).

    Listings, catalogues and health also accept every request that the document allows.
    """
    operations = [result.ok() for result in schema.get_all_operations()]
    # An event stream does not end before its job.
    tried = {operation.label: try_out(operation) for operation in operations if not operation.path.endswith("/events")}
    assert len(tried) > 12
    for path in ("/attribution/jobs", "/attribution/methods", "/attribution/models", "/health/ready"):
        assert tried[f"GET {path}"], path


def try_out(operation):
    """Make requests to one operation; returns how many of them had to be accepted."""
    reads_only = operation.method == "get" and "{" not in operation.path
    accepted = []

    @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
    @given(operation.as_strategy())
    def keeps_to_it(case):
        # The schema cannot describe the arguments of each method and model, so a valid body may get a 422. Nor can it
        # describe valid cursors, which come from the previous page.
        is_open = reads_only and "cursor" not in (case.query or {})
        case.call_and_validate(excluded_checks=[] if is_open else [positive_data_acceptance])
        if is_open:
            accepted.append(case)

    keeps_to_it()
    return len(accepted)


texts = st.text(max_size=20) | st.sampled_from(["\x00", "\u202e<script>", "\U0001d54f" * 10, "a" * 5000, "\ud800"])
numbers = st.integers() | st.floats() | st.sampled_from([1e308, -1e-308, 2**63, 10**400])
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=20,
)
FIELDS = sorted(
    {"model", "method", "input_text", "generated_text", "messages", "step_scores", "attributed_fn", "attribution_args",
     "attributed_fn_args", "step_scores_args", "generation_args", "tokenizer_args", "chat_template_args", "n_steps",
     "attr_pos_start", "attr_pos_end", "dtype", "seed", "tags", "timeout_seconds", "priority", "corrections", "nonsense"}
)  # fmt: skip
bodies = st.builds(
    lambda changes: {"model": LOOKUP, "method": "saliency", "input_text": "Anna likes tea."} | changes,
    st.dictionaries(st.sampled_from(FIELDS), values, max_size=3),
)


def check(answer):
    assert answer.status_code < 500, (answer.request.content, answer.text)
    if answer.status_code >= 400:
        assert answer.headers["content-type"] == "application/problem+json"
        problem = Problem.model_validate_json(answer.content)
        assert problem.status == answer.status_code
        assert problem.detail


@settings(max_examples=400, deadline=None)
@given(bodies)
def test_bodies_that_are_nearly_right(app, body):
    content = json.dumps(body).encode("utf-8", "surrogatepass")
    for path in ("jobs", "estimate"):
        check(app.client.post(f"/attribution/{path}", content=content, headers={"Content-Type": "application/json"}))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_bodies_that_are_no_json(app, content):
    check(app.client.post("/attribution/jobs", content=content, headers={"Content-Type": "application/json"}))


def test_deep_nesting_is_no_way_in(app):
    for content in ("[" * 100_000, '{"a":' * 50_000 + "1" + "}" * 50_000):
        answer = app.client.post("/attribution/jobs", content=content, headers={"Content-Type": "application/json"})
        check(answer)
        assert answer.status_code in {400, 422}
