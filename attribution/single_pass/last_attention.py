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
from transformers.masking_utils import eager_mask, sdpa_mask

from attribution.single_pass.fused_attention import Attended, attend, attention_of, eager_of

# What the output projection of an attention module is called.
_PROJECTIONS = ("o_proj", "out_proj", "c_proj", "dense")
_NAME = "inseq_single_pass"

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
    is_fused: bool  # the attentions below
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
    cut = Cut(top, positions, is_fused)

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
        ours = attention_of(network, _NAME)
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
) -> Attended:
    """The attention below as it is; in the last block only at the steps' positions."""
    cut = _current.get()
    assert cut is not None
    if module is cut.top.attention:
        return _at_steps(cut, query, key, value, _added(attention_mask, query), **more)
    return attend(module, query, key, value, attention_mask, is_fused=cut.is_fused, **more)


def _added(mask: torch.Tensor | None, query: torch.Tensor) -> torch.Tensor:
    """A mask as eager attention adds it. A fused one's says what is seen, or is `None` for plain causal attention."""
    if mask is None:
        places = torch.arange(query.shape[2], device=query.device)
        mask = (places[:, None] >= places)[None, None]
    if mask.dtype == torch.bool:
        mask = query.new_zeros(()).where(mask, torch.finfo(query.dtype).min)
    return mask


def _mask(**named: Any) -> torch.Tensor | None:
    """The mask that the attentions below are made for."""
    cut = _current.get()
    assert cut is not None
    mask: torch.Tensor | None = (sdpa_mask if cut.is_fused else eager_mask)(**named)
    return mask


def _at_steps(
    cut: Cut, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, **more: Any
) -> Attended:
    """Eager attention of the steps' queries alone, each with keys and values that are a leaf of its own."""
    rows, heads, length, _ = query.shape
    queries = query[:, :, cut.positions].transpose(1, 2)  # [rows, steps, heads, width]
    steps = queries.shape[1]
    leaves = [each.detach()[:, None].expand(-1, steps, -1, -1, -1).requires_grad_() for each in (key, value)]
    cut.anchors[:0], cut.leaves[:0], cut.dense = [key, value], leaves, 2
    seen = mask[:, :, cut.positions].transpose(1, 2).expand(rows, -1, -1, -1)
    mixed, _ = attend(
        cut.top.attention,
        queries.flatten(0, 1)[:, :, None],
        *(each.flatten(0, 1) for each in leaves),
        seen.flatten(0, 1)[:, :, None],  # [rows * steps, 1, 1, length]
        is_fused=False,
        **more,
    )
    # What stands at other positions is read by no step.
    everywhere = mixed.new_zeros((rows, length, heads, mixed.shape[-1]))
    everywhere[:, cut.positions] = mixed.reshape(rows, steps, heads, -1)
    return everywhere, None


# Transformers' registries are one per process: a name of our own, in use only within `cut_at`.
AttentionInterface.register(_NAME, _attention)
AttentionMaskInterface.register(_NAME, _mask)
