"""Text on every shade of a heatmap has the contrast of at least 4.5 that WCAG 2.2 requires, on screens and in print."""

from __future__ import annotations

import re
from io import StringIO

import numpy as np
import pytest
from rich.console import Console

from attribution_client import AttributionClient
from attribution_client.heatmap_text import print_result
from attribution_client.plots import plot_attribution_heatmap
from attribution_client.scores import scores_of
from attribution_reading import palette
from tests.conftest import LOOKUP, PROMPT
from tests.serving import ROOT

WEB = ROOT / "web" / "js"
LMS = np.array([[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566], [0.0883024619, 0.2817188376, 0.6299787005]])  # fmt: skip
LAB = np.array([[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099], [0.0259040371, 0.7827717662, -0.8086757660]])  # fmt: skip


def oklab(color, by=0.0):
    """OKLab's lightness, a and b of a colour each of whose parts (0 to 255) is raised `by`."""
    parts = np.array([(int(color[index : index + 2], 16) + by) / 255 for index in (1, 3, 5)])
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return LAB @ np.cbrt(LMS @ linear)


def luminance(lab):
    return np.clip(np.linalg.inv(LMS) @ (np.linalg.inv(LAB) @ lab) ** 3, 0, 1) @ np.array([0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("colours", [palette.LIGHT, palette.DARK], ids=["light", "dark"])
@pytest.mark.parametrize("end", ["more", "less"])
def test_numbers_can_be_read_on_every_shade(colours, end):
    strongest, steps = getattr(colours, end), 1000
    lightness = []
    for step in range(steps + 1):
        drawn = palette.shade(colours.zero, strongest, step / steps)
        lightness.append(oklab(drawn)[0])
        pair = sorted((luminance(oklab(drawn)), luminance(oklab(colours.text(step / steps)))))
        assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 4.5, step
    # Lightness is linear in the score, up to half a unit in each part of a colour, by which it is rounded.
    straight = np.linspace(lightness[0], lightness[-1], steps + 1)
    for step, drawn in enumerate(palette.shade(colours.zero, strongest, step / steps) for step in range(steps + 1)):
        half = [abs(oklab(drawn, by)[0] - lightness[step]) for by in (-0.5, 0.5)]
        assert abs(lightness[step] - straight[step]) <= max(half), step
    assert abs(lightness[-1] - lightness[0]) > 0.4


def test_the_page_writes_in_the_same_ink():
    """Its module has the palette's bounds, which no style sheet can hand it."""
    written = re.search(r"\[BLACK_FROM, BLACK_UNTIL\] = \[([\d.]+), ([\d.]+)\]", (WEB / "number_scale.js").read_text())
    assert tuple(map(float, written.groups())) == (palette.BLACK_FROM, palette.BLACK_UNTIL)


def test_warm_is_more_and_blue_is_less_everywhere(result):
    """Plots and the terminal; tests/test_page.py compares the page and the heatmap view."""
    light = palette.LIGHT
    scores = scores_of(result.sequence_attributions[0], "target")
    largest, most, least = np.nanmax(np.abs(scores)), np.nanmax(scores), np.nanmin(scores)
    assert least < 0 < most
    drawn = plot_attribution_heatmap(result).collections[0]
    for score in (most, least):
        expected = np.array(list(bytes.fromhex(palette.shade(light.zero, light.end(score), abs(score) / largest)[1:])))
        found = np.array(drawn.to_rgba(score / largest * drawn.norm.vmax)[:3]) * 255
        # The scale has 257 shades: the nearest is half a shade away, and a part changes by 236 in 128 shades at most.
        assert np.abs(found - expected).max() <= 3
    out = StringIO()
    print_result(result, Console(file=out, force_terminal=True, color_system="truecolor", width=200))
    for score in (most, least):
        share = round(abs(float(score)) / largest, 2)
        red, green, blue = bytes.fromhex(palette.shade(light.zero, light.end(score), share)[1:])
        assert f"48;2;{red};{green};{blue}m" in out.getvalue()


@pytest.fixture
def result(server):
    client = AttributionClient(server.url)
    return client.attribute(LOOKUP, "input_x_gradient", PROMPT, view={"aggregator": ["sum"]})
