"""Traces for a terminal: the strongest tokens of the input, with a column for each hop that its width allows."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.style import Style
from rich.table import Table
from rich.text import Text

from attribution_client.labels import label, readable
from attribution_client.results import title_of
from attribution_reading.palette import LIGHT, shade
from attribution_reading.trace_html import percent, sentences, strongest
from attribution_schema.trace_result import PlacedToken, SequenceTrace, TracedSpan, TraceResult

TOP = 10  # tokens
_SHARE, _GAP = 7, 2  # letters: a share such as "< 0.1%", and the space between columns
_NAME = 24  # letters of a token and its position


def print_trace(result: TraceResult, out: Console, top: int | None = None) -> None:
    """Print the trace of each text: its spans, the `top` strongest tokens of the input, and the strongest paths.

    The table has as many hops as fit; 0 prints all tokens.
    """
    out.print(Text(f"trace of {title_of(result.info)}", "bold"))
    for warning in result.info.get("warnings", []):
        out.print(Text(f"! {readable(warning)}", "yellow"))
    for trace in result.traces:
        if len(result.traces) > 1:
            out.print(Text(f"\ntext {trace.sequence + 1} of {len(result.traces)}", "bold"))
        _print_span("from", trace.from_, out)
        if trace.through:
            _print_span("through", trace.through, out)
        for each in sentences(trace):
            out.print(Text(readable(each), "dim"))
        out.print(_table(trace, out, len(trace.inputs) if top == 0 else top or TOP))
        for path in trace.paths:
            way = " → ".join(map(_named, path.tokens))
            line = Text(f"{percent(path.mass):>{_SHARE}}  {way}")
            line.truncate(out.width, overflow="ellipsis")
            out.print(line)


def _print_span(name: str, span: TracedSpan, out: Console) -> None:
    line = Text.assemble((f"{name:<8}", "dim"), f"{span.start}:{span.end}  {' '.join(readable(span.text).split())}")
    line.truncate(out.width, overflow="ellipsis")
    out.print(line)


def _table(trace: SequenceTrace, out: Console, top: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD if out.is_terminal else None, pad_edge=False, header_style="bold")
    hops = trace.hops[: max(0, (out.width - _NAME) // (_SHARE + _GAP) - 1)]
    table.add_column("token of the input", no_wrap=True, max_width=_NAME)
    for name in ("share", *(f"hop {each.hop}" for each in hops)):
        table.add_column(name, justify="right", no_wrap=True)
    places = {(token.side, token.position): index for index, token in enumerate(trace.inputs)}
    found = strongest(trace.inputs, trace.scores, top)
    largest = max((score for _, score in found), default=0.0)
    for token, score in found:
        index = places[token.side, token.position]
        table.add_row(
            Text(_named(token)), *(_cell(each, largest) for each in (score, *(hop.scores[index] for hop in hops)))
        )
    return table


def _named(token: PlacedToken) -> str:
    return f"{label(token)} @{token.position}"


def _cell(score: float, largest: float) -> Text:
    share = round(score / largest, 2) if largest else 0.0
    style = Style(color=LIGHT.text(share), bgcolor=shade(LIGHT.zero, LIGHT.more, share))
    return Text(percent(score), style)
