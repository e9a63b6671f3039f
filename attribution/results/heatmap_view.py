"""The heatmap view: one HTML document without scripts or requests, a table for each sequence.

Safe for hostile tokens: Jinja escapes every text, each token is isolated from its neighbours' writing direction, and
characters that nobody sees are named. `POLICY` is the content security policy that it needs: nothing but its own style.
"""

from __future__ import annotations

import base64
import hashlib
import math
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import orjson
from inseq.data import FeatureAttributionOutput
from inseq.data.attribution import FeatureAttributionSequenceOutput
from markupsafe import Markup, escape

from attribution.results.aggregation import aggregate
from attribution.results.inseq_fields import token_notes, without_notes
from attribution.text.readable_tokens import Note
from attribution_schema.view_options import ViewOptions
from problems import InvalidRequest

MOST_CELLS = 100_000  # more is no picture, and tens of megabytes for the browser
_LEVELS = 50  # shades on each side of zero
# Text is black up to a level on the light page, and from a level on the dark one, so that its contrast is always 4.5.
_BLACK_UNTIL, _BLACK_FROM = 37, 28
SMALL, LARGE = 0.01, 1000  # what two decimals show well
_MINUS = "\u2212"  # as wide as a digit
_WIDE = 12  # columns from which on their tokens are written upwards
_MATRIX = 2  # dimensions
_SIDES = {"source": "Source", "target": "Target prefix"}
_SPACES = {" ": "␣", "\n": "⏎", "\r": "␍", "\t": "⇥", "\u00a0": "⍽", "\u3000": "□"}
_INVISIBLE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zs", "Zl", "Zp"}
_JOINERS = {"\u200c", "\u200d"}  # which belong to words and emoji

Scores = np.ndarray[Any, np.dtype[np.float32]]
_HERE = Path(__file__).parent


def _levels() -> str:
    """The style's shades: a class for each, and with its text colour, so that no cell has a style of its own."""
    shades = (f".s{level}{{--share:{100 * level / _LEVELS:g}%}}" for level in range(_LEVELS + 1))
    return "\n".join(shades)


_STYLE = (_HERE / "heatmap.css").read_text(encoding="utf-8") + _levels()
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
POLICY = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'self'; sandbox"
)
_TEMPLATE = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_HERE), autoescape=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True
).get_template("heatmap.html")


def html_view(output: FeatureAttributionOutput, options: ViewOptions) -> bytes:
    """The document, in UTF-8. Raises `InvalidRequest` for scores that are no matrix, or too many to look at."""
    aggregated = aggregate(output, options)
    _check_size(aggregated)
    pictures = [_picture(*each) for each in zip(aggregated.sequence_attributions, token_notes(aggregated), strict=True)]
    info = without_notes(output.info)
    model, method = info.get("model_name", "a model"), info.get("attribution_method", "attribution")
    document = _TEMPLATE.render(
        style=Markup(_STYLE),  # noqa: S704 - our own
        title=f"{method} of {model}",
        facts=[each for each in _facts(info, options) if each],
        warnings=info.get("warnings", []),
        sequences=pictures,
        info=orjson.dumps(info, option=orjson.OPT_INDENT_2).decode(),
    )
    return document.encode()


def _check_size(output: FeatureAttributionOutput) -> None:
    """Before a cell is written. Raises `InvalidRequest`."""
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
    """A token's place, what is shown of it, and what it is exactly."""

    position: int
    shown: Markup
    told: Markup


@dataclass(frozen=True)
class _Row:
    token: _Token
    cells: list[Markup]


@dataclass(frozen=True)
class _Group:
    name: str
    rows: list[_Row]


@dataclass(frozen=True)
class _Picture:
    """One sequence: its text, its table, and what its colours mean."""

    before: str
    generated: str
    columns: list[_Token]
    groups: list[_Group]
    step_scores: list[tuple[str, list[Markup]]]
    is_signed: bool
    low: str
    high: str
    power: int

    @property
    def is_wide(self) -> bool:
        return len(self.columns) > _WIDE


def _facts(info: dict[str, Any], options: ViewOptions) -> Iterable[str]:
    yield f"attributed function: {info['attributed_fn'].removesuffix('_fn')}" if info.get("attributed_fn") else ""
    yield f"aggregated by {', '.join(options.aggregators)}" if options.aggregators else ""
    yield "not normalized" if options.normalize is False else ""
    yield f"corrected: {', '.join(info['corrections'])}" if info.get("corrections") else ""


