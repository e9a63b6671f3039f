"""Results that are wider than the terminal: for each generated token a row with its strongest attributed tokens."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console
from rich.style import Style
from rich.table import Table
from rich.text import Text

from attribution_client.labels import label, labels
from attribution_client.scores import read_sequence
from attribution_reading.number_scale import power_of_ten
from attribution_reading.palette import LIGHT, shade
from attribution_reading.read_sequence import Strong
from attribution_schema.result import SequenceAttribution

_SCORE, _GAP = 6, 2  # letters: a score such as -0.053, and the space between columns
_NARROWEST = 9  # letters of a token's name, below which fewer tokens stand in a row


@dataclass(frozen=True)
class _Strong:
    """An attributed token: its label, its place if another token has the same label, and its score."""

    label: str
    place: str
    score: float
    is_template: bool  # added by a chat template, or a special token

    def name(self, width: int) -> Text:
        """The label, cut so that it and the place have at most `width` letters."""
        text = Text(self.label, "dim" if self.is_template else "")
        text.truncate(max(width - len(self.place), 1), overflow="ellipsis")
        return text.append(self.place, "dim")


def print_strongest(sequence: SequenceAttribution, count: int, out: Console) -> None:
    """Print the `count` attributed tokens with the largest absolute scores of each generated token, and step scores.

    Scores have two significant digits. A token whose label occurs several times has `@` and its position behind it.
    """
    generated = labels(sequence.target[sequence.attr_pos_start : sequence.attr_pos_end])
    strong = _strongest(sequence, count)
    largest = max((abs(each.score) for row in strong for each in row), default=0.0)
    power = power_of_ten(largest)
    if power:
        out.print(Text(f"scores are x 10^{power}", "dim"))
    first = max(map(cell_len, ["generated", *generated])) + _GAP
    longest = max((cell_len(each.label + each.place) for row in strong for each in row), default=0)
    steps = _step_columns(sequence, room := out.width - first, count * (_SCORE + 1 + longest + _GAP))
    room -= sum(width + _GAP for width, _ in steps.values())
    beside = max(1, min(count, room // (_SCORE + 1 + _NARROWEST + _GAP)))
    width = max(room // beside - _SCORE - 1 - _GAP, 1)
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold underline")
    table.add_column("generated", no_wrap=True)
    for name, (letters, _) in steps.items():
        table.add_column(Text(name, "dim"), justify="right", no_wrap=True, max_width=letters)
    for place in range(beside if any(strong) else 0):
        table.add_column("" if place else "depended most on", no_wrap=True)
    for index, (token, row) in enumerate(zip(generated, strong, strict=True)):
        cells = [_cell(each, largest, power, width) for each in row]
        lines = [cells[start : start + beside] for start in range(0, len(cells), beside)] or [[]]
        table.add_row(Text(token, "bold"), *(Text(values[index], "dim") for _, values in steps.values()), *lines[0])
        for line in lines[1:]:
            table.add_row("", *("" for _ in steps), *line)
    out.print(table)


def _step_columns(sequence: SequenceAttribution, room: int, wanted: int) -> dict[str, tuple[int, list[str]]]:
    """The width and the cells of each step score. Its name is cut where it takes room that the tokens want."""
    cells = {
        name: ["" if each is None else f"{each:.3g}" for each in values]
        for name, values in sequence.step_scores.items()
    }
    whole = {name: max(len(name), *map(len, values)) for name, values in cells.items()}
    if sum(whole.values()) + _GAP * len(whole) + wanted > room:
        whole = {name: max(_SCORE, *map(len, values)) for name, values in cells.items()}
    return {name: (whole[name], values) for name, values in cells.items()}


def _strongest(sequence: SequenceAttribution, count: int) -> list[list[_Strong]]:
    """Each generated token's strongest attributed tokens, the strongest first; of equal ones the earlier."""
    read = read_sequence(sequence)
    names = {
        (side, at): label(token)
        for side, scores in read.scores.items()
        for at, token in enumerate(getattr(sequence, side)[: len(scores)])
    }
    times = Counter(names.values())
    # Beside a source, the tokens of the target are the prefix that was generated.
    signs = {"target": "@prefix " if len(read.scores) > 1 else "@"}

    def named(found: Strong) -> _Strong:
        side, at = found.row
        name = names[found.row]
        place = f"{signs.get(side, '@')}{at}" if times[name] > 1 else ""
        return _Strong(name, place, found.score, found.token.is_template)

    columns = range(len(read.generated))
    return [[named(each) for each in read.strongest(read.of_token(column), count)] for column in columns]


def _cell(strong: _Strong, largest: float, power: int, width: int) -> Text:
    share = round(abs(strong.score) / largest, 2) if largest else 0.0
    style = Style(color=LIGHT.text(share), bgcolor=shade(LIGHT.zero, LIGHT.end(strong.score), share))
    return Text.assemble((two_digits(strong.score / 10.0**power).rjust(_SCORE), style), " ", strong.name(width))


def two_digits(number: float) -> str:
    """A number with two significant digits: `0.053`, `-1.0`, `12`."""
    return f"{number:#.2g}".removesuffix(".")
