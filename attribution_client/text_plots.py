"""A sequence as highlighted text, as a figure for a paper (SVG, PDF or PNG)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from matplotlib.textpath import TextPath

from attribution_client.fonts import set_token_font
from attribution_client.merging import merged
from attribution_client.scores import read_sequence
from attribution_reading.palette import LIGHT, shade
from attribution_reading.read_sequence import Block, ReadSequence, Row
from attribution_reading.reading_html import scale_of
from attribution_reading.shown_tokens import shown_characters
from attribution_schema.result import AttributionResult

_SIZE, _SMALL = 9.0, 6.5  # points: words, and what a chat template added
_LINE = 1.75  # of the letters' size
_POINTS = 72.0  # in an inch
_INK, _MUTED = "#1b1b1f", "#63636b"


def plot_highlighted_text(
    result: AttributionResult,
    sequence: int = 0,
    *,
    token: int | None = None,
    hide_template: bool = False,
    merge: str | None = None,
    width: float = 6.5,
    ax: Axes | None = None,
) -> Axes:
    """Draw one sequence as text in which each token has the colour of its score.

    By default the scores are those for the whole answer, the sum over its tokens, or of several spans for the first;
    `token` is the index of a generated token or span, for its scores. Generated tokens are underlined. `hide_template`
    leaves out what a chat template added, and `merge` colours words, lines, sentences, paragraphs, messages or
    segments. `width` is in inches; the height follows from the text, unless the figure of `ax` is given.

    Scripts that are written from right to left need another tool: matplotlib does not order them. Raises `ValueError`
    for granular scores and where there are none.
    """
    chosen = result.sequence_attributions[sequence]
    read = read_sequence(merged(chosen, merge) if merge else chosen)
    if not read.scores:
        raise ValueError("This result has no scores of attributed tokens, only step scores.")
    column = read.opening if token is None else range(len(read.generated))[token]
    scores = read.of_answer() if column is None else read.of_token(column)
    if ax is not None:
        width = ax.get_window_extent().width / ax.figure.dpi
    chosen_position = None if column is None else read.start + column
    pieces, height = laid_out(read, read.blocks(), width, chosen_position, hide_template=hide_template)
    if ax is None:
        _, ax = plt.subplots(figsize=(width, height), layout="constrained", dpi=150)
    draw(ax, pieces, scores, scale_of(read, scores, hide_template=hide_template))
    ax.set(xlim=(0, width), ylim=(height, 0))
    ax.axis("off")
    return ax


@dataclass(frozen=True)
class Piece:
    """A part of a token on one line; places and sizes in inches from the upper left corner."""

    text: str
    width: float
    size: float  # points
    left: float = 0.0
    base: float = 0.0
    row: Row | None = None  # None for a role's name
    is_generated: bool = False
    is_chosen: bool = False

    def stripped(self) -> Piece:
        """The piece without the blanks before it."""
        text = self.text.lstrip()
        return replace(self, text=text, width=_width(text, self.size))


def laid_out(
    read: ReadSequence,
    blocks: Iterable[Block],
    width: float,
    chosen: int | None = None,
    *,
    hide_template: bool = False,
) -> tuple[list[Piece], float]:
    """Return the pieces of these blocks, and the height of the whole, in inches."""
    lines = _Lines(width)
    for block in blocks:
        lines.end(1.3 if lines.pieces else 1)
        lines.add([Piece(block.label, _width(block.label, _SMALL), _SMALL)])
        lines.end()
        for word in _words(_parts(read, block, chosen, hide_template=hide_template)):
            lines.add(word)
    lines.end(0.6)
    return lines.pieces, lines.base


class _Lines:
    """Places pieces on lines of a width in inches."""

    def __init__(self, width: float) -> None:
        self.pieces: list[Piece] = []
        self.base = 0.0  # of the present line, in inches from above
        self._left, self._width = 0.0, width

    def end(self, lines: float = 1) -> None:
        """Begin a line below the present one."""
        self._left, self.base = 0.0, self.base + lines * _SIZE * _LINE / _POINTS

    def add(self, word: list[Piece]) -> None:
        """Place the pieces of a word on one line, or on several if it is longer than a line."""
        if word[0].text == "\n" or (self._left and self._left + sum(each.width for each in word) > self._width):
            if self._left:
                self.end()
            word = [word[0].stripped(), *word[1:]]  # a line begins with a letter
        for piece in word:
            if self._left and self._left + piece.width > self._width:
                self.end()
            if piece.text:
                self.pieces.append(replace(piece, left=self._left, base=self.base))
                self._left += piece.width


def _parts(read: ReadSequence, block: Block, chosen: int | None, *, hide_template: bool) -> Iterator[Piece]:
    """The tokens of a block, divided at blanks; a line break is a piece of its own."""
    for position, token in enumerate(block.tokens, block.start):
        if token.continues or (hide_template and token.is_template):
            continue
        if token.is_span and position > block.start:
            yield Piece("\n", 0.0, _SIZE)  # a line for each
        is_target = block.side == "target"
        for text in re.findall(r"\n| *[^ \n]+| +", token.text):
            shown = text if text == "\n" else _shown(text)
            yield Piece(
                shown,
                _width(shown.strip("\n"), size := _SMALL if token.is_template else _SIZE),
                size,
                row=(block.side, position),
                is_generated=is_target and read.start <= position < read.end,
                is_chosen=is_target and position == chosen,
            )


def _shown(text: str) -> str:
    return "".join(" " if each == " " else "".join(shown for shown, _ in shown_characters(each)) for each in text)


def _words(parts: Iterable[Piece]) -> Iterator[list[Piece]]:
    """The words, each with its pieces: one may consist of several tokens, and begins at a blank or a line break."""
    word: list[Piece] = []
    for part in parts:
        if word and (part.text[0] in " \n" or word[-1].text == "\n"):
            yield word
            word = []
        word.append(part)
    if word:
        yield word


@lru_cache(4096)  # the words of a text recur
def _width(text: str, size: float) -> float:
    """The width of a text in inches, blanks at its ends included."""
    if not text:
        return 0.0
    font = FontProperties(size=size)
    edge = TextPath((0, 0), "||", prop=font).get_extents().width
    return float(TextPath((0, 0), f"|{text}|", prop=font).get_extents().width - edge) / _POINTS


def draw(ax: Axes, pieces: list[Piece], scores: Mapping[Row, float], largest: float) -> None:
    """Draw the pieces, coloured by these scores up to `largest`."""
    drawn = []
    for piece in pieces:
        score = None if piece.row is None else scores.get(piece.row)
        top, height = piece.base - 1.05 * piece.size / _POINTS, 1.4 * piece.size / _POINTS
        ink = _MUTED if piece.row is None else _INK
        if score is not None and largest:
            share = min(1.0, round(abs(score) / largest, 2))
            ink = LIGHT.text(share)
            ax.add_patch(
                Rectangle(
                    (piece.left, top), piece.width, height, color=shade(LIGHT.zero, LIGHT.end(score), share), lw=0
                )
            )
        if piece.is_chosen:
            ax.add_patch(Rectangle((piece.left, top), piece.width, height, fill=False, ec=_INK, lw=1))
        if piece.is_generated:
            line = piece.base + 0.35 * piece.size / _POINTS
            ax.plot(
                [piece.left, piece.left + piece.width], [line, line], color="#848d96", lw=0.9, solid_capstyle="butt"
            )
        # Dollar signs are letters here, not mathematics.
        drawn.append(ax.text(piece.left, piece.base, piece.text, size=piece.size, color=ink, parse_math=False))
    set_token_font(drawn)
