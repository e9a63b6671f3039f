"""The lengths at which a model is probed before its single pass is trusted with given texts.

Each length behind which the model changes (see `length_changes`) gets a probe that stands to it as the texts do: on
both sides of it, or beyond it.
"""

from __future__ import annotations

from collections.abc import Sequence

from attribution.catalogue.length_changes import LengthChange, Span
from attribution.estimates.passes import Shape

_PROMPT, _STEPS = 6, 3  # tokens of the short probe


def probe_shapes(
    changes: Sequence[LengthChange], texts: Sequence[Span], *, limit: int | None, is_encoder_decoder: bool
) -> list[Shape]:
    """The shapes of the probes for these texts, the longest last. No probe is longer than `limit` positions."""
    lengths = sorted({each.tokens for each in changes})
    shapes = set()
    for text in texts:
        last, source = text.end - 1, text.source
        straddled = [each for each in lengths if text.first <= each < last]
        before = [each for each in lengths if each < text.first]
        source_before = [each for each in lengths if each < source]
        own_source = _source(source_before[-1:], lengths, limit) if is_encoder_decoder else 0
        for length in straddled:
            end = min(length + _STEPS, _room(length, lengths, limit) + 1)
            shapes.add(Shape(own_source, max(1, length - 1), end))
        if before or not straddled:
            shapes.add(_beyond(own_source, before[-1] if before else 0, lengths, limit))
    return sorted(shapes, key=lambda each: each.longest)


def _beyond(source: int, length: int, lengths: list[int], limit: int | None) -> Shape:
    """A probe whose steps all have more than `length` tokens before them, and no more than the next length."""
    room = _room(length, lengths, limit)
    prompt = 1 if source else _PROMPT
    first = max(length + 1, min(prompt, room - _STEPS + 1))
    return Shape(source, first, min(first + _STEPS, room + 1))


def _source(before: list[int], lengths: list[int], limit: int | None) -> int:
    """Tokens of an encoder's probe behind the last of the lengths `before`."""
    length = before[0] if before else 0
    return min(max(length + _STEPS + 1, _PROMPT + _STEPS), _room(length, lengths, limit))


def _room(length: int, lengths: list[int], limit: int | None) -> int:
    """The most tokens of a probe that is beyond `length` and not beyond the next one."""
    following = [each for each in lengths if each > length]
    return min(following[0] if following else length + _PROMPT + _STEPS, limit or 10**9)
