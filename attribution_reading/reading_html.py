"""Coloured text and bars as HTML, for the HTML view and for notebooks: the markup that the page has, without scripts.

Safe for hostile tokens: every text is escaped, and invisible characters become signs or codes. Shades are classes
(`s0` to `s50`), because a content security policy may forbid `style` attributes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape

from attribution_reading import palette
from attribution_reading.read_sequence import Block, ReadSequence, ReadToken, Row, Strong
from attribution_reading.shown_tokens import CONTROL, EMPTY, code_point, shown_characters

LEVELS = 50  # shades on each side of zero


def shade_classes() -> str:
    """The style of the shade classes."""
    return "\n".join(f".s{level} {{ --w: {level / LEVELS:g}; }}" for level in range(LEVELS + 1))


def level(score: float, largest: float) -> int:
    """The shade of a score on a scale that ends at `largest`."""
    return min(LEVELS, round(LEVELS * abs(score) / largest)) if largest else 0


def heat(score: float, largest: float) -> str:
    """The classes that colour a score."""
    shade = level(score, largest)
    return f"heat {'less' if score < 0 else 'more'} {palette.ink(shade / LEVELS)} s{shade}"


def coloured_text(
    sequence: ReadSequence, scores: Mapping[Row, float], *, chosen: int | None = None, hide_template: bool = False
) -> str:
    """The sequence as running text in its blocks, coloured by these scores up to the largest of them.

    `chosen` is the target position of the token that the scores are for.
    """
    largest = scale_of(sequence, scores, hide_template=hide_template)
    blocks = "".join(text_block(each, sequence, scores, largest, chosen) for each in sequence.blocks())
    return f'<div class="texts{" without-template" if hide_template else ""}">{blocks}</div>'


def scale_of(sequence: ReadSequence, scores: Mapping[Row, float], *, hide_template: bool) -> float:
    """The largest absolute score that is drawn."""
    return max((abs(each.score) for each in sequence.strongest(scores, 1, hide_template=hide_template)), default=0.0)


def text_block(
    block: Block, sequence: ReadSequence, scores: Mapping[Row, float], largest: float, chosen: int | None = None
) -> str:
    drawn = []
    for position, token in enumerate(block.tokens, block.start):
        is_generated = block.side == "target" and sequence.start <= position < sequence.end
        score = scores.get((block.side, position))
        kinds = [
            "token",
            "generated" if is_generated else "given",
            "template" if token.is_template else "",
            "continues" if token.continues else "",
            "span" if token.is_span else "",
            "chosen" if block.side == "target" and position == chosen else "",
            heat(score, largest) if score is not None else "",
        ]
        title = "" if score is None else f' title="{f"{plain(token.named)}: {score:.6g}"}"'
        drawn.append(f'<span class="{" ".join(filter(None, kinds))}"{title}>{running_text(token)}</span>')
    return (
        f'<section class="block"><h2 class="role">{escape(block.label)}</h2>'
        f'<div class="tokens" dir="auto">{"".join(drawn)}</div></section>'
    )


def running_text(token: ReadToken) -> str:
    """A token within running text: blanks and line breaks are what they are, other invisible characters are signs."""
    if token.continues:
        return ""
    pieces = zip(token.text, shown_characters(token.text), strict=True)
    return "".join(_running(character, shown, kind) for character, (shown, kind) in pieces)


def _running(character: str, shown: str, kind: str) -> str:
    if character == " " or kind == "plain":
        return escape(character)
    if character == "\n":
        return '<span class="sign" data-sign="↵"></span>\n'
    return f'<span class="sign" data-sign="{shown}"></span>'


def bars(found: Iterable[Strong], title: str) -> str:
    """The strongest scores as a list of bars under a title."""
    strong = list(found)
    if not strong:
        return ""
    largest = max(abs(each.score) for each in strong)
    rows = "".join(
        f'<li><span class="bar-token" title="{plain(each.token.text)}">'
        f"<bdi>{shown_text(each.token)}</bdi></span>"
        f'<span class="bar-line {"less" if each.score < 0 else "more"} s{level(each.score, largest)}"></span>'
        f'<span class="number">{each.score:.2g}</span></li>'
        for each in strong
    )
    return f'<section class="strongest"><h2>{plain(title)}</h2><ol class="bars">{rows}</ol></section>'


def shown_text(token: ReadToken) -> str:
    """A token by itself, with signs and codes for what could not be seen; its contrast behind it."""
    shown = "".join(
        escape(each) if kind == "plain" else f'<i class="mark">{escape(each)}</i>'
        for each, kind in shown_characters(token.shown)
    )
    rather = "" if token.contrast is None else f' <i class="mark">rather than</i> {plain(token.contrast.strip())}'
    return (shown or f'<i class="mark">{EMPTY}</i>') + rather


def plain(text: str) -> str:
    """A text for HTML, escaped, on one line, with codes for its invisible characters."""
    pieces = zip(text, shown_characters(text), strict=True)
    codes = (code_point(character) if CONTROL.match(character) else shown for character, (shown, _) in pieces)
    return escape("".join(" " if character == " " else code for character, code in zip(text, codes, strict=True)))


def legend(largest: float, *, is_signed: bool, of: str) -> str:
    """The colours from no score (or the negative of the largest one) to the largest, and what they belong to."""
    low = f"\u2212{largest:.2g}" if is_signed else "0"
    return (
        f'<div class="legend"><span class="muted">{escape(of)}</span><span class="number">{low}</span>'
        f'<span class="ramp{" signed" if is_signed else ""}"></span><span class="number">{largest:.2g}</span></div>'
    )


def reading(
    sequence: ReadSequence,
    *,
    column: int | None = None,
    top: int = 6,
    hide_template: bool = False,
    unit: str | None = None,
) -> str:
    """Legend, coloured text and bars: for one generated token (`column`), by default `ReadSequence.opening`.

    `unit`: the unit of text into which the tokens were merged, if they were.
    """
    if not sequence.scores:
        return coloured_text(sequence, {})
    column = sequence.opening if column is None else column
    scores = sequence.of_answer() if column is None else sequence.of_token(column)
    chosen = None if column is None else sequence.start + column
    strong = sequence.strongest(scores, top, hide_template=hide_template)
    is_whole = column is None
    parts = "tokens" if unit in {None, "segments"} else unit  # generated tokens are in no segment
    if column is not None and sequence.generated[column].is_span:
        parts = "spans"
    of = f"sum of {len(sequence.generated)} {parts}" if is_whole else f"this {str(parts).removesuffix('s')}"
    title = (
        "The whole answer depended most on"
        if column is None
        else f"“{sequence.generated[column].named}” depended most on"
    )
    largest = scale_of(sequence, scores, hide_template=hide_template)
    is_signed = any(score < 0 for score in scores.values())
    return (
        legend(largest, is_signed=is_signed, of=of)
        + '<div class="reading">'
        + coloured_text(sequence, scores, chosen=chosen, hide_template=hide_template)
        + bars(strong, title)
        + "</div>"
    )


def strongest_of_each(sequence: ReadSequence, count: int = 3, *, hide_template: bool = False) -> str:
    """A table: each generated token, and the attributed tokens that it depended on most, with their scores."""
    rows = []
    for column, token in enumerate(sequence.generated):
        strong = sequence.strongest(sequence.of_token(column), count, hide_template=hide_template)
        cells = "".join(
            f'<td><bdi>{shown_text(each.token)}</bdi> <span class="number">{each.score:.2g}</span></td>'
            for each in strong
        )
        rows.append(f'<tr><th scope="row"><bdi>{shown_text(token)}</bdi></th>{cells}</tr>')
    return f'<table class="of-each">{"".join(rows)}</table>'
