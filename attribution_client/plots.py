"""Pictures of a result, fit for a paper: each draws on the `ax` given, or on a new one, and returns it.

Colours are those of every view of a result (`attribution_reading.palette`): warm for more, blue for less. No global
style is changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.ticker import MaxNLocator

from attribution_client.fonts import set_token_font
from attribution_client.labels import SIDE_TITLES, label, labels
from attribution_client.merging import merged
from attribution_client.scores import scores_of
from attribution_client.tables import top_tokens
from attribution_reading.number_scale import power_of_ten
from attribution_reading.palette import LIGHT, shades
from attribution_reading.scored_sequence import Scores, not_yet_generated
from attribution_schema.result import AttributionResult, SequenceAttribution, Token

CELL, MARGIN = 0.42, 1.4  # inches: a cell, and the labels beside the cells
_ROW = 0.26
_MOST_NUMBERS = 200  # cells; numbers cannot be read in more
_LEVEL, _ROOM = 5, 14  # labels are horizontal up to this many letters in the longest one, or in all together
INK, ACCENT = "#333338", LIGHT.more
LESS = LIGHT.less  # of negative scores


def plot_attribution_heatmap(
    result: AttributionResult,
    sequence: int = 0,
    *,
    side: str | None = None,
    annotate: bool | None = None,
    title: str | None = None,
    colorbar: bool = True,
    limit: float | None = None,
    rows: slice | Sequence[int] | None = None,
    top: int | None = None,
    hide_template: bool = False,
    merge: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the scores of one sequence: a row for each attributed token, a column for each generated one.

    `side` is `source` or `target` (the prompt and prefix of a decoder-only model); by default the source, if it has
    scores. Numbers are written into the cells where there are at most 200, or if `annotate` says so. `limit` is the
    score of the darkest colour.

    Of a long text, draw a part: `merge` tokens into words, lines, sentences, paragraphs, messages or segments; `rows`
    at these positions of the attributed tokens; without what a chat template added (`hide_template`); the `top` rows
    with the largest absolute scores, in the order of the text.

    Raises `ValueError` where there are no such scores, and for granular ones.
    """
    chosen = result.sequence_attributions[sequence]
    chosen = merged(chosen, merge) if merge else chosen
    side = side or ("source" if chosen.source_attributions is not None else "target")
    scores, tokens = visible_scores(chosen, side)
    kept = chosen_rows(scores, tokens, rows=rows, top=top, hide_template=hide_template)
    scores, attributed = scores[kept], [tokens[each] for each in kept]
    columns = chosen.target[chosen.attr_pos_start : chosen.attr_pos_end]
    if ax is None:
        ax = new_axes(CELL * len(columns) + MARGIN + (0.9 if colorbar else 0), _ROW * len(attributed) + 0.9)
    largest = limit or (float(np.nanmax(np.abs(scores))) or 1.0)
    is_signed = bool(np.nanmin(scores) < 0)
    power = power_of_ten(largest)
    scores, largest = scores / np.float32(10.0**power), largest / 10.0**power
    unit = rf"score ($\times 10^{{{power}}}$)" if power else "score"
    sns.heatmap(
        scores,
        mask=np.isnan(scores),
        cmap=ListedColormap(shades(LIGHT, is_signed=is_signed), name="signed_scores" if is_signed else "scores"),
        vmin=-largest if is_signed else 0,
        vmax=largest,
        annot=scores.size <= _MOST_NUMBERS if annotate is None else annotate,
        fmt=".2f",
        annot_kws={"size": 6.5},
        linewidths=0.6,
        linecolor="white",
        cbar=colorbar,
        cbar_kws={"shrink": 0.7, "aspect": 16, "pad": 0.03},
        ax=ax,
    )
    write_columns(ax, columns)
    ax.set_yticks(np.arange(len(attributed)) + 0.5, labels(attributed), rotation=0, size=8)
    ax.set_ylabel(SIDE_TITLES[side], color=INK, size=8)
    ax.set_xlabel("generated tokens", color=INK, size=8)
    ax.xaxis.set_label_position("top")
    ax.xaxis.tick_top()
    ax.tick_params(length=0, colors=INK)
    set_token_font([*ax.get_xticklabels(), *ax.get_yticklabels()])
    if title is not None:
        ax.set_title(title, size=9, color=INK, pad=8)
    if colorbar:
        bar = ax.collections[0].colorbar
        assert bar is not None
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=7, length=2, colors=INK)
        bar.locator = MaxNLocator(5)
        bar.set_label(unit, size=8, color=INK)
    return ax


