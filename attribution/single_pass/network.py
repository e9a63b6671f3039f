"""Runs a Transformers model in two parts: its body, up to the hidden states of the steps, and its LM head.

Logits take a third of a small model's time and most of its memory, so they are computed for attributed positions only,
a few rows at a time. Knows nothing of attribution methods.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from inseq.models import HuggingfaceModel

from attribution.network_state import as_one_call
from attribution.single_pass.blockwise_attention import blockwise
from attribution.single_pass.fused_attention import FUSED, can_be_fused, using_attention
from attribution.single_pass.last_attention import cut_at, find_last_block
from problems import UnsupportedByModel

# Relative to the largest logit: far above float rounding, far below the difference of a wrongly rebuilt head.
_TOLERANCE = 1e-3


class SplitModel:
    """A model's body and LM head, called on embeddings as Inseq calls it: a mask of ones, and no key-value cache."""

    def __init__(self, model: HuggingfaceModel) -> None:
        """Raises `UnsupportedByModel` for a network without an output embedding module."""
        self.network = model.model
        self.is_encoder_decoder = bool(model.is_encoder_decoder)
        head = self.network.get_output_embeddings()
        if not isinstance(head, torch.nn.Module):
            raise UnsupportedByModel(f"{type(self.network).__name__} has no output embedding module.")
        self._head = head
        self._is_checked = False
        self.is_fused = can_be_fused(self.network)  # attention stores no maps
        self._last_block = None if self.is_encoder_decoder else find_last_block(self.network)

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.network.dtype
        return dtype

    def states(self, *embeddings: torch.Tensor, positions: slice = slice(None), **more: Any) -> torch.Tensor:
        """The hidden states at these positions, the head's input: [rows, positions, width].

        `embeddings` are the prefix's ([rows, length, width]), or the source's and the decoder's; `more` is passed to
        the network's forward. Raises `UnsupportedByModel` if the network does not call its head exactly once, or
        changes the logits afterwards in a way that `logits` does not reproduce.
        """
        if self._last_block is not None and not torch.is_grad_enabled():
            attention: AbstractContextManager[None] = blockwise(
                self.network, self._last_block, positions, is_fused=self.is_fused
            )
        else:
            attention = using_attention(self.network, FUSED) if self.is_fused else nullcontext()
        with attention:
            return self._states(embeddings, positions, more)

    def graph(self, *embeddings: torch.Tensor, positions: slice) -> Graph:
        """A forward of these embeddings whose gradient is taken for each step.

        `positions` are those of the steps. Raises `UnsupportedByModel` as `states` does, and for an unknown last block.
        """
        if self._last_block is None:
            states = self.states(*embeddings, positions=positions)
            return Graph(states, (states,), (), 0, 0)
        with cut_at(self.network, self._last_block, positions, is_fused=self.is_fused) as cut:
            states = self._states(embeddings, positions, {})
        if len(cut.leaves) != cut.step_leaves + (1 if cut.step_leaves else 2):
            raise UnsupportedByModel(
                f"{type(self.network).__name__} does not run its last block once, as other families do."
            )
        return Graph(states, tuple(cut.anchors), tuple(cut.leaves), cut.step_leaves, positions.start)

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Apply the LM head and the scaling that families put behind it: [rows, width] to [rows, vocabulary]."""
        config = self.network.config.get_text_config(decoder=True)
        logits: torch.Tensor = self._head(states)
        if scale := getattr(config, "logit_scale", None):
            logits = logits * scale
        if scaling := getattr(config, "logits_scaling", None):
            logits = logits / scaling
        if cap := getattr(config, "final_logit_softcapping", None):
            logits = (logits / cap).tanh() * cap
        if (bias := getattr(self.network, "final_logits_bias", None)) is not None:
            logits = logits + bias
        return logits

    def encoded(self, source: torch.Tensor) -> Any:
        """The encoder's output for source embeddings ([rows, length, width])."""
        with as_one_call(self.network):
            return self.network.get_encoder()(inputs_embeds=source, attention_mask=_ones(source))

    def _states(self, embeddings: tuple[torch.Tensor, ...], positions: slice, more: dict[str, Any]) -> torch.Tensor:
        caught: list[torch.Tensor] = []

        def before_head(_: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            caught.append(arguments[0])
            # The head runs on one position only, which is enough for `_check_head`.
            return (arguments[0].detach()[:1, :1], *arguments[1:])

        handle = self._head.register_forward_pre_hook(before_head)
        try:
            output = self.network(**{**self._inputs(embeddings), "use_cache": False, **more})
        finally:
            handle.remove()
        if len(caught) != 1:
            raise UnsupportedByModel(f"{type(self.network).__name__} does not call its output embedding exactly once.")
        (states,) = caught
        if not self._is_checked:
            self.check_head(states, output.logits)
        return states[:, positions]

    def _inputs(self, embeddings: tuple[torch.Tensor, ...]) -> dict[str, Any]:
        prefix = embeddings[0]
        inputs = {"inputs_embeds": prefix, "attention_mask": _ones(prefix)}
        if self.is_encoder_decoder:
            target = embeddings[1]
            inputs |= {"decoder_inputs_embeds": target, "decoder_attention_mask": _ones(target)}
        return inputs

    @torch.no_grad()
    def check_head(self, states: torch.Tensor, logits: torch.Tensor) -> None:
        """Raise `UnsupportedByModel` unless `logits` makes the network's own [1, 1, vocabulary] of the first state."""
        ours = self.logits(states[:1, :1].reshape(1, -1)).float()
        theirs = logits.reshape(1, -1).float()
        scale = float(theirs.abs().max())
        if ours.shape != theirs.shape or not bool(((ours - theirs).abs() <= _TOLERANCE * scale).all()):
            raise UnsupportedByModel(
                f"{type(self.network).__name__} changes its logits after the head in an unknown way."
            )
        self._is_checked = True


def _ones(embeddings: torch.Tensor) -> torch.Tensor:
    return torch.ones(embeddings.shape[:2], dtype=torch.long, device=embeddings.device)


@dataclass(frozen=True)
class Graph:
    """A forward's autograd graph in two pieces; `states` are the hidden states [rows, steps, width].

    `anchors` are the attached originals of `leaves` (see `last_attention.Cut`). Backward to leaves runs once, from
    anchors once per step. The first `step_leaves` leaves have an axis of steps ([rows, steps, ...]); of the other
    leaves ([rows, length, ...]) a step uses its own position alone. Without leaves, the anchor is `states` itself.
    """

    states: torch.Tensor
    anchors: tuple[torch.Tensor, ...]
    leaves: tuple[torch.Tensor, ...]
    step_leaves: int
    first_position: int  # of the first step, in an anchor without an axis of steps

    def gradients_at_leaves(self, gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Gradients of all steps with respect to the leaves, from those with respect to the states."""
        if not self.leaves:
            return (gradients,)
        return torch.autograd.grad(self.states, self.leaves, gradients, retain_graph=True)

    def pull_back(
        self, at_leaves: tuple[torch.Tensor, ...], steps: range, inputs: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, ...]:
        """The gradient of each of these steps with respect to each input: [steps, *input.shape].

        `at_leaves` is what `gradients_at_leaves` returned.
        """
        cotangents = []
        for index, (anchor, gradients) in enumerate(zip(self.anchors, at_leaves, strict=True)):
            if index < self.step_leaves:
                cotangents.append(gradients[:, steps.start : steps.stop].transpose(0, 1))
                continue
            rows = anchor.new_zeros((len(steps), *anchor.shape))
            for place, step in enumerate(steps):
                rows[place, :, self.first_position + step] = gradients[:, self.first_position + step]
            cotangents.append(rows)
        return pull_back(self.anchors, inputs, tuple(cotangents))


def pull_back(
    outputs: tuple[torch.Tensor, ...],
    inputs: tuple[torch.Tensor, ...],
    cotangents: tuple[torch.Tensor, ...],
) -> tuple[torch.Tensor, ...]:
    """Vector-Jacobian products of `outputs`: cotangents [count, *output.shape] to gradients [count, *input.shape].

    Zeros for an input that the outputs do not depend on. The graph is retained for further calls.
    """
    count = cotangents[0].shape[0]
    if count == 1:
        single = [each[0] for each in cotangents]
        found = torch.autograd.grad(outputs, inputs, single, retain_graph=True, allow_unused=True)
        found = tuple(None if each is None else each[None] for each in found)
    else:
        found = torch.autograd.grad(
            outputs, inputs, cotangents, retain_graph=True, is_grads_batched=True, allow_unused=True
        )
    return tuple(
        x.new_zeros((count, *x.shape)) if gradient is None else gradient
        for gradient, x in zip(found, inputs, strict=True)
    )
