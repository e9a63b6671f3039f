"""Results as documents in HTML, without scripts or requests: what they have in common.

`POLICY` is their content security policy: it allows the document's own style and nothing else. Jinja escapes texts.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from attribution_reading import palette, reading_html, reading_style
from attribution_reading.shown_tokens import CONTROL, EMPTY, code_point, shown_characters

_HERE = Path(__file__).parent
STYLE = "\n".join(
    (
        palette.style(),
        reading_style.style(),
        (_HERE / "page.css").read_text(encoding="utf-8"),
        # A class for each shade, so that no cell needs a `style` attribute, which the policy forbids.
        reading_html.shade_classes(),
    )
)
_STYLE_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
POLICY = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'self'; sandbox"
)
_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_HERE), autoescape=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True
)
_MARKS = {"plain": Markup("{}"), "sign": Markup('<i class="mark">{}</i>'), "code": Markup('<i class="code">{}</i>')}


def render(template: str, *, title: str, facts: list[str], warnings: Iterable[str], **content: Any) -> bytes:
    """Return the document of a template that extends `page.html`, in UTF-8. `content`: what it reads besides."""
    document = _TEMPLATES.get_template(template).render(
        style=Markup(STYLE),  # noqa: S704 - our own
        title=title,
        facts=facts,
        warnings=[controls_shown(each) for each in warnings],
        **content,
    )
    return document.encode()


def visible(text: str) -> Markup:
    """Return a token in which spaces at its ends and invisible characters are marked."""
    if not text:
        return _MARKS["sign"].format(EMPTY)
    return Markup("").join(_MARKS[kind].format(shown) for shown, kind in shown_characters(text))


def controls_shown(text: str) -> Markup:
    """Return a text with the codes of its control characters in their place."""
    return Markup(CONTROL.sub(lambda found: _MARKS["code"].format(code_point(found[0])), str(escape(text))))  # noqa: S704
