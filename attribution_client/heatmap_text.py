"""Results as coloured tables for a terminal, split into blocks of columns that fit its width."""

from __future__ import annotations

import math
from collections.abc import Iterator

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.style import Style
from rich.table import Table
from rich.text import Text

from attribution_client.labels import SIDE_TITLES, label, readable
from attribution_client.scores import scores_of
from attribution_reading.number_scale import power_of_ten, scaled
from attribution_reading.palette import LIGHT, shade
from attribution_reading.scored_sequence import SIDES, Scores, not_yet_generated
from attribution_schema.result import AttributionResult, ComparisonResult, SequenceAttribution, Token

_LABEL, _CELL = 20, 7  # letters


def print_comparison(compared: ComparisonResult, out: Console) -> None:
    """Print the result of each method, then the agreement of each pair."""
    for result in compared.comparison:
        print_result(result, out)
    table = Table(box=box.SIMPLE_HEAD if out.is_terminal else None, pad_edge=False, header_style="bold")
    several = len({pair.sequence for pair in compared.agreement}) > 1
    overlap = f"top {compared.agreement[0].k} in common" if compared.agreement else ""
    for name in (*["text"] * several, "methods", "Spearman", "Kendall", overlap):
        table.add_column(name, justify="left" if name == "methods" else "right")
    for pair in compared.agreement:
        numbers = ("" if each is None else f"{each:.2f}" for each in (pair.spearman, pair.kendall, pair.top_overlap))
        table.add_row(*[str(pair.sequence + 1)] * several, " and ".join(pair.methods), *numbers)
    out.print(table)


def print_result(result: AttributionResult, out: Console) -> None:
    """Print the scores and step scores of each sequence."""
    info = result.info
    head = f"{info.get('attribution_method', 'attribution')} of {info.get('model_name', 'a model')}"
    out.print(Text(head, "bold"))
    for warning in info.get("warnings", []):
        out.print(Text(f"! {readable(warning)}", "yellow"))
    for index, sequence in enumerate(result.sequence_attributions):
        if len(result.sequence_attributions) > 1:
            out.print(Text(f"\ntext {index + 1} of {len(result.sequence_attributions)}", "bold"))
        _print_sequence(sequence, out)


def _print_sequence(sequence: SequenceAttribution, out: Console) -> None:
    sides = [(side, scores) for side in SIDES if (scores := scores_of(sequence, side)).size]
    generated = sequence.target[sequence.attr_pos_start : sequence.attr_pos_end]
    largest = max((abs(float(each)) for _, scores in sides for each in scores.flat if math.isfinite(each)), default=0.0)
    power = power_of_ten(largest)
    if power:
        out.print(Text(f"scores are x 10^{power}", "dim"))
    for columns in _blocks([_column_width(each) for each in generated], out.width - _LABEL):
        # Without padding the cells touch, as in a heatmap; the space between two labels is part of the cell.
        table = Table(box=box.SIMPLE_HEAD if out.is_terminal else None, pad_edge=False, padding=0)
        table.add_column("", justify="right", no_wrap=True)
        for column in columns:
            table.add_column(Text(f"  {label(generated[column])} "), justify="right", no_wrap=True, min_width=_CELL)
        for side, scores in sides:
            _add_rows(table, side, sequence, scores, columns, largest, power, is_titled=len(sides) > 1)
        table.add_section()
        for name, values in sequence.step_scores.items():
            numbers = (values[column] for column in columns)
            table.add_row(Text(f"{name} ", "dim"), *("" if each is None else f"{each:.3g} " for each in numbers))
        out.print(table)


def _column_width(token: Token) -> int:
    return max(_CELL, cell_len(label(token)) + 3)


def _blocks(widths: list[int], room: int) -> Iterator[range]:
    """Ranges of columns that fit into `room` letters; each has at least one column."""
    first = used = 0
    for column, width in enumerate(widths):
        if used and used + width > room:
            yield range(first, column)
            first, used = column, 0
        used += width
    yield range(first, len(widths))


def _add_rows(
    table: Table,
    side: str,
    sequence: SequenceAttribution,
    scores: Scores,
    columns: range,
    largest: float,
    power: int,
    *,
    is_titled: bool,
) -> None:
    if is_titled:
        table.add_row(Text(f"{SIDE_TITLES[side]} ", "dim italic"))
    tokens: list[Token] = getattr(sequence, side)
    generated = sequence.target[sequence.attr_pos_start : sequence.attr_pos_end]
    widths = [_column_width(each) for each in generated]
    is_later = not_yet_generated(scores, side, sequence.attr_pos_start)
    for token, row, later in zip(tokens, scores, is_later, strict=True):
        if not later.all():
            cells = (_cell(float(row[each]), largest, power, widths[each]) for each in columns)
            table.add_row(Text(f"{label(token)} "), *cells)
    table.add_section()


def _cell(score: float, largest: float, power: int, width: int) -> Text:
    if not math.isfinite(score):
        return Text("")
    share = round(abs(score) / largest, 2) if largest else 0.0  # in hundredths, of which each is mixed once
    style = Style(color=LIGHT.text(share), bgcolor=shade(LIGHT.zero, LIGHT.end(score), share))
    return Text(f"{scaled(score, power)} ".rjust(width), style)
