"""A trace as highlighted text, as a figure for a paper (SVG, PDF or PNG)."""

from __future__ import annotations

from dataclasses import replace

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from attribution_client.text_plots import draw, laid_out
from attribution_reading.read_sequence import Block
from attribution_reading.trace_html import TracePart, percent, read_trace, trace_parts
from attribution_schema.trace_result import TraceResult


def plot_trace(result: TraceResult, sequence: int = 0, *, width: float = 6.5, ax: Axes | None = None) -> Axes:
    """Draw a trace as text: the answer, the reasoning that it leads through, and the input, one below the other.

    Each token of the reasoning has the colour of what reached it, and each of the input that of what came to it. Both
    parts have scales of their own, whose ends are written beside their names. `width` is in inches; the height follows
    from the text, unless the figure of `ax` is given.
    """
    trace = result.traces[sequence]
    read = read_trace(trace)
    parts = trace_parts(trace, read)
    blocks = [block for part in parts for block in _named(part)]
    scores = {row: score / (part.largest or 1.0) for part in parts for row, score in part.scores.items()}
    if ax is not None:
        width = ax.get_window_extent().width / ax.figure.dpi
    pieces, height = laid_out(read, blocks, width)
    if ax is None:
        _, ax = plt.subplots(figsize=(width, height), layout="constrained", dpi=150)
    draw(ax, pieces, scores, 1.0)
    ax.set(xlim=(0, width), ylim=(height, 0))
    ax.axis("off")
    return ax


def _named(part: TracePart) -> list[Block]:
    """The blocks of a part, the first with the end of the scale behind its name."""
    if not part.blocks or not part.scores:
        return list(part.blocks)
    first, *others = part.blocks
    return [replace(first, label=f"{first.label} ({part.of}; darkest: {percent(part.largest)})"), *others]
