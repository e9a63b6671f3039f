"""Batch sizes, limited by free memory and by the size at which throughput stops growing.

Knows model sizes and devices; knows nothing of attribution methods.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from transformers import PreTrainedModel

from attribution.model_cache.device_memory import memory_of
from attribution.single_pass.network import SplitModel

# Positions (rows x length) in one forward or backward, beyond which throughput stops growing.
_CPU_POSITIONS, _GPU_POSITIONS = 1024, 65536
_LOGITS_BYTES = 64 * 1024**2
_STEPS_BYTES = 1024**3
_FORWARD, _BACKWARD = 2.5, 0.8  # relative costs; a forward also pays for the cut, the head and bookkeeping
FORWARD_IN_STEPS = _FORWARD / _BACKWARD  # the time of a forward with a graph, in those of one step's backward
_SHARE = 0.25  # of the free memory

# After a device ran out of memory, all batch sizes are divided by this.
_DIVISOR: ContextVar[int] = ContextVar("divisor", default=1)


@contextmanager
def smaller_pieces(divisor: int) -> Iterator[None]:
    """Divide all batch sizes by this factor within the block."""
    token = _DIVISOR.set(divisor)
    try:
        yield
    finally:
        _DIVISOR.reset(token)


def rows_of_logits(split_model: SplitModel) -> int:
    """How many rows of logits ([rows, vocabulary]) to compute at once: at most 64 MiB of them."""
    vocabulary = int(split_model.network.config.get_text_config(decoder=True).vocab_size)
    return max(1, _LOGITS_BYTES // (vocabulary * split_model.dtype.itemsize) // _DIVISOR.get())


def rows_at_once(split_model: SplitModel, positions: int, *, with_graph: bool) -> int:
    """How many rows of `positions` tokens to run in one forward, or in one backward of one graph."""
    return _rows_of(split_model.network.device, positions, row_bytes(split_model, positions, with_graph=with_graph))


def rows_of_forward(network: PreTrainedModel, positions: int, *, last_logits: bool) -> int:
    """How many rows of `positions` tokens to run in one forward without a graph. `last_logits`: it computes the logits
    of the last position only.
    """
    each = 2 * _layer_bytes(network, positions, is_fused=False)
    rows = _rows_of(network.device, positions, each)
    if last_logits:
        return rows
    vocabulary = int(network.config.get_text_config(decoder=True).vocab_size)
    itemsize: int = network.dtype.itemsize
    return max(1, min(rows, _LOGITS_BYTES // (vocabulary * positions * itemsize)))


def usual_rows(positions: int) -> int:
    """How many rows of `positions` tokens are run at once on a CPU with free memory."""
    return max(1, _CPU_POSITIONS // max(1, positions))


def rows_of_layer(network: PreTrainedModel, positions: int) -> int:
    """How many rows of `positions` tokens to run in one layer without a graph."""
    return _rows_of(network.device, positions, _layer_bytes(network, positions, is_fused=False))


def steps_at_once(split_model: SplitModel, steps: range, positions: int, rows: int) -> int:
    """Steps per forward, where each step runs `rows` rows of up to `positions` tokens.

    Each step stores its own keys and values; longer forwards also compute positions that earlier steps ignore.
    """
    config = split_model.network.config.get_text_config(decoder=True)
    each = 4 * rows * positions * int(config.hidden_size) * split_model.dtype.itemsize
    room = max(1, min(_STEPS_BYTES, int(memory_of(split_model.network.device).free * _SHARE)) // each)
    count, before = len(steps), positions - len(steps)
    parts = min(
        range(1, count + 1),
        # Cost of all forwards and backwards when the steps are divided into this many parts.
        key=lambda parts: (_FORWARD + _BACKWARD * count / parts) * (parts * before + count * (parts + 1) / 2),
    )
    return max(1, min(room, -(-count // parts)) // _DIVISOR.get())


def row_bytes(split_model: SplitModel, positions: int, *, with_graph: bool) -> int:
    """Bytes that one row of a forward holds, estimated from above: all layers' activations with a graph, else two's.

    After Korthikanti et al., 2022 (https://arxiv.org/abs/2205.05198): 17 widths and 2.5 attention maps a layer. Fused
    attention stores no maps, but needs a mask where rows share a prefix.
    """
    config = split_model.network.config.get_text_config(decoder=True)
    layers = int(config.num_hidden_layers) * (2 if split_model.is_encoder_decoder else 1) if with_graph else 2
    return layers * _layer_bytes(split_model.network, positions, is_fused=split_model.is_fused)


def _rows_of(device: torch.device, positions: int, each: int) -> int:
    """How many rows to run at once, of so many bytes each."""
    fast = _GPU_POSITIONS if device.type == "cuda" else _CPU_POSITIONS
    room = int(memory_of(device).free * _SHARE) // max(1, each)
    return max(1, min(fast // max(1, positions), room) // _DIVISOR.get())


def _layer_bytes(network: PreTrainedModel, positions: int, *, is_fused: bool) -> int:
    config = network.config.get_text_config(decoder=True)
    heads = getattr(config, "num_attention_heads", None) or 0  # Mamba and RWKV have none
    maps = 1 if is_fused else 3 * (heads if isinstance(heads, int) else max(heads))
    itemsize: int = network.dtype.itemsize
    return positions * (17 * int(config.hidden_size) + maps * positions) * itemsize
