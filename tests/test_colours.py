"""Text on every shade of a heatmap has the contrast of at least 4.5 that WCAG 2.2 requires, on screens and in print."""

from __future__ import annotations

import re

import numpy as np
import pytest

from attribution.results import heatmap_view

LMS = np.array([[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566], [0.0883024619, 0.2817188376, 0.6299787005]])  # fmt: skip
LAB = np.array([[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099], [0.0259040371, 0.7827717662, -0.8086757660]])  # fmt: skip


def oklab(color):
    parts = np.array([int(color[index : index + 2], 16) / 255 for index in (1, 3, 5)])
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return LAB @ np.cbrt(LMS @ linear)


def luminance(lab):
    return np.clip(np.linalg.inv(LMS) @ (np.linalg.inv(LAB) @ lab) ** 3, 0, 1) @ np.array([0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("theme", [0, 1, 2], ids=["light", "dark", "print"])
@pytest.mark.parametrize("end", ["more", "less"])
def test_numbers_can_be_read_on_every_shade(theme, end):
    style = (heatmap_view._HERE / "heatmap.css").read_text()
    blocks = re.findall(r":root \{([^}]*--zero[^}]*)\}", style)
    colors = dict(re.findall(r"--(\w+): (#\w{6})", blocks[theme]))
    zero, strongest = oklab(colors["zero"]), oklab(colors[end])
    lightness = []
    for level in range(heatmap_view._LEVELS + 1):
        shade = zero + (strongest - zero) * level / heatmap_view._LEVELS
        lightness.append(shade[0])
        ink = heatmap_view.ink(level)
        text = {"low": colors["under"], "middle": "#000000", "high": colors["over"]}[ink]
        pair = sorted((luminance(shade), luminance(oklab(text))))
        assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 4.5, (level, ink)
    # Lightness is linear in the score.
    steps = np.diff(lightness)
    assert np.allclose(steps, steps[0])
    assert abs(lightness[-1] - lightness[0]) > 0.4
