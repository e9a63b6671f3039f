"""The keywords of the client are the request's fields and the view's options: for type checkers, notebooks and typos."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from enum import Enum
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

import pytest
from IPython.core.completer import IPCompleter, provisionalcompleter
from pydantic import BaseModel

from api.routes.results import get_results
from attribution_client import AsyncAttributionClient, AttributionClient
from attribution_client.keywords import FileFields, RequestFields, ViewFields
from models import AttributionRequest, TraceOptions, ViewOptions
from tests.conftest import LOOKUP, PROMPT


def plain(hint: Any) -> Any:  # noqa: PLR0911 - a case for each kind of type
    """A type without constraints and names: unions as sets, models and typed dictionaries as dictionaries of fields.

    A list of several types is compared as if it were a list of either.
    """
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return plain(inner[0])
    if origin in {Union, UnionType}:
        return union(map(plain, inner))
    if origin is Literal:
        return union(inner)
    if origin is tuple:  # of two of a kind; JSON has lists alone
        return frozenset({("list", *set(map(plain, inner)))})
    if origin in {list, Sequence}:
        members = plain(inner[0])
        return union(("list", each) for each in (members if isinstance(members, frozenset) else [members]))
    if origin in {dict, tuple}:
        return (origin.__name__, *map(plain, inner))
    if isinstance(hint, type) and issubclass(hint, Enum):
        return union(each.value for each in hint)
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        return members_of({each.alias or name: each.annotation for name, each in hint.model_fields.items()})
    return members_of(get_type_hints(hint)) if is_typeddict(hint) else hint


def union(members: Any) -> frozenset[Any]:
    return frozenset(part for each in members for part in (each if isinstance(each, frozenset) else [each]))


def members_of(hints: dict[str, Any]) -> frozenset[Any]:
    return frozenset({("fields", frozenset((name, plain(each)) for name, each in hints.items()))})


def typed_dict(keywords: type) -> dict[str, Any]:
    return {name: plain(hint) for name, hint in get_type_hints(keywords).items()}


def test_the_fields_are_those_of_a_request():
    theirs = {name: plain(each.annotation) for name, each in AttributionRequest.model_fields.items()}
    assert typed_dict(RequestFields) == theirs


def test_the_options_are_those_of_a_view():
    route = get_type_hints(get_results)
    beside = route.keys() - {"job_id", "request", "services", "owner", "options", "asked", "view", "return"}
    theirs = {each.alias or name: plain(each.annotation) for name, each in ViewOptions.model_fields.items()}
    theirs |= {name: plain(route[name]) for name in beside}
    ours = typed_dict(ViewFields)
    assert ours.keys() == theirs.keys()
    # Tuples in the server; in the client a list, or the names joined by commas.
    assert {name for name in ours if ours[name] != theirs[name]} == {"aggregator", "aggregate_fn"}
    assert ours["aggregator"] == {str, ("list", str)}
    of_traces = {name: plain(each.annotation) for name, each in TraceOptions.model_fields.items()}
    beside_views = {name: kind for name, kind in typed_dict(FileFields).items() if name not in ours}
    assert beside_views.keys() == of_traces.keys()
    # Spans are texts in a query; in the client also pairs and dictionaries.
    assert {name for name in of_traces if beside_views[name] != of_traces[name]} == {"trace", "through"}


CALLS = {
    "a field of attribute": lambda client: client.attribute(LOOKUP, "saliency", PROMPT, step_score=["probability"]),
    "a field of compare": lambda client: client.compare(
        LOOKUP, ["lime", "saliency"], PROMPT, step_score=["probability"]
    ),
    "a field of submit": lambda client: client.submit(model=LOOKUP, method="saliency", step_score=["probability"]),
    "a field of estimate": lambda client: client.estimate(model=LOOKUP, method="saliency", step_score=["probability"]),
    "an option of attribute": lambda client: client.attribute(LOOKUP, "saliency", PROMPT, view={"aggregators": "sum"}),
    "an option of compare": lambda client: client.compare(
        LOOKUP, ["lime", "saliency"], PROMPT, view={"aggregators": "sum"}
    ),
    "an option of results": lambda client: client.results("job", aggregators="sum"),
    "an option of comparison": lambda client: client.comparison("job", aggregators="sum"),
    "an option of view": lambda client: client.view("job", "csv", aggregators="sum"),
    "an option of to_frame": lambda client: client.to_frame("job", aggregators="sum"),
    "an option of to_inseq": lambda client: client.to_inseq("job", aggregators="sum"),
}


@pytest.mark.parametrize("name", CALLS)
def test_an_unknown_keyword_is_refused_before_anything_is_sent(name):
    nobody = {"server": "http://127.0.0.1:9", "retry_seconds": 0}  # a request would raise ServerUnreachable
    meant = "'step_scores'" if "field" in name else "'aggregator'"

    async def awaited():
        async with AsyncAttributionClient(**nobody) as client:
            await CALLS[name](client)

    with AttributionClient(**nobody) as client, pytest.raises(TypeError, match=rf"did you mean {meant}\?"):
        CALLS[name](client)
    with pytest.raises(TypeError, match=rf"did you mean {meant}\?"):
        asyncio.run(awaited())


def test_a_keyword_that_is_like_none_is_answered_with_all():
    with AttributionClient("http://127.0.0.1:9") as client, pytest.raises(TypeError, match=r"There are: .*seed.*model"):
        client.submit(zzz=1)


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("client.attribute('m', 'saliency', 'x', step", {"step_scores=", "step_scores_args="}),
        ("client.submit(tim", {"timeout_seconds="}),
        ("client.results('job', norm", {"normalize="}),
        ("many.compare('m', [], 'x', gen", {"generated_text=", "generated_ids=", "generation_args="}),
    ],
)
def test_a_notebook_completes_keywords(typed, completed):
    with AttributionClient() as client:
        shell = IPCompleter(namespace={"client": client, "many": AsyncAttributionClient()})
        with provisionalcompleter():
            found = {each.text for each in shell.completions(typed, len(typed))}
    assert {each for each in found if each.endswith("=")} == completed


if TYPE_CHECKING:
    # mypy reads this: an error that it does not find makes its `ignore` one too many, which is an error too.
    async def keywords_are_checked(client: AttributionClient, many: AsyncAttributionClient) -> None:
        client.attribute("m", "saliency", "x", step_scores=["probability"], n_steps="auto", view={"normalize": False})
        client.attribute("m", "saliency", messages=[{"role": "user", "content": "Why?"}], engine="inseq")
        client.submit(model="m", method="lime", messages=[[{"role": "user", "content": "a"}], [{"role": "user"}]])
        client.attribute("m", "saliency", "x", step_score=["probability"])  # type: ignore[call-arg]
        client.attribute("m", "saliency", "x", seed="3")  # type: ignore[arg-type]
        client.attribute("m", "saliency", "x", dtype="float8")  # type: ignore[arg-type]
        client.attribute("m", "saliency", "x", view={"aggregators": "sum"})  # type: ignore[arg-type]
        client.submit(model="m", metod="saliency")  # type: ignore[call-arg]
        client.results("job", normalise=True)  # type: ignore[call-arg]
        await many.submit(model="m", metod="saliency")  # type: ignore[call-arg]
        await many.to_frame("job", table="step_score")  # type: ignore[arg-type]
