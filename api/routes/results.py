"""The route of a result: which view is asked for, in which encoding, and whether the client has it already.

What a view is made of is `attribution`'s to know; here is HTTP's side of it.
"""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal
from urllib.request import parse_http_list

import mimeparse
from fastapi import APIRouter, Query, Request, Response

from api.dependencies import EngineDep, ManagerDep, OwnerDep, StoreDep
from api.documents import json_object, names
from api.engine_protocol import AttributionEngineProtocol
from api.problem_responses import problem_responses
from api.result_parts import Contents, contents
from models import AttributionResult, ComparisonResult
from problems import (
    InvalidRequest,
    JobNotFound,
    NoResult,
    NotAcceptable,
    ResultDamaged,
    ResultExpired,
    ResultNotReady,
    Unauthorized,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from attribution.results.stored_form import ViewOptions

results = APIRouter(
    prefix="/attribution", tags=["attribution"], responses=problem_responses(InvalidRequest, Unauthorized)
)

View = Literal["json", "html", "csv", "parquet", "inseq"]


@dataclass(frozen=True)
class _Kind:
    """How a view is sent."""

    media_type: str
    file: str  # what a saved file's name ends with
    is_page: bool = False  # shown by a browser rather than saved
    is_compressed: bool = False  # as it is


# In this order where a client takes several equally well.
_KINDS: dict[View, _Kind] = {
    "json": _Kind("application/json", "json", is_page=True),
    "html": _Kind("text/html", "html", is_page=True),
    "csv": _Kind("text/csv", "csv"),
    "parquet": _Kind("application/vnd.apache.parquet", "parquet", is_compressed=True),
    "inseq": _Kind("application/json", "inseq.json"),
}
_NEGOTIABLE: dict[str, View] = {_KINDS[view].media_type: view for view in _KINDS if view != "inseq"}


@results.get(
    "/jobs/{job_id}/results",
    responses={
        200: {
            "model": AttributionResult | ComparisonResult,
            "description": "The result in the asked view",
            "content": {media_type: {} for media_type in _NEGOTIABLE},
        },
        304: {"description": "Not modified"},
        **problem_responses(
            JobNotFound, NotAcceptable, ResultNotReady, NoResult, ResultExpired, ResultDamaged, InvalidRequest
        ),
    },
    response_class=Response,
)
def get_results(
    job_id: str,
    request: Request,
    manager: ManagerDep,
    engine: EngineDep,
    store: StoreDep,
    owner: OwnerDep,
    view: Annotated[
        View | None,
        Query(
            alias="format",
            description="`json` (default), `html`: a heatmap, `csv` or `parquet`: a tidy table, `inseq`: a file for "
            "`inseq.FeatureAttributionOutput.load`. Without it, the `Accept` header says.",
        ),
    ] = None,
    aggregator: Annotated[
        str | None, Query(description="Inseq's aggregators in order, e.g. `subwords,scores`.")
    ] = None,
    aggregate_fn: Annotated[
        str | None, Query(description="A function for each aggregator, e.g. `absmax,vnorm`; empty for its default.")
    ] = None,
    aggregator_args: Annotated[str | None, Query(description="Arguments of the aggregators, as a JSON object.")] = None,
    normalize: Annotated[bool | None, Query(description="Whether scores sum to 1 over the attributed tokens.")] = None,
    granular: Annotated[bool, Query(description="The scores as they were computed, not aggregated.")] = False,
    decode_tokens: Annotated[
        bool, Query(description="Each token as people read it (`text`) beside the raw one.")
    ] = False,
    table: Annotated[
        Literal["attributions", "step_scores"] | None,
        Query(description="Which table `csv` and `parquet` have; `attributions` by default."),
    ] = None,
    style: Annotated[
        Literal["heatmap", "inseq"] | None,
        Query(description="Of `html`: our `heatmap`, or what `inseq`'s own `show` makes."),
    ] = None,
    method: Annotated[str | None, Query(description="Of a comparison: the method whose result is asked for.")] = None,
    partial: Annotated[
        bool, Query(description="The tokens that are done, of a job that runs, failed or was cancelled.")
    ] = False,
) -> Response:
    """The result of a completed job, in the view that `format` or the `Accept` header asks for.

    With `partial` also of a job that is running, or failed or was cancelled on its way.
    """
    found = contents(manager.get(job_id, owner), manager, store, method=method, partial=partial)
    from attribution.results.stored_form import ViewOptions

    accept = request.headers.get("Accept", "*/*")
    if view is None:
        # A browser, which takes anything, gets of a comparison what there is of all its methods.
        view = "json" if found.is_joint and "*/*" in accept else _accepted(accept)
    options = ViewOptions(
        aggregators=names(aggregator),
        aggregate_fn=tuple(name or None for name in aggregate_fn.split(",")) if aggregate_fn is not None else (),
        aggregator_args=json_object(aggregator_args),
        normalize=normalize,
        granular=granular,
        decode_tokens=decode_tokens,
        table=table or "attributions",
        style=style or "heatmap",
    )
    options.check()
    _check_fits(view, options, has_table=table is not None, has_style=style is not None)
    if found.is_joint and view != "json":
        raise InvalidRequest(f"This job compares methods: say whose {view} with method={'|'.join(found.raw)}.")
    stored = options.is_default and view == "json"
    basis = found.summary.sha256 if stored else "".join(each.sha256 for each in found.raw.values())
    # The policy holds the hash of the page's style, so that a page of another version of it is another page.
    policy = engine.page_policy(options) if view == "html" else ""
    etag = f'W/"{hashlib.sha256(f"{basis} {view} {options} {policy}".encode()).hexdigest()[:32]}"'
    headers = {"ETag": etag, "Vary": "Accept, Accept-Encoding", "Cache-Control": "private, no-cache"}
    if etag in {each.strip() for each in request.headers.get("If-None-Match", "").split(",")}:
        return Response(status_code=304, headers=headers)
    kind = _KINDS[view]
    if not kind.is_page:
        headers["Content-Disposition"] = f'attachment; filename="{job_id}.{kind.file}"'
    if policy:
        headers["Content-Security-Policy"] = policy
    zipped = found.summary.read() if stored else None
    content = None if zipped is not None else _made(engine, found, view, options)
    if "gzip" in request.headers.get("Accept-Encoding", "") and not kind.is_compressed:
        headers["Content-Encoding"] = "gzip"
        body = zipped if zipped is not None else gzip.compress(content or b"", 5, mtime=0)
    else:
        body = gzip.decompress(zipped) if zipped is not None else content or b""
    return Response(body, media_type=kind.media_type, headers=headers)


def _made(engine: AttributionEngineProtocol, found: Contents, view: View, options: ViewOptions) -> bytes:
    """A view that is not stored."""
    raw = {name: each.read() for name, each in found.raw.items()}
    if found.is_joint:
        return engine.comparison(raw, options)
    (one,) = raw.values()
    return engine.view(one, view, options)


def _accepted(header: str) -> View:
    """The view that an `Accept` header prefers (RFC 9110, section 12.5.1). Raises `NotAcceptable`."""
    ranges = list(_media_ranges(header))
    # The most specific range says how well a type is liked; of those liked equally well, the first of ours is sent.
    quality = {media_type: mimeparse.quality_parsed(media_type, ranges) for media_type in _NEGOTIABLE}
    best = max(quality, key=quality.__getitem__)
    if not quality[best]:
        raise NotAcceptable(
            f"A result can be had as {', '.join(_NEGOTIABLE)}: accept one of them, or say which with "
            f"?format={'|'.join(_KINDS)}."
        )
    return _NEGOTIABLE[best]


def _media_ranges(header: str) -> Iterator[tuple[str, str, dict[str, float | str]]]:
    """The members of an `Accept` header that can be read: type, subtype and parameters, of which `q` is a number."""
    for member in parse_http_list(header.lower()):  # media types are the same in every case
        try:
            main, sub, parameters = mimeparse.parse_mime_type(member)
            quality = float(parameters.get("q", 1))
        except ValueError:
            continue
        if 0 <= quality <= 1:
            yield main, sub, parameters | {"q": quality}


def _check_fits(view: View, options: ViewOptions, *, has_table: bool, has_style: bool) -> None:
    """Raise `InvalidRequest` for an option that this view would have to ignore."""
    wrong = {
        "table": has_table and view not in {"csv", "parquet"} and "csv and parquet",
        "style": has_style and view != "html" and "html",
        "granular": options.granular and view == "html" and "json, csv, parquet and inseq",
        "decode_tokens": options.decode_tokens
        and (view == "inseq" or options.style == "inseq")
        and "json, csv, parquet and the html heatmap",
        "normalize": options.normalize is not None
        and view == "inseq"
        and not options.aggregators
        and "json, csv, parquet and html, and for inseq with an aggregator, because its scores are raw otherwise",
    }
    for name, where in wrong.items():
        if where:
            raise InvalidRequest(f"{name} does not apply to this view ({view}). It is for {where}.")
