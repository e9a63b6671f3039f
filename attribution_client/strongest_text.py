"""Results that are wider than the terminal: for each generated token a row with its strongest attributed tokens."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from rich.cells import cell_len
from rich.console import Console
from rich.style import Style
from rich.table import Table
from rich.text import Text

from attribution_client.labels import label, labels
from attribution_client.scores import scores_of
from attribution_reading.number_scale import power_of_ten
from attribution_reading.palette import LIGHT, shade
from attribution_reading.scored_sequence import SIDES
from attribution_schema.result import SequenceAttribution

_SCORE, _GAP = 6, 2  # letters: a score such as -0.053, and the space between columns
_NARROWEST = 9  # letters of a token's name, below which fewer tokens stand in a row


@dataclass(frozen=True)
class _Strong:
    """An attributed token: its label, its place if another token has the same label, and its score."""

    label: str
    place: str
    score: float
    is_template: bool  # the chat template added it

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
    strong = _strongest(sequence, count, len(generated))
    largest = max((abs(each.score) for row in strong for each in row), default=0.0)
    power = power_of_ten(largest)
    scale = f"scores are x 10^{power}" if power else ""
    if scale:
        out.print(Text(scale, "dim"))
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


def _strongest(sequence: SequenceAttribution, count: int, columns: int) -> list[list[_Strong]]:
    """Each generated token's strongest attributed tokens, the strongest first; of equal ones the earlier."""
    sides = [(side, scores) for side in SIDES if (scores := scores_of(sequence, side)).size]
    # Beside a source, the tokens of the target are the prefix that was generated.
    before = {"target": "prefix " if len(sides) > 1 else ""}
    tokens = [
        (f"@{before.get(side, '')}{at}", label(token), bool(token.template))
        for side, scores in sides
        for at, token in enumerate(getattr(sequence, side)[: len(scores)])
    ]
    times = Counter(name for _, name, _ in tokens)
    found = []
    for column in range(columns):
        scores = np.concatenate([each[:, column] for _, each in sides]) if sides else np.empty(0, np.float32)
        order = np.argsort(-np.abs(np.nan_to_num(scores)), kind="stable")[:count]
        found.append(
            [
                _Strong(name, place if times[name] > 1 else "", float(scores[index]), is_template)
                for index in order
                if np.isfinite(scores[index])
                for place, name, is_template in [tokens[index]]
            ]
        )
    return found


def _cell(strong: _Strong, largest: float, power: int, width: int) -> Text:
    share = round(abs(strong.score) / largest, 2) if largest else 0.0
    style = Style(color=LIGHT.text(share), bgcolor=shade(LIGHT.zero, LIGHT.end(strong.score), share))
    return Text.assemble((two_digits(strong.score / 10.0**power).rjust(_SCORE), style), " ", strong.name(width))


def two_digits(number: float) -> str:
    """A number with two significant digits: `0.053`, `-1.0`, `12`."""
    return f"{number:#.2g}".removesuffix(".")
