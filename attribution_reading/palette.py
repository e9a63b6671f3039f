"""The colours of scores wherever they are drawn: the page, the heatmap view, plots and the terminal.

Warm is more (for the generated token), blue is less (against it), as in Inseq's own heatmaps; readers with any kind of
colour vision can tell them apart. Shades are mixed in OKLab between a scale's ends, so that equal steps of score are
equal steps to the eye (https://bottosson.github.io/posts/oklab/).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cache
from typing import Literal

from coloraide import Color

Ink = Literal["low", "middle", "high"]
# Text on a shade is `under` below the first share of the largest score, `over` above the second, and black between
# them: its contrast is at least 4.5 on every shade of every palette.
BLACK_FROM, BLACK_UNTIL = 0.545, 0.75


@dataclass(frozen=True)
class Palette:
    """Colours as `#rrggbb`: no score, the largest scores, and text on strong and on weak shades."""

    zero: str
    more: str
    less: str
    over: str
    under: str

    def end(self, score: float) -> str:
        """The colour towards which a score's shade goes."""
        return self.less if score < 0 else self.more

    def text(self, share: float) -> str:
        """The colour of text on the shade of this share (0 to 1) of the largest score."""
        return {"low": self.under, "middle": "#000000", "high": self.over}[ink(share)]


LIGHT = Palette(zero="#fbf8f5", more="#8f2d04", less="#0f5090", over="#ffffff", under="#000000")
DARK = Palette(zero="#222226", more="#ffb27d", less="#96ccff", over="#000000", under="#ffffff")


def ink(share: float) -> Ink:
    """The style class for text on the shade of this share (0 to 1) of the largest score."""
    return "low" if share < BLACK_FROM else "high" if share > BLACK_UNTIL else "middle"


@cache
def shade(zero: str, end: str, share: float) -> str:
    """The colour `share` (0 to 1) of the way from `zero` to `end` in OKLab, as `#rrggbb`."""
    return Color(zero).mix(end, share, space="oklab").convert("srgb").to_string(hex=True)


def shades(palette: Palette, *, is_signed: bool, steps: int = 128) -> list[str]:
    """The shades of a scale in order: from 0 to the largest score, or from its negative."""
    more = [shade(palette.zero, palette.more, step / steps) for step in range(steps + 1)]
    if not is_signed:
        return more
    return [shade(palette.zero, palette.less, step / steps) for step in range(steps, 0, -1)] + more


def style() -> str:
    """The palettes as CSS variables (`--score-zero` and so on): dark where the reader prefers it, light in print."""
    return (
        f":root {{ {variables(LIGHT)} }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{ {variables(DARK)} }} }}\n"
        f"@media print {{ :root {{ {variables(LIGHT)} }} }}\n"
    )


def variables(palette: Palette) -> str:
    """One palette as CSS variables."""
    return " ".join(f"--score-{name}: {color};" for name, color in asdict(palette).items())
