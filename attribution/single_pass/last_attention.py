"""Splits a decoder at its last attention layer, so that one backward pass serves all steps above the split.

Above the last attention a step depends on its own position alone, and of the last attention it reads one query. With a
copy of the keys and values for each step, one backward from the head to those copies gives the gradients of all steps.
Each step then needs a backward of its own only from the keys, the values and its position down to the embeddings; the
last block's feed-forward, output projection and attention map are not run again.
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

from attribution.single_pass.fused_attention import AttentionResult, attend, eager_attention_of, using_attention

# Names of an attention module's output projection in Transformers' families.
_PROJECTIONS = ("o_proj", "out_proj", "c_proj", "dense")
_NAME = "inseq_single_pass"

Hidden = torch.Tensor


@dataclass(frozen=True)
class LastBlock:
    """The last block of a decoder, the attention in it and its output projection."""

    block: torch.nn.Module
    attention: torch.nn.Module
    output_projection: torch.nn.Module


@dataclass
class Cut:
    """Tensors that a forward records at the last attention, in two lists of equal length.

    The gradient at a leaf continues from its anchor, the attached original. `leaves` are detached copies, except for
    the block's input, which is the same tensor in both lists. The first `step_leaves` leaves have an axis of steps:
    each step has a copy of its own.
    """

    last_block: LastBlock
    positions: slice  # of the steps
    is_fused: bool  # whether the attentions below are fused
    anchors: list[torch.Tensor] = field(default_factory=list)
    leaves: list[torch.Tensor] = field(default_factory=list)
    step_leaves: int = 0


def find_last_block(network: torch.nn.Module) -> LastBlock | None:
    """Finds the last block's attention and output projection; None if the layout is unknown."""
    stacks = [module for module in network.modules() if isinstance(module, torch.nn.ModuleList) and len(module)]
    if not stacks:
        return None
    block = max(stacks, key=len)[-1]
    for name, module in block.named_children():
        if "attn" in name or "attention" in name:
            found = [getattr(module, each) for each in _PROJECTIONS if hasattr(module, each)]
            if len(found) == 1 and "Attention" in type(module).__name__:
                return LastBlock(block, module, found[0])
    return None


@contextmanager
def cut_at(network: Any, last_block: LastBlock, positions: slice, *, is_fused: bool) -> Iterator[Cut]:
    """Split one forward of the network at its last attention within the block, for steps at these positions.

    The `Cut` is filled by that forward. With `is_fused`, the attentions below the last one are fused.
    """
    cut = Cut(last_block, positions, is_fused)

    def before_block(_: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        below = arguments[0] if arguments else named["hidden_states"]
        cut.anchors.append(below)
        cut.leaves.append(below)

    def before_projection(_: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        if cut.step_leaves:
            return arguments
        # This attention bypasses AttentionInterface, so cut at its output projection instead.
        leaf = arguments[0].detach().requires_grad_()
        cut.anchors.append(arguments[0])
        cut.leaves.append(leaf)
        return (leaf, *arguments[1:])

    handles = [
        last_block.block.register_forward_pre_hook(before_block, with_kwargs=True),
        last_block.output_projection.register_forward_pre_hook(before_projection),
    ]
    ours: AbstractContextManager[None] = nullcontext()
    if network.config._attn_implementation == "eager" and eager_attention_of(last_block.attention):  # noqa: SLF001 - no public getter
        ours = using_attention(network, _NAME)
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
) -> AttentionResult:
    """The network's attention; in the last block only at the steps' positions. Signature of `AttentionInterface`."""
    cut = _current.get()
    assert cut is not None
    if module is cut.last_block.attention:
        return _at_steps(cut, query, key, value, _additive(attention_mask, query), **more)
    return attend(module, query, key, value, attention_mask, is_fused=cut.is_fused, **more)


def _additive(mask: torch.Tensor | None, query: torch.Tensor) -> torch.Tensor:
    """The mask that eager attention adds to its scores ([1, 1, queries, keys]).

    Fused attention's masks are boolean (True: visible), or None for plain causal attention.
    """
    if mask is None:
        places = torch.arange(query.shape[2], device=query.device)
        mask = (places[:, None] >= places)[None, None]
    if mask.dtype == torch.bool:
        mask = query.new_zeros(()).where(mask, torch.finfo(query.dtype).min)
    return mask


def _mask(**named: Any) -> torch.Tensor | None:
    """The mask that the attentions below the last one expect."""
    cut = _current.get()
    assert cut is not None
    mask: torch.Tensor | None = (sdpa_mask if cut.is_fused else eager_mask)(**named)
    return mask


def _at_steps(
    cut: Cut, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, **more: Any
) -> AttentionResult:
    """Eager attention of the steps' queries alone, each step with its own leaf copies of the keys and values."""
    rows, heads, length, _ = query.shape
    queries = query[:, :, cut.positions].transpose(1, 2)  # [rows, steps, heads, width]
    steps = queries.shape[1]
    leaves = [each.detach()[:, None].expand(-1, steps, -1, -1, -1).requires_grad_() for each in (key, value)]
    # The block's pre-hook has already recorded the block's input. `Graph` expects the leaves with an axis of steps
    # first, so keys and values go in front. Both lists grow by two entries: anchors and leaves stay paired by index.
    cut.anchors = [key, value, *cut.anchors]
    cut.leaves = [*leaves, *cut.leaves]
    cut.step_leaves = len(leaves)
    seen = mask[:, :, cut.positions].transpose(1, 2).expand(rows, -1, -1, -1)
    mixed, _ = attend(
        cut.last_block.attention,
        queries.flatten(0, 1)[:, :, None],
        *(each.flatten(0, 1) for each in leaves),
        seen.flatten(0, 1)[:, :, None],  # [rows * steps, 1, 1, length]
        is_fused=False,
        **more,
    )
    # No step reads other positions, so they stay zero.
    everywhere = mixed.new_zeros((rows, length, heads, mixed.shape[-1]))
    everywhere[:, cut.positions] = mixed.reshape(rows, steps, heads, -1)
    return everywhere, None


# Transformers looks attention functions up by name in registries that are global to the process. We register ours once,
# at import, under a name of our own. No model uses it outside `cut_at`, so other models are unaffected.
AttentionInterface.register(_NAME, _attention)
AttentionMaskInterface.register(_NAME, _mask)
