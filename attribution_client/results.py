"""Results that a notebook shows as coloured text: the schema's results, with `show()`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attribution_client.extras import needs_extra
from attribution_client.scores import read_sequence
from attribution_reading import palette, reading_html, reading_style
from attribution_reading.read_sequence import ReadSequence
from attribution_schema import result as schema

_SCOPE = "attribution-result"
# Light in every notebook, as pictures are: a notebook's own dark mode is not the browser's.
_OWN = """
& { color-scheme: light; background: #fff; color: #1b1b1f; padding: .6rem .8rem; border-radius: 6px;
  font: 14px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
  --surface: #fff; --text: #1b1b1f; --muted: #63636b; --line: #d9d9de; --strong-line: #848d96; }
.head { color: var(--muted); margin: 0 0 .4rem; }
.reading { display: grid; gap: .8rem; margin: .5rem 0 .8rem; }
h2 { margin: 0; padding: 0; font-size: .85rem; }
.bars, .bars li { margin: 0; padding: 0; }
i.mark { font-style: normal; color: var(--muted); }
.of-each td, .of-each th { text-align: left; padding: 0 .6rem 0 0; background: none; border: 0; white-space: nowrap; }
summary { cursor: pointer; color: var(--muted); }
.trace { display: grid; gap: .5rem; }
.hops { border-collapse: collapse; margin: .6rem 0; }
.hops :is(td, th) { text-align: left; padding: 0 .8rem 0 0; background: none; border: 0; font-weight: 400; }
.hops thead th { color: var(--muted); }
.paths ol { margin: .2rem 0; padding-inline-start: 1.4rem; }
small { color: var(--muted); }
"""


class Shown:
    """A result as HTML: a notebook draws it, `save` writes it as a page, and `str` is its strongest tokens as text."""

    def __init__(self, html: str, text: str) -> None:
        self.html = html  # a fragment, with its style
        self._text = text

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return self._text

    def save(self, path: str | Path) -> None:
        """Write the HTML as a page of its own."""
        page = (
            f'<!DOCTYPE html>\n<html lang="en"><meta charset="utf-8"><title>Attribution</title>\n{self.html}</html>\n'
        )
        Path(path).write_text(page, encoding="utf-8")


def _drawn(result: AttributionResult | ComparisonResult) -> str | None:
    """What a notebook draws of a result; None, with which it writes the `repr`, for granular scores."""
    try:
        return result.show().html
    except ValueError:
        return None


class AttributionResult(schema.AttributionResult):
    """One method's result, shaped like Inseq's `FeatureAttributionOutput`. Notebooks show it as coloured text."""

    def show(
        self,
        sequence: int | None = None,
        *,
        token: int | None = None,
        top: int = 6,
        hide_template: bool = False,
        merge: str | None = None,
    ) -> Shown:
        """The result as coloured text, with bars of the `top` strongest scores, and each generated token's strongest.

        By default of all sequences and for the whole answer: the sum over its tokens, or of several spans the first.
        `token` is the index of a generated token or span, for its scores alone. `hide_template` leaves out what a chat
        template added. `merge` reads the text in words, lines, sentences, paragraphs, messages or segments (extra
        `plots`).

        Raises `ValueError` for granular scores, and `IndexError` for a sequence or token that is not there.
        """
        count = len(self.sequence_attributions)
        indexes = range(count) if sequence is None else [range(count)[sequence]]
        parts, lines = [head_of(self.info)], [title_of(self.info)]
        for index in indexes:
            found = self.sequence_attributions[index]
            read = read_sequence(_merged(found, merge) if merge else found)
            column = None if token is None else range(len(read.generated))[token]
            if len(indexes) > 1:
                parts.append(f"<h2>Text {index + 1} of {count}</h2>")
            parts.append(reading_html.reading(read, column=column, top=top, hide_template=hide_template, unit=merge))
            if column is None and read.scores and len(read.generated) > 1:
                each = reading_html.strongest_of_each(read, hide_template=hide_template)
                parts.append(
                    f"<details><summary>Each generated token, and what it depended on</summary>{each}</details>"
                )
            lines += _lines(read, hide_template=hide_template)
        return Shown(fragment("".join(parts)), "\n".join(lines))

    _repr_html_ = _drawn

    def __repr__(self) -> str:
        count = len(self.sequence_attributions)
        return f"<{title_of(self.info)}: {count} text{'s' if count > 1 else ''}; show() draws it>"


class MethodResult(AttributionResult):
    """One method's result in a comparison."""

    method: str


class ComparisonResult(schema.ComparisonResult):
    """The result of a comparison; a notebook shows the coloured text of each method."""

    comparison: list[MethodResult]  # type: ignore[assignment]

    def show(self, **options: Any) -> Shown:
        """The result of each method, one below the other. `options` are those of `AttributionResult.show`."""
        shown = [each.show(**options) for each in self.comparison]
        return Shown("".join(each.html for each in shown), "\n\n".join(map(repr, shown)))

    _repr_html_ = _drawn

    def __repr__(self) -> str:
        return f"<comparison of {', '.join(each.method for each in self.comparison)}; show() draws it>"


def _merged(sequence: schema.SequenceAttribution, unit: str) -> schema.SequenceAttribution:
    with needs_extra("plots"):
        from attribution_client.merging import merged
    return merged(sequence, unit)


def title_of(info: dict[str, Any]) -> str:
    return f"{info.get('attribution_method', 'attribution')} of {info.get('model_name', 'a model')}"


def head_of(info: dict[str, Any]) -> str:
    return f'<p class="head">{reading_html.plain(title_of(info))}</p>'


def fragment(content: str) -> str:
    style = "\n".join(
        (palette.variables(palette.LIGHT), reading_style.style(), reading_html.shade_classes(), _OWN)
    )  # nested, so that it styles nothing else in the notebook
    return f'<div class="{_SCOPE}"><style>.{_SCOPE} {{ {style} }}</style>{content}</div>'


def _lines(read: ReadSequence, *, hide_template: bool) -> list[str]:
    lines = []
    for column, token in enumerate(read.generated):
        strong = read.strongest(read.of_token(column), 3, hide_template=hide_template)
        found = ", ".join(f"{each.token.named!r} {each.score:.2g}" for each in strong)
        lines.append(f"  {token.named!r}: {found}")
    return lines
