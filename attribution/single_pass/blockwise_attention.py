"""Attention without a graph, a few queries at a time, and in the last block only the queries that a step reads.

A long text's map of attention scores fits into no cache, and each operation of a family's own attention takes it
through memory: a few queries at a time take a fifth of the time, and no room. The fused one makes pieces by itself, but
with a mask, as rows that share a prefix have, it also reads what stands behind a query.
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

from attribution.single_pass.fused_attention import Attended, attend, attention_of, eager_of
from attribution.single_pass.last_attention import Top

_NAME = "inseq_blockwise"
# Attention scores of one block, over rows and heads: what a core's cache holds, and what keeps a GPU busy.
_CPU_SCORES, _GPU_SCORES = 2**19, 2**27
_FEWEST, _FEWEST_FUSED = 32, 256  # queries of a block
# What models hand through to their attention, which does not look at it.
_PASSED_ON = {"position_ids", "cache_position"}


@dataclass(frozen=True)
class _Reads:
    """What is read of a forward: above `last`, the last attention, these positions of each row alone."""

    last: torch.nn.Module
    positions: slice
    is_fused: bool


_current: ContextVar[_Reads | None] = ContextVar("reads", default=None)


@contextmanager
def blockwise(network: Any, top: Top, positions: slice, *, is_fused: bool) -> Iterator[None]:
    """Within the block, forwards of a decoder-only network without a graph, of rows without padding, of which only
    these positions are read. `top` is the network's (`top_of`).
    """
    eager = network.config._attn_implementation == "eager" and eager_of(top.attention)  # noqa: SLF001 - no public getter
    if not eager:
        yield
        return
    token = _current.set(_Reads(top.attention, positions, is_fused))
    try:
        with attention_of(network, _NAME):
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
) -> Attended:
    """`query` is [rows, heads, queries, width], of the last of the keys' positions."""
    reads, (rows, heads, count, _), length = _current.get(), query.shape, key.shape[2]
    assert reads is not None
    wanted = range(count)[reads.positions] if module is reads.last else range(count)
    scores = _GPU_SCORES if query.device.type == "cuda" else _CPU_SCORES
    block = max(_FEWEST_FUSED if reads.is_fused else _FEWEST, scores // (rows * heads * length))
    # A tensor that we do not know may have something for each query.
    unknown = (name for name, each in more.items() if isinstance(each, torch.Tensor) and name not in _PASSED_ON)
    if len(wanted) == count <= block or any(unknown):
        return attend(module, query, key, value, attention_mask, is_fused=reads.is_fused, **more)
    mixed: torch.Tensor = value.new_zeros((rows, count, heads, value.shape[-1]))
    for first in range(wanted.start, wanted.stop, block):
        queries = slice(first, min(first + block, wanted.stop))
        seen = slice(length - count + queries.stop)  # nothing behind a query matters to it
        mask = None if attention_mask is None else attention_mask[:, :, queries, seen]
        pieces = query[:, :, queries], key[:, :, seen], value[:, :, seen], mask
        mixed[:, queries], _ = attend(module, *pieces, is_fused=reads.is_fused, **more)
    return mixed, None


def _mask(batch_size: int, *, attention_mask: torch.Tensor | None = None, **more: Any) -> torch.Tensor:  # noqa: ARG001
    """The model's own mask, made for one row: without padding it is the same for all."""
    mask: torch.Tensor = eager_mask(1, **more)
    return mask


# Transformers' registries are one per process: a name of our own, in use only within `blockwise`.
AttentionInterface.register(_NAME, _attention)
AttentionMaskInterface.register(_NAME, _mask)
