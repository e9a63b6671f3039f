"""Traces as a tidy table: one row for each token of the input and hop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from attribution_schema.trace_result import PlacedToken, SequenceTrace

_KINDS = {
    "sequence": pa.int32(),
    "part": pa.string(),
    "side": pa.string(),
    "position": pa.int32(),
    "token": pa.string(),
    "token_id": pa.int32(),
    "text": pa.string(),
    "hop": pa.int32(),
    "score": pa.float64(),
}


def trace_table(traces: Sequence[SequenceTrace], *, with_text: bool) -> pa.Table:
    """Return the shares of all traces: by sequence, then hop, then token.

    Columns: sequence, part, side, position, token, token_id, text (`with_text`), hop, score. `part` is `input`, or
    `elsewhere` for generated tokens that pass nothing on; those have no hop, and neither have the shares of hops that
    are not listed. The scores of a sequence add up to 1 without what is left for further hops.
    """
    rows = [row for trace in traces for row in _rows(trace)]
    names = [name for name in _KINDS if with_text or name != "text"]
    return pa.table({name: pa.array([row[name] for row in rows], _KINDS[name]) for name in names})


def _rows(trace: SequenceTrace) -> Iterator[dict[str, Any]]:
    for hop in trace.hops:
        for token, score in zip(trace.inputs, hop.scores, strict=True):
            yield _row(trace, "input", token, hop.hop, score)
    if trace.unlisted:
        listed = [sum(each) for each in zip(*(hop.scores for hop in trace.hops), strict=True)]
        for token, score, known in zip(trace.inputs, trace.scores, listed, strict=True):
            yield _row(trace, "input", token, None, score - known)
    for token, score in zip(trace.generated, trace.elsewhere_scores, strict=True):
        if score:
            yield _row(trace, "elsewhere", token, None, score)


def _row(trace: SequenceTrace, part: str, token: PlacedToken, hop: int | None, score: float) -> dict[str, Any]:
    return {
        "sequence": trace.sequence,
        "part": part,
        "side": token.side,
        "position": token.position,
        "token": token.token,
        "token_id": token.token_id,
        "text": token.text,
        "hop": hop,
        "score": score,
    }
