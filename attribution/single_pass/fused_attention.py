"""Chooses a forward's attention: the family's eager one, or torch's fused one, which stores no attention maps.

Models are loaded with `eager` attention, because two of Inseq's methods read its maps. The maps grow with the square of
the text's length, and every step's backward reads them again. `scaled_dot_product_attention` recomputes them in blocks
that fit into a processor's cache (Dao et al., 2022, https://arxiv.org/abs/2205.14135), with the same results.
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

from attribution import network_state

FUSED = "sdpa"
# An attention function's output ([rows, queries, heads, width]) and its maps, or None.
AttentionResult: TypeAlias = tuple[torch.Tensor, torch.Tensor | None]


def can_be_fused(network: PreTrainedModel) -> bool:
    """Whether fused attention can replace eager attention in this network.

    Transformers must support it for the family (it does not for one that caps its maps) and call it through
    `AttentionInterface`. Only in float32: in float64 many families compute their maps in float32, which fused attention
    does not, and in half precision it rounds at other places, which put a small model's probe outside the tolerance.
    Not where a position bias is added to the maps: fused kernels would read the bias in full.
    """
    eager = network.config._attn_implementation == "eager"  # noqa: SLF001 - Transformers has no public getter
    if not eager or not network._supports_sdpa or network.dtype != torch.float32:  # noqa: SLF001
        return False
    own = {eager for module in network.modules() if (eager := eager_attention_of(module))}
    return bool(own) and not any("position_bias" in signature(each).parameters for each in own)


def eager_attention_of(module: nn.Module) -> Callable[..., Any] | None:
    """The family's eager attention function; None where the module does not call one through `AttentionInterface`."""
    found: Callable[..., Any] | None = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    return found


def attend(module: nn.Module, *tensors: torch.Tensor | None, is_fused: bool, **more: Any) -> AttentionResult:
    """Call fused or eager attention on query, key, value and mask, with the signature of `AttentionInterface`."""
    function: Callable[..., AttentionResult] | None = sdpa_attention_forward if is_fused else eager_attention_of(module)
    assert function is not None
    return function(module, *tensors, **more)


@contextmanager
def using_attention(network: PreTrainedModel, name: str) -> Iterator[None]:
    """Make the network use the attention registered under this name within the block; the caller holds its lock."""
    # An encoder and a decoder may have separate configs.
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
        network_state.end(network)
        for config, implementation in before:
            config._attn_implementation = implementation  # noqa: SLF001
