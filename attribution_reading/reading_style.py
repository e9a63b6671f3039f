"""The style sheet of coloured text, bars and legends, for the page, the HTML view and notebooks."""

from __future__ import annotations

from functools import cache
from importlib.resources import files


@cache
def style() -> str:
    """Return the style sheet. Its colours are the variables of `attribution_reading.palette.style`."""
    return files("attribution_reading").joinpath("reading.css").read_text(encoding="utf-8")
