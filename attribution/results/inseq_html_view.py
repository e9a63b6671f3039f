"""The HTML of Inseq's own `show`, for readers who know it from notebooks.

`POLICY` is its content security policy: it allows `style` attributes and nothing else.
"""

from __future__ import annotations

import copy
import random
import re
from threading import Lock
from typing import Any

import inseq.data.viz
import numpy as np
from inseq.data import FeatureAttributionOutput
from inseq.utils.typing import TokenWithId

from attribution.results.aggregation import aggregate
from attribution_reading.shown_tokens import CONTROL, code_point
from attribution_schema.view_options import ViewOptions
from problems import InvalidRequest

_NO_SCRIPTS = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'; sandbox"
POLICY = f"{_NO_SCRIPTS}; style-src 'unsafe-inline'"
_MATRIX = 2  # dimensions
# With NumPy 2 Inseq writes colours as rgba(np.float64(178.0), ...), which no browser understands.
_STYLE, _NUMPY = re.compile('style="background:rgba[^"]*"'), re.compile(r"np\.float(?:32|64)\(([^()]*)\)")
_lock = Lock()


def inseq_html_view(output: FeatureAttributionOutput, options: ViewOptions) -> bytes:
    """Return the document in UTF-8. Raises `InvalidRequest` for scores that are not `[attributed, generated]`."""
    aggregated = aggregate(output, options)
    parts = []
    with _lock, np.errstate(invalid="ignore"):
        # Inseq draws its elements' names from Python's global generator, whose draws belong to the running job.
        inseq.data.viz.random = random.Random(0)  # noqa: S311
        for sequence in aggregated.sequence_attributions:
            tensors = (sequence.source_attributions, sequence.target_attributions)
            if any(each is not None and each.ndim != _MATRIX for each in tensors):
                raise InvalidRequest("Inseq's heatmap needs one score for each pair of tokens: leave out granular.")
            shown = copy.copy(sequence)
            shown.source, shown.target = _escaped(sequence.source), _escaped(sequence.target)
            parts.append(shown.show(display=False, return_html=True, do_aggregation=False) or "")
    html = "\n".join(_STYLE.sub(lambda style: _NUMPY.sub(r"\1", style[0]), part) for part in parts)
    return f'<!DOCTYPE html><meta charset="utf-8"><title>Inseq</title>{html}'.encode()


def _escaped(tokens: list[TokenWithId]) -> list[Any]:
    # Inseq writes < and > as entities but not &, so that a token `&lt;` would read as `<`. Quotes become entities too,
    # so that no token looks like a style. A browser drops or replaces control characters: their codes are shown.
    return [
        TokenWithId(
            CONTROL.sub(lambda found: code_point(found[0]), each.token.replace("&", "&amp;").replace('"', "&quot;")),
            each.id,
        )
        for each in tokens
    ]
