"""Which attention a forward uses: the family's own, or torch's fused one, which keeps no maps.

Inseq needs the maps of `eager` attention for two of its methods, so models are loaded with it. Its maps grow with the
square of the text, and every step's backward reads them again; `scaled_dot_product_attention` makes them anew in pieces
that fit into a processor's cache (Dao et al., 2022, https://arxiv.org/abs/2205.14135), to the same numbers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any, TypeAlias

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

FUSED = "sdpa"
# What an attention returns: [rows, queries, heads, width], and its maps where it has them.
Attended: TypeAlias = tuple[torch.Tensor, torch.Tensor | None]


def can_be_fused(network: PreTrainedModel) -> bool:
    """Whether Transformers has fused attention for the family (not where its maps are capped, for one), and calls it
    by its interface.

    Only in float32: in float64 users want digits, and many families make their maps in float32 whatever the model's
    type; in half precision fused attention rounds elsewhere, and a probe of a small model was off by more than the
    tolerance. And not where a bias is added to the maps, which fused kernels would read in full.
    """
    eager = network.config._attn_implementation == "eager"  # noqa: SLF001 - Transformers has no public getter
    if not eager or not network._supports_sdpa or network.dtype != torch.float32:  # noqa: SLF001
        return False
    own = {eager for module in network.modules() if (eager := eager_of(module))}
    return bool(own) and not any("position_bias" in signature(each).parameters for each in own)


def eager_of(module: nn.Module) -> Callable[..., Any] | None:
    """A family's own attention, where it is called by Transformers' interface and not spelled out in a module."""
    found: Callable[..., Any] | None = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    return found


def attend(module: nn.Module, *tensors: torch.Tensor | None, is_fused: bool, **more: Any) -> Attended:
    """Call a family's own attention, or the fused one in its place: query, key, value and mask, as by the interface."""
    function: Callable[..., Attended] | None = sdpa_attention_forward if is_fused else eager_of(module)
    assert function is not None
    return function(module, *tensors, **more)


@contextmanager
def attention_of(network: PreTrainedModel, name: str) -> Iterator[None]:
    """Within the block, the network uses this implementation; the caller holds its lock."""
    # An encoder and a decoder may have a config of their own.
    configs: dict[int, PreTrainedConfig] = {}
    for module in network.modules():
        if isinstance(module, PreTrainedModel):
            configs |= {id(each): each for each in (module.config, module.config.get_text_config(decoder=True))}
    before = [(config, config._attn_implementation) for config in configs.values()]  # noqa: SLF001
    try:
        for config, _ in before:
            config._attn_implementation = name  # noqa: SLF001 - its public setter checks names on the hub
        yield
    finally:
        for config, implementation in before:
            config._attn_implementation = implementation  # noqa: SLF001
