"""The formats of a result: media types, which of them an `Accept` header prefers, and the options that each takes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal
from urllib.request import parse_http_list

import mimeparse

from models import TraceOptions, ViewOptions
from problems import InvalidRequest, NotAcceptable

Format = Literal["json", "html", "csv", "parquet", "inseq"]


@dataclass(frozen=True)
class _Sent:
    """How a format is sent."""

    media_type: str
    suffix: str  # of the saved file's name
    is_page: bool = False  # a browser shows it instead of saving it
    is_compressed: bool = False  # compressed already, so that gzip gains nothing


# In the order of preference where a client accepts several equally well.
SENT: dict[Format, _Sent] = {
    "json": _Sent("application/json", "json", is_page=True),
    "html": _Sent("text/html", "html", is_page=True),
    "csv": _Sent("text/csv", "csv"),
    "parquet": _Sent("application/vnd.apache.parquet", "parquet", is_compressed=True),
    "inseq": _Sent("application/json", "inseq.json"),
}
NEGOTIABLE: dict[str, Format] = {SENT[name].media_type: name for name in SENT if name != "inseq"}  # by media type


def accepted_format(header: str) -> Format:
    """Return the format that an `Accept` header prefers (RFC 9110, section 12.5.1). Raises `NotAcceptable`."""
    ranges = list(_media_ranges(header))
    # The most specific range decides the quality of a media type; of equal qualities, `max` takes our first.
    quality = {media_type: mimeparse.quality_parsed(media_type, ranges) for media_type in NEGOTIABLE}
    best = max(quality, key=quality.__getitem__)
    if not quality[best]:
        raise NotAcceptable(
            f"A result can be had as {', '.join(NEGOTIABLE)}: accept one of them, or say which with "
            f"?format={'|'.join(SENT)}."
        )
    return NEGOTIABLE[best]


def accepts_gzip(header: str) -> bool:
    """Return whether an `Accept-Encoding` header accepts gzip (RFC 9110, section 12.5.3)."""
    qualities: dict[str, float] = {}
    for member in header.lower().split(","):
        coding, _, weight = member.partition(";")
        found = re.fullmatch(r"\s*q\s*=\s*(\d(?:\.\d*)?)\s*", weight)
        qualities[coding.strip()] = float(found.group(1)) if found else 1.0
    gzip_quality = qualities.get("gzip", qualities.get("x-gzip", qualities.get("*", 0.0)))
    return gzip_quality > 0 and gzip_quality >= qualities.get("identity", 0.0)


def is_current(etag: str, header: str) -> bool:
    """Return whether an `If-None-Match` header has this ETag, compared weakly (RFC 9110, section 13.1.2), or is `*`."""
    return header.strip() == "*" or etag.removeprefix("W/") in {
        each.strip().removeprefix("W/") for each in header.split(",")
    }


def _media_ranges(header: str) -> Iterator[tuple[str, str, dict[str, float | str]]]:
    """Yield the readable members of an `Accept` header: type, subtype and parameters, of which `q` is a number."""
    for member in parse_http_list(header.lower()):  # media types ignore case
        try:
            main, sub, parameters = mimeparse.parse_mime_type(member)
            quality = float(parameters.get("q", 1))
        except ValueError:
            continue
        if 0 <= quality <= 1:
            yield main, sub, parameters | {"q": quality}


def check_fits(view: Format, options: ViewOptions, asked: TraceOptions) -> None:
    """Raise `InvalidRequest` for an option that this format, or a trace in it, would have to ignore."""
    given = options.model_fields_set
    if asked.trace is not None:
        _check_fits_trace(view, options)
    elif unused := asked.model_fields_set & {"through", "hops", "without_template", "sequence"}:
        raise InvalidRequest(f"{min(unused)} is for a trace: say with trace=... which span it begins at.")
    wrong = {
        "table": "table" in given and view not in {"csv", "parquet"} and "csv and parquet",
        "escape_formulas": options.escape_formulas and view != "csv" and "csv",
        "style": "style" in given and view != "html" and "html",
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


def _check_fits_trace(view: Format, options: ViewOptions) -> None:
    """Raise `InvalidRequest` for a format that a trace does not have, and for an option that it would ignore."""
    if view == "inseq":
        raise InvalidRequest("A trace can be had as json, html, csv or parquet: Inseq has no file for it.")
    for name in ("granular", "table", "style"):
        if name in options.model_fields_set and getattr(options, name) is not False:
            raise InvalidRequest(f"{name} does not apply to a trace: leave it out.")
    if options.normalize is not None:
        raise InvalidRequest("normalize does not apply to a trace, whose shares always sum to 1: leave it out.")
