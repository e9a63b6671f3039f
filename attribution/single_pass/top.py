"""The top of a decoder: below its last attention steps share positions, above it each position is alone.

A step reads one query of the last attention. Asked for with keys and values of its own for each step, one backward
serves all steps down to there: what is left for each step is the way from those keys, values and its own position down
to the embeddings. The last block's feed-forward, output projection and attention map are then never repeated.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from attribution.single_pass.attention import attention_of, eager_of

# What the output projection of an attention module is called.
_PROJECTIONS = ("o_proj", "out_proj", "c_proj", "dense")
_NAME, _FUSED_NAME = "inseq_single_pass", "inseq_single_pass_fused"

Hidden = torch.Tensor


@dataclass(frozen=True)
class Top:
    """The last block of a decoder, the attention in it and its output projection."""

    block: torch.nn.Module
    attention: torch.nn.Module
    projection: torch.nn.Module


@dataclass
class Cut:
    """What a forward leaves behind at the last attention. `anchors` have the history of the forward, `leaves` are the
    same values without it; the first `dense` of them have one leaf for each step.
    """

    top: Top
    positions: slice  # of the steps
    anchors: list[torch.Tensor] = field(default_factory=list)
    leaves: list[torch.Tensor] = field(default_factory=list)
    dense: int = 0


def top_of(network: torch.nn.Module) -> Top | None:
    """The top of a decoder-only network, if it is where it usually is."""
    stacks = [module for module in network.modules() if isinstance(module, torch.nn.ModuleList) and len(module)]
    if not stacks:
        return None
    block = max(stacks, key=len)[-1]
    for name, module in block.named_children():
        if "attn" in name or "attention" in name:
            found = [getattr(module, each) for each in _PROJECTIONS if hasattr(module, each)]
            if len(found) == 1 and "Attention" in type(module).__name__:
                return Top(block, module, found[0])
    return None


@contextmanager
def cut_at(network: Any, top: Top, positions: slice, *, is_fused: bool) -> Iterator[Cut]:
    """Within the block, a forward of the network is cut at its top, for steps at these positions; with `is_fused`, the
    attentions below are fused ones.
    """
    cut = Cut(top, positions)

    def before_block(_: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        below = arguments[0] if arguments else named["hidden_states"]
        cut.anchors.append(below)
        cut.leaves.append(below)

    def before_projection(_: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        if cut.dense:
            return arguments
        # An attention that is not called through Transformers' interface: cut behind it.
        leaf = arguments[0].detach().requires_grad_()
        cut.anchors.append(arguments[0])
        cut.leaves.append(leaf)
        return (leaf, *arguments[1:])

    handles = [
        top.block.register_forward_pre_hook(before_block, with_kwargs=True),
        top.projection.register_forward_pre_hook(before_projection),
    ]
    ours: AbstractContextManager[None] = nullcontext()
    if network.config._attn_implementation == "eager" and eager_of(top.attention):  # noqa: SLF001 - no public getter
        ours = attention_of(network, _FUSED_NAME if is_fused else _NAME)
    token = _current.set(cut)
    try:
        with ours:
            yield cut
    finally:
        _current.reset(token)
        for handle in handles:
            handle.remove()


_current: ContextVar[Cut | None] = ContextVar("cut", default=None)


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **more: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The family's own eager attention; in the last block only at the steps' positions."""
    cut = _current.get()
    if cut is not None and module is cut.top.attention:
        return _at_steps(cut, module, query, key, value, attention_mask, **more)
    eager = eager_of(module)
    assert eager is not None
    found: tuple[torch.Tensor, torch.Tensor | None] = eager(module, query, key, value, attention_mask, **more)
    return found


def _fused_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **more: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """As `_attention`, with a mask that is `None` for plain causal attention, or says what is seen."""
    cut = _current.get()
    if cut is not None and module is cut.top.attention:
        if attention_mask is None:
            places = torch.arange(query.shape[2], device=query.device)
            attention_mask = (places[:, None] >= places)[None, None]
        if attention_mask.dtype == torch.bool:
            attention_mask = query.new_zeros(()).where(attention_mask, torch.finfo(query.dtype).min)
        return _at_steps(cut, module, query, key, value, attention_mask, **more)
    found: tuple[torch.Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **more)
    return found


def _at_steps(
    cut: Cut,
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of the steps' queries alone, each with keys and values that are a leaf of its own."""
    eager = eager_of(module)
    assert eager is not None
    rows, heads, length, _ = query.shape
    queries = query[:, :, cut.positions].transpose(1, 2)  # [rows, steps, heads, width]
    steps = queries.shape[1]
    leaves = [each.detach()[:, None].expand(-1, steps, -1, -1, -1).requires_grad_() for each in (key, value)]
    cut.anchors[:0], cut.leaves[:0], cut.dense = [key, value], leaves, 2
    if attention_mask is not None:
        mask = attention_mask[:, :, cut.positions].transpose(1, 2).expand(rows, -1, -1, -1)
        attention_mask = mask.flatten(0, 1)[:, :, None]  # [rows * steps, 1, 1, length]
    mixed, _ = eager(
        module, queries.flatten(0, 1)[:, :, None], *(each.flatten(0, 1) for each in leaves), attention_mask, **more
    )
    # What stands at other positions is read by no step.
    everywhere = mixed.new_zeros((rows, length, heads, mixed.shape[-1]))
    everywhere[:, cut.positions] = mixed.reshape(rows, steps, heads, -1)
    return everywhere, None


# Transformers' registries are one per process: names of our own, in use only within `cut_at`.
AttentionInterface.register(_NAME, _attention)
AttentionMaskInterface.register(_NAME, eager_mask)
AttentionInterface.register(_FUSED_NAME, _fused_attention)
AttentionMaskInterface.register(_FUSED_NAME, sdpa_mask)
