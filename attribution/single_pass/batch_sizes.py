"""How much is done at once: bounded by free memory, and by what a device is fast with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from attribution.model_cache.device_memory import memory_of
from attribution.single_pass.network import Trunk

# Positions in one forward or backward, over its rows: beyond it a processor gains nothing by more.
_CPU_POSITIONS, _GPU_POSITIONS = 1024, 65536
_LOGITS_BYTES = 64 * 1024**2
_STEPS_BYTES = 1024**3
_FORWARD, _BACKWARD = 2.5, 0.8  # a part has its own cut, head and bookkeeping beside its forward
_SHARE = 0.25  # of the free memory


# Set where a device ran out of memory: everything is then done in pieces so many times smaller.
_DIVISOR: ContextVar[int] = ContextVar("divisor", default=1)


@contextmanager
def smaller_pieces(divisor: int) -> Iterator[None]:
    """Within the block, pieces are smaller by this factor."""
    token = _DIVISOR.set(divisor)
    try:
        yield
    finally:
        _DIVISOR.reset(token)


def rows_of_logits(trunk: Trunk) -> int:
    """How many rows of logits are made at once."""
    vocabulary = int(trunk.network.config.get_text_config(decoder=True).vocab_size)
    return max(1, _LOGITS_BYTES // (vocabulary * trunk.dtype.itemsize) // _DIVISOR.get())


def rows_at_once(trunk: Trunk, positions: int, *, with_graph: bool) -> int:
    """How many rows of this many positions a forward takes at once, or a backward of one graph."""
    device = trunk.network.device
    fast = _GPU_POSITIONS if device.type == "cuda" else _CPU_POSITIONS
    room = int(memory_of(device).free * _SHARE) // max(1, row_bytes(trunk, positions, with_graph=with_graph))
    return max(1, min(fast // max(1, positions), room) // _DIVISOR.get())


def steps_at_once(trunk: Trunk, steps: range, positions: int, rows: int) -> int:
    """How many steps share a forward: each keeps keys and values of its own for every row, and a step has no use for
    the positions behind it, which a longer forward has.
    """
    config = trunk.network.config.get_text_config(decoder=True)
    each = 4 * rows * positions * int(config.hidden_size) * trunk.dtype.itemsize
    room = max(1, min(_STEPS_BYTES, int(memory_of(trunk.network.device).free * _SHARE)) // each)
    count, before = len(steps), positions - len(steps)
    parts = min(
        range(1, count + 1),
        # The cost of a part's forward and of its steps' backwards, for each of its positions.
        key=lambda parts: (_FORWARD + _BACKWARD * count / parts) * (parts * before + count * (parts + 1) / 2),
    )
    return max(1, min(room, -(-count // parts)) // _DIVISOR.get())


def row_bytes(trunk: Trunk, positions: int, *, with_graph: bool) -> int:
    """An upper estimate of what one row of a forward keeps: activations of every layer for a graph, else of one.

    After Korthikanti et al., 2022 (https://arxiv.org/abs/2205.05198): 17 widths and 2.5 attention maps a layer; no
    maps where attention is fused, but a mask where rows share a prefix.
    """
    config = trunk.network.config.get_text_config(decoder=True)
    width, heads = int(config.hidden_size), int(config.num_attention_heads)
    layers = int(config.num_hidden_layers) * (2 if trunk.is_encoder_decoder else 1) if with_graph else 2
    maps = 1 if trunk.is_fused else 3 * heads
    return layers * positions * (17 * width + maps * positions) * trunk.dtype.itemsize


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the machine refused memory."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
