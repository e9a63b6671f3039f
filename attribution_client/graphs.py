"""A result as a graph: an edge from each attributed token to each generated one, weighted by its score."""

from __future__ import annotations

from typing import Literal

import networkx as nx
import numpy as np
from matplotlib.axes import Axes

from attribution_client.fonts import set_token_font
from attribution_client.frames import to_frame
from attribution_client.labels import label
from attribution_client.plots import ACCENT, INK, LESS, new_axes
from attribution_schema.result import AttributionResult

_ROW = 0.3  # inches


def attribution_graph(result: AttributionResult, sequence: int = 0) -> nx.DiGraph[tuple[str, int]]:
    """Return a result as a graph.

    Nodes are attributed tokens, `(side, position)`, and generated ones, `("generated", position)`; they have `token`
    and `label`. Edges have the signed `score` and its absolute value, `weight`.
    """
    chosen = result.sequence_attributions[sequence]
    frame = to_frame(result)
    frame = frame[(frame["sequence"] == sequence) & frame["score"].notna()]
    graph: nx.DiGraph[tuple[str, int]] = nx.DiGraph()
    for side, position in dict.fromkeys(zip(frame["side"], frame["attributed_position"], strict=True)):
        token = getattr(chosen, side)[position]
        graph.add_node((side, int(position)), token=token.token, label=label(token))
    for position in range(chosen.attr_pos_start, chosen.attr_pos_end):
        token = chosen.target[position]
        graph.add_node(("generated", position), token=token.token, label=label(token))
    for side, attributed, generated, score in zip(
        frame["side"], frame["attributed_position"], frame["generated_position"], frame["score"], strict=True
    ):
        edge = (side, int(attributed)), ("generated", int(generated))
        graph.add_edge(*edge, score=float(score), weight=abs(float(score)))
    return graph


def plot_attribution_graph(result: AttributionResult, sequence: int = 0, *, k: int = 3, ax: Axes | None = None) -> Axes:
    """Draw attributed tokens on the left, generated ones on the right, and each generated one's `k` strongest edges.

    The larger the absolute score, the wider and darker the edge; negative scores are blue.
    """
    graph = attribution_graph(result, sequence)
    left = [node for node in graph if node[0] != "generated"]
    right = [node for node in graph if node[0] == "generated"]
    if ax is None:
        ax = new_axes(4.2, _ROW * max(len(left), len(right)) + 0.5)
    height = max(len(left), len(right)) - 1
    places = {node: (0.0, -place) for node, place in zip(left, _spread(len(left), height), strict=True)}
    places |= {node: (1.0, -place) for node, place in zip(right, _spread(len(right), height), strict=True)}
    edges = [
        edge
        for node in right
        for edge in sorted(graph.in_edges(node, data=True), key=lambda each: -each[2]["weight"])[:k]
    ]
    largest = max((data["weight"] for _, _, data in edges), default=0.0) or 1.0
    # The strongest last, so that they lie on top.
    for source, target, data in sorted(edges, key=lambda each: each[2]["weight"]):
        share = data["weight"] / largest
        nx.draw_networkx_edges(
            graph,
            {node: (0.03 + 0.94 * x, y) for node, (x, y) in places.items()},
            edgelist=[(source, target)],
            ax=ax,
            arrows=False,
            width=0.4 + 3.2 * share,
            alpha=0.12 + 0.8 * share,
            edge_color=LESS if data["score"] < 0 else ACCENT,
        )
    sides: tuple[tuple[list[tuple[str, int]], Literal["left", "right"]], ...] = ((left, "right"), (right, "left"))
    for nodes, side in sides:
        written = nx.draw_networkx_labels(
            graph,
            {node: places[node] for node in nodes},
            labels={node: graph.nodes[node]["label"] for node in nodes},
            ax=ax,
            font_size=8,
            font_color=INK,
            horizontalalignment=side,
            clip_on=False,
        )
        set_token_font(written.values())
    ax.set_xlim(-0.3, 1.3)
    ax.set_ylim(-height - 0.7, 0.7)
    ax.axis("off")
    return ax


def _spread(count: int, height: float) -> list[float]:
    """Return `count` places between 0 and `height`, one apart, centred."""
    start = (height - (count - 1)) / 2
    return [float(each) for each in start + np.arange(count)]
