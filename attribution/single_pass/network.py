"""A network up to its head: hidden states of the target positions, and the head that makes logits of them.

Logits are a third of a small model's work and of most of its memory, so they are made for the positions that are read,
a few rows at a time.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from inseq.models import HuggingfaceModel

from attribution.single_pass.blockwise_attention import blockwise
from attribution.single_pass.fused_attention import FUSED, attention_of, can_be_fused
from attribution.single_pass.last_attention import cut_at, top_of
from problems import UnsupportedByModel

# Relative to the largest logit: far above float rounding, far below another head.
_TOLERANCE = 1e-3


class Trunk:
    """One network, called on embeddings as Inseq calls it: with a mask of ones, and no key-value cache."""

    def __init__(self, model: HuggingfaceModel) -> None:
        """Raises `UnsupportedByModel` for a network without a head that could be run by itself."""
        self.network = model.model
        self.is_encoder_decoder = bool(model.is_encoder_decoder)
        head = self.network.get_output_embeddings()
        if not isinstance(head, torch.nn.Module):
            raise UnsupportedByModel(f"{type(self.network).__name__} has no output embedding to take apart.")
        self._head = head
        self._is_checked = False
        self.is_fused = can_be_fused(self.network)  # attention keeps no maps
        self._top = None if self.is_encoder_decoder else top_of(self.network)

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.network.dtype
        return dtype

    def states(self, *embeddings: torch.Tensor, positions: slice = slice(None), **more: Any) -> torch.Tensor:
        """What the head reads: [rows, positions, width].

        `embeddings` are the prefix's ([rows, length, width]), or the source's and the decoder's; `more` goes to the
        network.
        """
        if self._top is not None and not torch.is_grad_enabled():
            attention: AbstractContextManager[None] = blockwise(
                self.network, self._top, positions, is_fused=self.is_fused
            )
        else:
            attention = attention_of(self.network, FUSED) if self.is_fused else nullcontext()
        with attention:
            return self._states(embeddings, positions, more)

    def graph(self, *embeddings: torch.Tensor, positions: slice) -> Graph:
        """As `states`, to be differentiated step by step."""
        if self._top is None:
            states = self.states(*embeddings, positions=positions)
            return Graph(states, (states,), (), 0, 0)
        with cut_at(self.network, self._top, positions, is_fused=self.is_fused) as cut:
            states = self._states(embeddings, positions, {})
        if len(cut.leaves) != cut.dense + (1 if cut.dense else 2):
            raise UnsupportedByModel(f"{type(self.network).__name__} runs its last block in a way of its own.")
        return Graph(states, tuple(cut.anchors), tuple(cut.leaves), cut.dense, positions.start)

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """The head: [rows, width] to [rows, vocabulary]."""
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
        return self.network.get_encoder()(inputs_embeds=source, attention_mask=_ones(source))

    def _states(self, embeddings: tuple[torch.Tensor, ...], positions: slice, more: dict[str, Any]) -> torch.Tensor:
        caught: list[torch.Tensor] = []

        def before_head(_: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            caught.append(arguments[0])
            # One row is enough to see that the head is understood.
            return (arguments[0].detach()[:1, :1], *arguments[1:])

        handle = self._head.register_forward_pre_hook(before_head)
        try:
            output = self.network(**{**self._inputs(embeddings), "use_cache": False, **more})
        finally:
            handle.remove()
        if len(caught) != 1:
            raise UnsupportedByModel(f"{type(self.network).__name__} does not call its output embedding once.")
        (states,) = caught
        if not self._is_checked:
            self._check_head(states, output.logits)
        return states[:, positions]

    def _inputs(self, embeddings: tuple[torch.Tensor, ...]) -> dict[str, Any]:
        prefix = embeddings[0]
        inputs = {"inputs_embeds": prefix, "attention_mask": _ones(prefix)}
        if self.is_encoder_decoder:
            target = embeddings[1]
            inputs |= {"decoder_inputs_embeds": target, "decoder_attention_mask": _ones(target)}
        return inputs

    @torch.no_grad()
    def _check_head(self, states: torch.Tensor, logits: torch.Tensor) -> None:
        ours = self.logits(states[:1, :1].reshape(1, -1)).float()
        theirs = logits.reshape(1, -1).float()
        scale = float(theirs.abs().max())
        if ours.shape != theirs.shape or not bool(((ours - theirs).abs() <= _TOLERANCE * scale).all()):
            raise UnsupportedByModel(f"{type(self.network).__name__} makes its logits in a way of its own.")
        self._is_checked = True


def _ones(embeddings: torch.Tensor) -> torch.Tensor:
    return torch.ones(embeddings.shape[:2], dtype=torch.long, device=embeddings.device)


@dataclass(frozen=True)
class Graph:
    """A forward to differentiate: `states` are [rows, steps, width].

    They depend on `leaves` in such a way that one backward serves all steps; the `anchors` are the same values with
    their history, from which each step needs a backward of its own. The first `dense` leaves have an axis of steps;
    of the other anchors a step has one position, its own.
    """

    states: torch.Tensor
    anchors: tuple[torch.Tensor, ...]
    leaves: tuple[torch.Tensor, ...]
    dense: int
    first: int  # the position of the first step in an anchor

    def at_anchors(self, gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Gradients with respect to the states, of all steps, as gradients with respect to the leaves."""
        if not self.leaves:
            return (gradients,)
        return torch.autograd.grad(self.states, self.leaves, gradients, retain_graph=True)

    def pull_back(
        self, at_anchors: tuple[torch.Tensor, ...], steps: range, inputs: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, ...]:
        """The gradient of each of these steps with respect to the inputs: [steps, *input.shape]."""
        cotangents = []
        for index, (anchor, gradients) in enumerate(zip(self.anchors, at_anchors, strict=True)):
            if index < self.dense:
                cotangents.append(gradients[:, steps.start : steps.stop].transpose(0, 1))
                continue
            rows = anchor.new_zeros((len(steps), *anchor.shape))
            for place, step in enumerate(steps):
                rows[place, :, self.first + step] = gradients[:, self.first + step]
            cotangents.append(rows)
        return pull_back(self.anchors, inputs, tuple(cotangents))


def pull_back(
    outputs: tuple[torch.Tensor, ...],
    inputs: tuple[torch.Tensor, ...],
    cotangents: tuple[torch.Tensor, ...],
) -> tuple[torch.Tensor, ...]:
    """Vector-Jacobian products of `outputs`: cotangents [count, *output.shape] to [count, *input.shape].

    The graph is kept.
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