def plot_step_scores(
    result: AttributionResult, score: str | None = None, sequence: int = 0, *, ax: Axes | None = None
) -> Axes:
    """Draw one step score of each generated token: the first one, if `score` names none.

    Raises `ValueError` where the result does not have it.
    """
    chosen = result.sequence_attributions[sequence]
    if not chosen.step_scores:
        raise ValueError('This result has no step scores: submit with step_scores=["probability"], for example.')
    name = score or next(iter(chosen.step_scores))
    if name not in chosen.step_scores:
        raise ValueError(f"There is no step score {name!r} here. There are: {', '.join(chosen.step_scores)}.")
    values = np.array(chosen.step_scores[name], float)
    tokens = chosen.target[chosen.attr_pos_start : chosen.attr_pos_end]
    if ax is None:
        ax = new_axes(CELL * len(values) + MARGIN, 1.9)
    ax.vlines(np.arange(len(values)), 0, values, color=ACCENT, lw=1.2, alpha=0.55)
    ax.plot(np.arange(len(values)), values, "o", color=ACCENT, ms=5)
    ax.axhline(0, color=INK, lw=0.6)
    ax.set_xticks(np.arange(len(values)))
    write_columns(ax, tokens, offset=0)
    ax.set_xlim(-0.6, len(values) - 0.4)
    if name == "probability":
        ax.set_ylim(0, 1.05)
    ax.set_ylabel(name.replace("_", " "), size=8, color=INK)
    ax.tick_params(axis="x", length=0, colors=INK)
    ax.tick_params(axis="y", length=2, labelsize=7, colors=INK)
    ax.yaxis.grid(visible=True, color="#e6e6ea", lw=0.6)
    ax.set_axisbelow(True)
    sns.despine(ax=ax, left=True, bottom=True)
    set_token_font(ax.get_xticklabels())
    return ax


def plot_top_tokens(
    result: AttributionResult, k: int = 5, generated: int = 0, sequence: int = 0, *, ax: Axes | None = None
) -> Axes:
    """Draw bars of the `k` attributed tokens with the largest absolute scores for one generated token.

    `generated` is its index among the generated tokens. Each label has the attributed token's position.
    """
    chosen = result.sequence_attributions[sequence]
    found = top_tokens(result, k, generated=generated, sequence=sequence)
    if ax is None:
        ax = new_axes(3.2, _ROW * len(found) + 0.7)
    places = np.arange(len(found))
    ax.barh(places, found["score"], color=[LESS if value < 0 else ACCENT for value in found["score"]], height=0.62)
    names = [
        f"{label(getattr(chosen, side)[position])} ({position})"
        for side, position in zip(found["side"], found["attributed_position"], strict=True)
    ]
    ax.set_yticks(places, names, size=8)
    ax.invert_yaxis()
    ax.axvline(0, color=INK, lw=0.6)
    ax.tick_params(axis="y", length=0, colors=INK)
    ax.tick_params(axis="x", length=2, labelsize=7, colors=INK)
    ax.set_xlabel("score", size=8, color=INK)
    answer = label(chosen.target[chosen.attr_pos_start + generated])
    ax.set_title(f"what “{answer}” depended on", size=9, color=INK, loc="left")
    sns.despine(ax=ax, left=True)
    set_token_font([*ax.get_yticklabels(), ax.title])
    return ax


# What the pictures share


def new_axes(width: float, height: float) -> Axes:
    """Return axes in a new figure, of this size in inches, at most 24 each way."""
    _, ax = plt.subplots(figsize=(min(width, 24), min(height, 24)), layout="constrained", dpi=150)
    return ax


def visible_scores(sequence: SequenceAttribution, side: str) -> tuple[Scores, list[Token]]:
    """Return the scores, `[attributed, generated]`, and attributed tokens of one side.

    Tokens after which nothing was generated are left out. Raises `ValueError` where the side has no scores.
    """
    scores = scores_of(sequence, side)
    if not scores.size or np.isnan(scores).all():
        raise ValueError(f"This result has no {side} scores for this sequence.")
    count = int((~not_yet_generated(scores, side, sequence.attr_pos_start).all(axis=1)).sum())  # they come first
    return scores[:count], getattr(sequence, side)[:count]


def chosen_rows(
    scores: Scores,
    tokens: list[Token],
    *,
    rows: slice | Sequence[int] | None,
    top: int | None,
    hide_template: bool,
) -> list[int]:
    """Return the positions of the attributed tokens to draw, in order. Raises `ValueError` if none is left."""
    positions = list(range(len(tokens)))
    kept = positions if rows is None else positions[rows] if isinstance(rows, slice) else [positions[i] for i in rows]
    if hide_template:
        kept = [each for each in kept if not (tokens[each].template or tokens[each].special)]
    if top is not None:
        size = np.nan_to_num(np.abs(scores)).max(axis=1)
        kept = sorted(sorted(kept, key=lambda each: -size[each])[:top])
    if not kept:
        raise ValueError("No attributed token is left to draw.")
    return kept


def write_columns(ax: Axes, tokens: list[Token], offset: float = 0.5) -> None:
    """Write generated tokens along the horizontal axis: horizontally if they are short, else vertically."""
    names = labels(tokens)
    longest = max(map(len, names), default=0)
    is_level = longest <= _LEVEL or longest * len(names) <= _ROOM
    style: dict[str, Any] = {"rotation": 0 if is_level else 90, "size": 8}
    ax.set_xticks(np.arange(len(names)) + offset, names, **style)
