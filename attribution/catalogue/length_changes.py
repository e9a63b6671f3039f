"""The lengths behind which a model computes otherwise, by its configuration: windows, chunks, rescaled positions."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Protocol

from transformers import PretrainedConfig

# Names of lengths in tokens: `sliding_window`, `attention_chunk_size`, `block_size`, `local_radius`, `index_topk`.
_LENGTH = re.compile(r"window|chunk|block_size|local_radius|index_topk$")
# What such a word names besides: counts, patterns of layers, parts of the feed-forward computation.
_NO_LENGTH = re.compile(r"layers|pattern|num|indic|indexes|kernel|feed_forward|lm_head|inference")
_LINEAR_CHUNK = 64  # tokens that linear attention (Qwen3-Next) reads at once, a constant of its code


class Effect(IntEnum):
    """What happens to a text that grows past a length."""

    FAR = 0  # a position reads less of what stands before it, or reads it in another order; earlier positions stay
    RESCALED_ONCE = 1  # all positions are rescaled, those before this length too (LongRoPE)
    RESCALED_ALWAYS = 2  # all positions are rescaled again with each token (dynamic NTK)


@dataclass(frozen=True, order=True)
class LengthChange:
    """A model computes otherwise for more than so many tokens."""

    tokens: int
    effect: Effect = Effect.FAR


class Span(Protocol):
    """A text in tokens; each of its steps is computed from the target's first `first` to `end` - 1 tokens."""

    @property
    def source(self) -> int:
        """Of an encoder; 0 without one."""

    @property
    def first(self) -> int: ...

    @property
    def end(self) -> int: ...


def length_changes(config: PretrainedConfig) -> list[LengthChange]:
    """The changes of a model's text part, shortest first."""
    texts = [config.get_text_config(decoder=True), config.get_text_config(encoder=True)]
    return sorted({change for text in texts for change in (*_far(text), *_rescaled(text))})


def dynamic_factor(config: PretrainedConfig) -> float:
    """How many times its `max_position_embeddings` a model's rotary positions are made for: 1, but for dynamic NTK."""
    ropes = [rope for rope in _ropes(config.get_text_config(decoder=True)) if _kind(rope) == "dynamic"]
    return max((float(rope.get("factor") or 1) for rope in ropes), default=1.0)


def is_straddled(change: LengthChange, spans: Sequence[Span]) -> bool:
    """Whether a text has steps on both sides of a change."""
    return any(each.first <= change.tokens < each.end - 1 for each in spans)


def rescaling_within(changes: Sequence[LengthChange], spans: Sequence[Span]) -> LengthChange | None:
    """A change because of which two steps of one of these texts have different positions for the same tokens, so that
    no single forward has the numbers of both; None if there is none.
    """
    for change in changes:
        if change.effect is Effect.RESCALED_ALWAYS and any(each.end - 1 > change.tokens for each in spans):
            return change
        if change.effect is Effect.RESCALED_ONCE and is_straddled(change, spans):
            return change
    return None


def _far(config: Any) -> Iterator[LengthChange]:
    lengths = []
    for name, value in vars(config).items():
        if _LENGTH.search(name) and not _NO_LENGTH.search(name):
            given = value if isinstance(value, (list, tuple)) else (value,)
            lengths += [each for each in given if isinstance(each, int) and each > 1]
    if (blocks := getattr(config, "num_random_blocks", None)) and getattr(config, "block_size", None):
        lengths.append((5 + 2 * blocks) * config.block_size)  # up to here, BigBird takes full attention
    if not lengths and "linear_attention" in (getattr(config, "layer_types", None) or ()):
        lengths.append(_LINEAR_CHUNK)
    yield from map(LengthChange, lengths)


def _rescaled(config: Any) -> Iterator[LengthChange]:
    longest = getattr(config, "max_position_embeddings", None)
    for rope in _ropes(config):
        if _kind(rope) == "dynamic" and longest:
            yield LengthChange(int(longest), Effect.RESCALED_ALWAYS)
        elif _kind(rope) in {"longrope", "su"}:
            original = rope.get("original_max_position_embeddings")
            original = original or getattr(config, "original_max_position_embeddings", None) or longest
            if original:
                yield LengthChange(int(original), Effect.RESCALED_ONCE)


def _ropes(config: Any) -> list[dict[str, Any]]:
    """The settings of rotary positions, of all layers or for each kind of layer."""
    given = [getattr(config, name, None) for name in ("rope_parameters", "rope_scaling")]
    return [each for one in given if one for each in (one, *one.values()) if isinstance(each, dict)]


def _kind(rope: dict[str, Any]) -> str:
    return str(rope.get("rope_type") or rope.get("type"))
