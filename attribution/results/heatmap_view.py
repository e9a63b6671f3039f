"""The HTML view: one document without scripts or requests. For each sequence coloured text, the strongest tokens of
each generated one, and a table of all scores.

Safe for hostile tokens: Jinja escapes every text, each token is isolated from its neighbours' writing direction, and
invisible characters get a sign or their code.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from inseq.data import FeatureAttributionOutput
from inseq.data.attribution import FeatureAttributionSequenceOutput
from markupsafe import Markup, escape
from numpy.typing import NDArray

from attribution.catalogue.text_units import UNITS
from attribution.results import html_page
from attribution.results.aggregation import aggregate
from attribution.results.html_page import visible
from attribution.results.inseq_fields import token_notes, without_notes
from attribution.results.scored_sequences import numbers, read_sequence
from attribution.text.readable_tokens import Note
from attribution_reading import reading_html
from attribution_reading.number_scale import LARGE, SMALL, power_of_ten, scaled
from attribution_reading.read_sequence import ReadSequence
from attribution_reading.scored_sequence import Scores, not_yet_generated
from attribution_reading.shown_tokens import CONTROL
from attribution_schema.view_options import ViewOptions
from problems import InvalidRequest

MOST_CELLS = 100_000  # more cannot be read, and are tens of megabytes for the browser
_MOST_NUMBERS = 400  # cells; in a table of more, numbers are in the cells' titles
_DENSE_COLUMNS, _NUMBER_COLUMNS = 40, 12  # that fit on a page of paper; a wider table is split
_MINUS = "\u2212"  # as wide as a digit
_WIDE = 12  # with more columns than this, their tokens are written upwards
_MATRIX = 2  # dimensions
_SIDES = {"source": "Source", "target": "Target prefix"}


def html_view(output: FeatureAttributionOutput, options: ViewOptions) -> bytes:
    """Return the document in UTF-8.

    Raises `InvalidRequest` for scores that are not `[attributed, generated]`, and for more than `MOST_CELLS` of them.
    """
    aggregated = aggregate(output, options)
    _check_size(aggregated)
    unit = next((each for each in options.aggregators[-1:] if each in UNITS), None)
    pictures = [
        _picture(*each, unit) for each in zip(aggregated.sequence_attributions, token_notes(aggregated), strict=True)
    ]
    info = without_notes(output.info)
    model, method = info.get("model_name", "a model"), info.get("attribution_method", "attribution")
    return html_page.render(
        "heatmap.html",
        title=f"{method} of {model}",
        facts=[each for each in _facts(info, options) if each],
        warnings=info.get("warnings", []),
        sequences=pictures,
        info=CONTROL.sub(_json_escape, orjson.dumps(info, option=orjson.OPT_INDENT_2).decode()),
    )


def _check_size(output: FeatureAttributionOutput) -> None:
    """Raise `InvalidRequest` for scores of another shape, or too many, before any cell is written."""
    tensors = [
        tensor
        for sequence in output.sequence_attributions
        for tensor in (sequence.source_attributions, sequence.target_attributions)
        if tensor is not None
    ]
    if any(each.ndim != _MATRIX for each in tensors):
        raise InvalidRequest(
            "A heatmap needs one score for each pair of tokens. Aggregate them to that, with vnorm for example."
        )
    if (cells := sum(each.numel() for each in tensors)) > MOST_CELLS:
        raise InvalidRequest(
            f"{cells} scores are too many for a heatmap (at most {MOST_CELLS}). Aggregate them, for example with "
            "aggregator=subwords, or ask for format=parquet."
        )


@dataclass(frozen=True)
class _Token:
    """A token: its position, what the page shows of it, and its exact description for titles."""

    position: int
    shown: Markup
    exact: Markup


@dataclass(frozen=True)
class _Row:
    token: _Token
    cells: list[Markup]


@dataclass(frozen=True)
class _Group:
    name: str
    rows: list[_Row]


@dataclass(frozen=True)
class _Table:
    """Some columns of the table of all scores."""

    columns: list[_Token]
    groups: list[_Group]
    step_scores: list[tuple[str, list[Markup]]]


@dataclass(frozen=True)
class _Picture:
    """One sequence: its coloured text, its tables, and the scale of their colours."""

    reading: Markup
    of_each: Markup
    tables: list[_Table]
    legend: Markup
    power: int
    is_dense: bool
    is_wide: bool


def _facts(info: dict[str, Any], options: ViewOptions) -> Iterable[str]:
    function = str(info.get("attributed_fn") or "").removesuffix("_fn")
    is_logarithm = (info.get("attributed_fn_args") or {}).get("logprob")
    yield f"attributed function: {'logarithm of ' if is_logarithm else ''}{function}" if function else ""
    yield f"aggregated by {', '.join(options.aggregators)}" if options.aggregators else ""
    yield "not normalized" if options.normalize is False else ""
    yield f"corrected: {', '.join(info['corrections'])}" if info.get("corrections") else ""


def _picture(sequence: FeatureAttributionSequenceOutput, notes: dict[str, list[Note]], unit: str | None) -> _Picture:
    read = read_sequence(sequence, notes)
    every = np.concatenate([each.reshape(-1) for each in read.scores.values()] or [np.zeros(0, np.float32)])
    every = every[np.isfinite(every)]
    scale = _Scale(float(np.abs(every).max(initial=0.0)))
    is_dense = every.size > _MOST_NUMBERS
    count = sequence.attr_pos_end - sequence.attr_pos_start
    at_once = _DENSE_COLUMNS if is_dense else max(_NUMBER_COLUMNS, count if count <= 2 * _NUMBER_COLUMNS else 0)
    tokens = {side: _tokens(getattr(sequence, side), notes.get(side, [])) for side in _SIDES}
    has_tables = bool(read.scores or sequence.step_scores)
    return _Picture(
        reading=Markup(reading_html.reading(read, unit=unit)),  # noqa: S704 - it escapes tokens
        of_each=Markup(reading_html.strongest_of_each(read) if read.scores and count > 1 else ""),  # noqa: S704
        tables=[
            _table(sequence, read, tokens, range(first, min(first + at_once, count)), scale, is_dense=is_dense)
            for first in range(0, count, at_once)
        ]
        if has_tables
        else [],
        legend=Markup(  # noqa: S704
            reading_html.legend(scale.largest, is_signed=bool((every < 0).any()), of="whole text")
            if read.scores
            else ""
        ),
        power=0 if is_dense else scale.power,
        is_dense=is_dense,
        is_wide=is_dense or count > _WIDE,
    )


def _table(
    sequence: FeatureAttributionSequenceOutput,
    read: ReadSequence,
    tokens: dict[str, list[_Token]],
    chosen: range,
    scale: _Scale,
    *,
    is_dense: bool,
) -> _Table:
    start = sequence.attr_pos_start
    columns = [tokens["target"][start + each] for each in chosen]
    part = slice(chosen.start, chosen.stop)
    groups = [
        _Group(
            _SIDES[side],
            _rows(
                tokens[side],
                columns,
                matrix[:, part],
                scale,
                not_yet_generated(matrix, side, start)[:, part],
                is_dense=is_dense,
            ),
        )
        for side, matrix in read.scores.items()
    ]
    steps = [
        (
            name,
            [
                _step_cell(value, name, column, is_dense=is_dense)
                for value, column in zip(numbers(scores)[part], columns, strict=False)
            ],
        )
        for name, scores in (sequence.step_scores or {}).items()
    ]
    return _Table(columns, groups, steps)


def _rows(
    tokens: Sequence[_Token],
    columns: Sequence[_Token],
    matrix: Scores,
    scale: _Scale,
    later: NDArray[np.bool_],
    *,
    is_dense: bool,
) -> list[_Row]:
    """Return a row for each attributed token, without those that came after every generated token.

    `matrix` and `later` are `[attributed, generated]`; `later` marks the cells of tokens that did not exist yet.
    """
    rows = []
    for token, scores, is_later in zip(tokens, matrix, later, strict=False):
        if is_later.all() and is_later.size:
            continue
        cells = [
            _LATER if skipped else _cell(score, exact, scale, f"{token.exact} → {column.exact}", is_dense=is_dense)
            for score, exact, skipped, column in zip(scores.tolist(), scores, is_later, columns, strict=True)
        ]
        rows.append(_Row(token, cells))
    return rows


# There are many cells, so their markup is not escaped again: tokens are escaped already, and the rest is numbers.
_LATER = Markup('<td class="later"></td>')


def _cell(score: float, exact: np.float32, scale: _Scale, places: str, *, is_dense: bool) -> Markup:
    if not math.isfinite(score):
        return Markup(f'<td class="none" title="{places}: not a number">-</td>')  # noqa: S704
    written = "" if is_dense else scale.write(score)
    kind = f"score {reading_html.heat(score, scale.largest)}"
    return Markup(f'<td class="{kind}" title="{places}: {exact}">{written}</td>')  # noqa: S704


def _step_cell(score: np.float32, name: str, column: _Token, *, is_dense: bool) -> Markup:
    written = _short(float(score))
    # The cells of a dense table are too narrow for numbers: as wide as a character that is written upwards.
    shown = Markup("<span>{}</span>").format(written) if is_dense else written
    return Markup('<td class="step" title="{} of {}: {}">{}</td>').format(name, column.exact, score, shown)


def _short(number: float) -> str:
    """Return a step score with two decimals, or as a power of ten where it is very small or large."""
    if number == 0 or SMALL <= abs(number) < LARGE:
        return f"{number:.2f}".replace("-", _MINUS)
    return f"{number:.1e}" if math.isfinite(number) else "-"


@dataclass(frozen=True)
class _Scale:
    """The scale of a table's numbers and colours, from its largest absolute score."""

    largest: float

    @property
    def power(self) -> int:
        """The power of ten that is written once, beside the colours."""
        return power_of_ten(self.largest)

    def write(self, number: float) -> str:
        return scaled(number, self.power).replace("-", _MINUS)


# Tokens


def _with_notes(tokens: Sequence[Any], notes: Sequence[Note]) -> Iterable[tuple[Any, Note]]:
    return zip(tokens, notes or [{}] * len(tokens), strict=True)


def _tokens(tokens: Sequence[Any], notes: Sequence[Note]) -> list[_Token]:
    found = []
    for position, (token, note) in enumerate(_with_notes(tokens, notes)):
        identity = f" (id {token.id})" if isinstance(token.id, int) and token.id >= 0 else ""
        text = str(note.get("text", token.token))
        found.append(_Token(position, visible(text.removeprefix(" ") or text), escape(f"{token.token!r}{identity}")))
    return found


def _json_escape(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"
