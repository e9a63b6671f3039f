"""Several methods on one text, side by side, with how far they agree."""

from __future__ import annotations

from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from attribution_client.plots import CELL, INK, MARGIN, plot_attribution_heatmap, visible_scores
from attribution_client.tables import Results, named, rank_correlation, same_tokens, top_token_overlap

_ROW, _CELL = 0.26, 0.4  # inches


@dataclass(frozen=True)
class MethodComparison:
    """The tables of `compare_methods`, `[methods, methods]`, and its axes: a heatmap a method, two of agreement."""

    rank_correlation: pd.DataFrame
    top_token_overlap: pd.DataFrame
    heatmaps: list[Axes]
    agreement: list[Axes]
    figure: Figure


def compare_methods(results: Results, k: int = 3, *, sequence: int = 0, side: str | None = None) -> MethodComparison:
    """Draw heatmaps of several results of one text side by side, and below them how far the methods agree.

    Agreement is Spearman's correlation of absolute scores, and the share of the `k` top tokens that two methods have
    in common, both means over generated tokens. Raises `ValueError` unless the results have the same tokens.
    """
    found = named(results)
    chosen = same_tokens(found, sequence)
    side = side or ("source" if chosen[0].source_attributions is not None else "target")
    _, rows = visible_scores(chosen[0], side)
    width = CELL * (chosen[0].attr_pos_end - chosen[0].attr_pos_start)
    heights = [_ROW * len(rows) + 1.1, _CELL * len(found) + 1.1]
    figure = plt.figure(
        figsize=(min(24, max(len(found) * (width + 0.35) + MARGIN, 6.4)), sum(heights)), layout="constrained", dpi=150
    )
    upper, lower = figure.subfigures(2, 1, height_ratios=heights, squeeze=False).flat
    heatmaps = list(np.atleast_1d(upper.subplots(1, len(found), sharey=True)))
    for ax, (name, result) in zip(heatmaps, found.items(), strict=True):
        plot_attribution_heatmap(result, sequence, side=side, title=name, colorbar=False, ax=ax)
        ax.set_xlabel("")
        if ax is not heatmaps[0]:
            ax.set_ylabel("")
    agreement = list(lower.subplots(1, 2))
    correlation, overlap = rank_correlation(found, sequence), top_token_overlap(found, k, sequence)
    for ax, values, title in zip(
        agreement, (correlation, overlap), ("rank correlation", f"top {k} tokens in common"), strict=True
    ):
        _matrix(ax, values, title)
    return MethodComparison(correlation, overlap, heatmaps, agreement, figure)


def _matrix(ax: Axes, values: pd.DataFrame, title: str) -> None:
    """Draw the part of the matrix below the diagonal, which has each pair once."""
    shown = np.tri(len(values), k=-1, dtype=bool)
    signed = bool((values.to_numpy()[shown] < 0).any())
    sns.heatmap(
        values,
        mask=~shown,
        annot=True,
        fmt=".2f",
        annot_kws={"size": 7.5},
        cmap="vlag" if signed else "rocket_r",
        vmin=-1 if signed else 0,
        vmax=1,
        linewidths=0.8,
        linecolor="white",
        cbar=False,
        ax=ax,
    )
    ax.set_aspect("equal", anchor="N")
    ax.set_xlim(0, len(values) - 1)
    ax.set_ylim(len(values), 1)
    ax.tick_params(length=0, colors=INK, labelsize=7.5)
    ax.tick_params(axis="x", rotation=30)
    plt.setp(ax.get_xticklabels(), ha="right", rotation_mode="anchor")
    ax.set_title(title, size=9, color=INK, pad=6)
