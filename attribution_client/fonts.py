"""Fonts with the letters of many scripts, of those that this machine has."""

from __future__ import annotations

import functools
from collections.abc import Iterable

import matplotlib.font_manager
from matplotlib.text import Text

# matplotlib's own font first, then fonts with the scripts that it lacks.
_FONTS = (
    "DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Micro Hei",
    "PingFang SC", "Hiragino Sans", "Apple SD Gothic Neo", "Microsoft YaHei", "Malgun Gothic", "Arial Unicode MS",
    "Noto Sans Arabic", "Noto Sans Hebrew", "Noto Sans Devanagari", "Noto Sans Bengali", "Noto Sans Tamil",
    "Noto Sans Thai", "Noto Sans Georgian", "Noto Sans Armenian", "Noto Sans Ethiopic", "Noto Emoji",
)  # fmt: skip


def set_token_font(texts: Iterable[Text]) -> None:
    """Give these texts fonts for tokens of any script, and switch off mathematics, which `$` would start."""
    for text in texts:
        text.set_fontfamily(_installed())
        text.set_parse_math(False)


@functools.cache
def _installed() -> list[str]:
    known = set(matplotlib.font_manager.get_font_names())
    return [font for font in _FONTS if font in known] or ["sans-serif"]
