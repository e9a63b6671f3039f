"""Attention for forwards without a graph: a block of queries at a time, in the last layer only attributed positions.

A long text's map of attention scores exceeds a processor's cache, and every operation of eager attention moves the map
through memory: blocks of queries take a fifth of the time and almost no memory. Fused attention makes blocks by itself,
but with a mask (needed where rows share a prefix) it also computes the keys after a query.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from attribution.single_pass.fused_attention import AttentionResult, attend, eager_attention_of, using_attention
from attribution.single_pass.last_attention import LastBlock

_NAME = "inseq_blockwise"
# Attention scores (rows x heads x queries x keys) of one block: what fits a core's cache, and what keeps a GPU busy.
_CPU_SCORES, _GPU_SCORES = 2**19, 2**27
_FEWEST, _FEWEST_FUSED = 32, 256  # queries in a block
# Tensors that models pass to their attention functions, which ignore them.
_PASSED_ON = {"position_ids", "cache_position"}


@dataclass(frozen=True)
class _Settings:
    """In the attention module `last`, only the queries at `positions` of each row are computed."""

    last: torch.nn.Module
    positions: slice
    is_fused: bool


_current: ContextVar[_Settings | None] = ContextVar("blockwise_settings", default=None)


@contextmanager
def blockwise(network: Any, last_block: LastBlock, positions: slice, *, is_fused: bool) -> Iterator[None]:
    """Run a decoder-only network's forwards with blockwise attention within the block.

    For forwards without a graph, of rows without padding, whose caller reads only the hidden states at `positions`.
    `last_block` is `find_last_block(network)`; `is_fused` chooses fused or eager attention for each block.
    """
    eager = network.config._attn_implementation == "eager" and eager_attention_of(last_block.attention)  # noqa: SLF001 - no public getter
    if not eager:
        yield
        return
    token = _current.set(_Settings(last_block.attention, positions, is_fused))
    try:
        with using_attention(network, _NAME):
            yield
    finally:
        _current.reset(token)


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **more: Any,
) -> AttentionResult:
    """`query` is [rows, heads, queries, width]: the queries belong to the last positions of the keys."""
    settings, (rows, heads, count, _), length = _current.get(), query.shape, key.shape[2]
    assert settings is not None
    wanted = range(count)[settings.positions] if module is settings.last else range(count)
    scores = _GPU_SCORES if query.device.type == "cuda" else _CPU_SCORES
    block = max(_FEWEST_FUSED if settings.is_fused else _FEWEST, scores // (rows * heads * length))
    # An unknown tensor may hold a value for each query, so it cannot be cut into blocks.
    unknown = (name for name, each in more.items() if isinstance(each, torch.Tensor) and name not in _PASSED_ON)
    if len(wanted) == count <= block or any(unknown):
        return attend(module, query, key, value, attention_mask, is_fused=settings.is_fused, **more)
    mixed: torch.Tensor = value.new_zeros((rows, count, heads, value.shape[-1]))
    for first in range(wanted.start, wanted.stop, block):
        queries = slice(first, min(first + block, wanted.stop))
        seen = slice(length - count + queries.stop)  # attention is causal: later keys do not count
        mask = None if attention_mask is None else attention_mask[:, :, queries, seen]
        pieces = query[:, :, queries], key[:, :, seen], value[:, :, seen], mask
        mixed[:, queries], _ = attend(module, *pieces, is_fused=settings.is_fused, **more)
    return mixed, None


def _mask(batch_size: int, *, attention_mask: torch.Tensor | None = None, **more: Any) -> torch.Tensor:  # noqa: ARG001
    """The model's own mask for one row: without padding it is the same for all rows."""
    mask: torch.Tensor = eager_mask(1, **more)
    return mask


# Transformers looks attention functions up by name in registries that are global to the process. We register ours once,
# at import, under a name of our own. No model uses it outside `blockwise`, so other models are unaffected.
AttentionInterface.register(_NAME, _attention)
AttentionMaskInterface.register(_NAME, _mask)
