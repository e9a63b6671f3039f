"""Results for a terminal: a coloured table where its width allows, else the strongest tokens of each generated one."""

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
from attribution_client.scores import read_sequence, scores_of
from attribution_client.strongest_text import print_strongest
from attribution_reading.number_scale import power_of_ten, scaled
from attribution_reading.palette import LIGHT, shade
from attribution_reading.scored_sequence import SIDES, Scores, not_yet_generated
from attribution_schema.result import AttributionResult, ComparisonResult, SequenceAttribution, Token

_LABEL, _CELL = 20, 7  # letters
_LONGEST = 60  # letters of a sentence beside its scores
_TOP = 3  # strongest tokens
_USUAL_FUNCTION = "probability"
_TOO_WIDE = "The table is wider than the terminal: --top 0 prints it. @ is a position."


def print_comparison(compared: ComparisonResult, out: Console, top: int | None = None) -> None:
    """Print the result of each method, as `print_result` does, then the agreement of each pair."""
    for result in compared.comparison:
        print_result(result, out, top)
    table = Table(box=box.SIMPLE_HEAD if out.is_terminal else None, pad_edge=False, header_style="bold")
    several = len({pair.sequence for pair in compared.agreement}) > 1
    overlap = f"top {compared.agreement[0].k} in common" if compared.agreement else ""
    for name in (*["text"] * several, "methods", "Spearman", "Kendall", overlap):
        table.add_column(name, justify="left" if name == "methods" else "right")
    for pair in compared.agreement:
        numbers = ("" if each is None else f"{each:.2f}" for each in (pair.spearman, pair.kendall, pair.top_overlap))
        table.add_row(*[str(pair.sequence + 1)] * several, " and ".join(pair.methods), *numbers)
    out.print(table)


def print_result(result: AttributionResult, out: Console, top: int | None = None) -> None:
    """Print the scores and step scores of each sequence.

    `top` is the number of attributed tokens to print for each generated one; 0 prints the whole table, in blocks of
    columns that fit the width. By default that is the table if it fits in one block, and else 3.
    """
    info = result.info
    head = f"{info.get('attribution_method', 'attribution')} of {info.get('model_name', 'a model')}"
    function = str(info.get("attributed_fn") or _USUAL_FUNCTION).removesuffix("_fn")  # Inseq's functions end in it
    function = f"log {function}" if (info.get("attributed_fn_args") or {}).get("logprob") else function
    out.print(Text(head if function == _USUAL_FUNCTION else f"{head}, of {function}", "bold"))
    for warning in info.get("warnings", []):
        out.print(Text(f"! {readable(warning)}", "yellow"))
    for index, sequence in enumerate(result.sequence_attributions):
        if len(result.sequence_attributions) > 1:
            out.print(Text(f"\ntext {index + 1} of {len(result.sequence_attributions)}", "bold"))
        contrasts = [each.named for each in read_sequence(sequence).generated if each.contrast is not None]
        if contrasts:
            out.print(Text(f"contrast: {readable(', '.join(contrasts))}", "dim"))
        if top is None and _LABEL + sum(_column_widths(sequence)) > out.width:
            out.print(Text(_TOO_WIDE, "dim"))
            print_strongest(sequence, _TOP, out)
        elif top:
            print_strongest(sequence, top, out)
        else:
            _print_sequence(sequence, out)


def _column_widths(sequence: SequenceAttribution) -> list[int]:
    """The width of each generated token's column, in letters: its label, its scores, its step scores."""
    generated = sequence.target[sequence.attr_pos_start : sequence.attr_pos_end]
    steps = [[_step_score(each) for each in values] for values in sequence.step_scores.values()]
    return [
        max(_CELL, cell_len(label(token)) + 3, *(len(values[column]) for values in steps))
        for column, token in enumerate(generated)
    ]


def _print_sequence(sequence: SequenceAttribution, out: Console) -> None:
    sides = [(side, scores) for side in SIDES if (scores := scores_of(sequence, side)).size]
    generated = sequence.target[sequence.attr_pos_start : sequence.attr_pos_end]
    largest = max((abs(float(each)) for _, scores in sides for each in scores.flat if math.isfinite(each)), default=0.0)
    power = power_of_ten(largest)
    if power:
        out.print(Text(f"scores are x 10^{power}", "dim"))
    widths = _column_widths(sequence)
    # A unit of text, such as a sentence, takes the room that few columns leave.
    longest = max(_LABEL - 2, min(_LONGEST, out.width - sum(widths) - 2))
    for columns in _blocks(widths, out.width - _LABEL):
        # Without box and padding the cells touch, as in a heatmap; the space between two labels is part of the cell.
        table = Table(box=None, pad_edge=False, padding=0, header_style="bold underline")
        table.add_column("", justify="right", no_wrap=True)
        for column in columns:
            table.add_column(Text(f"  {label(generated[column])} "), justify="right", no_wrap=True, min_width=_CELL)
        for side, scores in sides:
            _add_rows(table, side, sequence, scores, columns, widths, largest, power, longest, is_titled=len(sides) > 1)
        table.add_section()
        for name, values in sequence.step_scores.items():
            table.add_row(Text(f"{name} ", "dim"), *(_step_score(values[column]) for column in columns))
        out.print(table)


def _step_score(value: float | None) -> str:
    return "" if value is None else f" {value:.3g} "


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
    widths: list[int],
    largest: float,
    power: int,
    longest: int,
    *,
    is_titled: bool,
) -> None:
    if is_titled:
        table.add_row(Text(f"{SIDE_TITLES[side]} ", "dim italic"))
    tokens: list[Token] = getattr(sequence, side)
    is_later = not_yet_generated(scores, side, sequence.attr_pos_start)
    for token, row, later in zip(tokens, scores, is_later, strict=True):
        if not later.all():
            cells = (_cell(float(row[each]), largest, power, widths[each]) for each in columns)
            table.add_row(Text(f"{label(token, longest)} "), *cells)
    table.add_section()


def _cell(score: float, largest: float, power: int, width: int) -> Text:
    if not math.isfinite(score):
        return Text("")
    share = round(abs(score) / largest, 2) if largest else 0.0  # in hundredths, of which each is mixed once
    style = Style(color=LIGHT.text(share), bgcolor=shade(LIGHT.zero, LIGHT.end(score), share))
    return Text(f"{scaled(score, power)} ".rjust(width), style)