def _picture(sequence: FeatureAttributionSequenceOutput, notes: dict[str, list[Note]]) -> _Picture:
    tokens = {side: _tokens(getattr(sequence, side), notes.get(side, [])) for side in _SIDES}
    texts = {
        side: [_text(*each) for each in _with_notes(getattr(sequence, side), notes.get(side, []))] for side in _SIDES
    }
    start, end = sequence.attr_pos_start, sequence.attr_pos_end
    columns = tokens["target"][start:end]
    matrices = {
        side: tensor.detach().float().numpy()
        for side in _SIDES
        if (tensor := getattr(sequence, f"{side}_attributions")) is not None
    }
    numbers = np.concatenate([each.reshape(-1) for each in matrices.values()] or [np.zeros(0, np.float32)])
    numbers = numbers[np.isfinite(numbers)]
    scale = _Scale(float(np.abs(numbers).max(initial=0.0)))
    is_signed = bool((numbers < 0).any())
    groups = [
        _Group(_SIDES[side], _rows(tokens[side], columns, matrix, scale, start if side == "target" else None))
        for side, matrix in matrices.items()
    ]
    return _Picture(
        before="".join(texts["target"][:start] if "source" not in matrices else texts["source"]).strip(" "),
        generated="".join(texts["target"][start:end]).strip(" "),
        columns=columns,
        groups=groups,
        step_scores=[
            (name, [_step_cell(value, name, column) for value, column in zip(scores, columns, strict=False)])
            for name, scores in _numbers(sequence.step_scores)
        ],
        is_signed=is_signed,
        low=scale.write(-scale.largest) if is_signed else "0",
        high=scale.write(scale.largest),
        power=scale.exponent,
    )


def _numbers(scores: dict[str, Any] | None) -> Iterable[tuple[str, Scores]]:
    return ((name, each.detach().float().numpy()) for name, each in (scores or {}).items())


def _rows(
    tokens: Sequence[_Token], columns: Sequence[_Token], matrix: Scores, scale: _Scale, start: int | None
) -> list[_Row]:
    """A row for each attributed token; those of the target that came after everything are left out."""
    rows = []
    for token, scores in zip(tokens, matrix, strict=False):
        if start is not None and token.position >= start + len(columns) - 1 and np.isnan(scores).all():
            continue
        cells = [
            _LATER
            if start is not None and score != score and token.position >= column.position  # noqa: PLR0124 - NaN
            else _cell(score, exact, scale, f"{token.told} → {column.told}")
            for score, exact, column in zip(scores.tolist(), scores, columns, strict=True)
        ]
        rows.append(_Row(token, cells))
    return rows


# Cells are many: what is written into them is escaped once for each token, and the rest are numbers and our own words.
_LATER = Markup('<td class="later"></td>')


def _cell(score: float, exact: np.float32, scale: _Scale, places: str) -> Markup:
    if not math.isfinite(score):
        return Markup(f'<td class="none" title="{places}: not a number">-</td>')  # noqa: S704
    level = scale.level(score)
    kind = f"score {'less' if score < 0 else 'more'} {ink(level)} s{level}"
    return Markup(f'<td class="{kind}" title="{places}: {exact}">{scale.write(score)}</td>')  # noqa: S704


def ink(level: int) -> str:
    """The class that says in which colour a number is written on a shade."""
    return "high" if level > _BLACK_UNTIL else "middle" if level >= _BLACK_FROM else "low"


def _step_cell(score: np.float32, name: str, column: _Token) -> Markup:
    return Markup('<td class="step" title="{} of {}: {}">{}</td>').format(
        name, column.told, score, _short(float(score))
    )


def _short(number: float) -> str:
    """A step score in three digits or so."""
    if number == 0 or SMALL <= abs(number) < LARGE:
        return f"{number:.2f}".replace("-", _MINUS)
    return f"{number:.1e}" if math.isfinite(number) else "-"


@dataclass(frozen=True)
class _Scale:
    """What a table's numbers and colours are relative to: its largest absolute score."""

    largest: float

    @property
    def exponent(self) -> int:
        """The power of ten that is written once, beside the colours, where the scores are very small or large."""
        return 0 if not self.largest or SMALL <= self.largest < LARGE else math.floor(math.log10(self.largest))

    def write(self, number: float) -> str:
        return f"{number / 10.0**self.exponent:.2f}".replace("-0.00", "0.00").replace("-", _MINUS)

    def level(self, number: float) -> int:
        return round(_LEVELS * abs(number) / self.largest) if self.largest else 0


# Tokens


def _with_notes(tokens: Sequence[Any], notes: Sequence[Note]) -> Iterable[tuple[Any, Note]]:
    return zip(tokens, notes or [{}] * len(tokens), strict=True)


def _text(token: Any, note: Note) -> str:
    return "" if "continues" in note else str(note.get("text", token.token))


def _tokens(tokens: Sequence[Any], notes: Sequence[Note]) -> list[_Token]:
    found = []
    for position, (token, note) in enumerate(_with_notes(tokens, notes)):
        identity = f" (id {token.id})" if isinstance(token.id, int) and token.id >= 0 else ""
        text = str(note.get("text", token.token))
        found.append(_Token(position, visible(text), escape(f"{token.token!r}{identity}")))
    return found


def visible(text: str) -> Markup:
    """A token in which spaces and invisible characters can be seen."""
    if not text:
        return Markup('<i class="mark">∅</i>')
    shown = Markup("")
    for index, character in enumerate(text):
        is_inside = 0 < index < len(text) - 1
        if is_inside and (character == " " or character in _JOINERS):
            shown += character
        elif character in _SPACES:
            shown += Markup('<i class="mark">{}</i>').format(_SPACES[character])
        elif unicodedata.category(character) in _INVISIBLE:
            shown += Markup('<i class="code">U+{}</i>').format(f"{ord(character):04X}")
        else:
            shown += character
    return shown
