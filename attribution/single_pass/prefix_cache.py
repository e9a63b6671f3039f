"""Keys and values of the prefix that perturbed rows share, so that forwards run only the positions after it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from attribution.single_pass.text_task import Task


@dataclass(frozen=True)
class PrefixCache:
    """Keys and values of the unperturbed prefix, for a decoder-only model with full attention."""

    task: Task
    layers: list[tuple[torch.Tensor, torch.Tensor]]  # each [1, heads, length, width of a head]

    @classmethod
    def of(cls, task: Task) -> tuple[torch.Tensor, Self | None]:
        """The text's hidden states ([1, steps, width]), and the cache that its forward filled.

        None instead of a cache for encoder-decoder models, and where the model does not store the keys and values of
        all positions (sliding windows, linear attention).
        """
        network = task.split_model.network
        config = network.config.get_text_config(decoder=True)
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        if (
            task.split_model.is_encoder_decoder
            or kinds != {"full_attention"}
            or getattr(config, "sliding_window", None)
        ):
            return task.states(*task.inputs), None
        cache = DynamicCache(config=network.config)
        states = task.states(*task.inputs, past_key_values=cache, use_cache=True)
        if not cache.layers or any(type(layer) is not DynamicLayer or layer.keys is None for layer in cache.layers):
            return states, None
        return states, cls(task, [(layer.keys, layer.values) for layer in cache.layers])

    def effects(self, perturbed: torch.Tensor, kept: int, values: torch.Tensor) -> torch.Tensor:
        """`values` ([1, steps]) minus the attributed function of the perturbed rows: [rows, steps].

        `perturbed` is [rows, length, width]; the rows share their first `kept` positions with the text.
        Zero for steps before the changed position.
        """
        task = self.task
        first = max(0, kept + 1 - task.steps.start)  # the first step predicted after position `kept`
        states = self.states(perturbed, kept, first)
        found = values.new_zeros((len(perturbed), len(task.steps)))
        found[:, first:] = values[:, first:] - task.apply_head(states, gradients=False, first=first).values
        return found

    def states(self, perturbed: torch.Tensor, kept: int, first: int) -> torch.Tensor:
        """The hidden states of perturbed rows ([rows, length, width]) that share their first `kept` positions with the
        text, for the steps from number `first`: [rows, steps, width].
        """
        task, (rows, length, _) = self.task, perturbed.shape
        shared = [tuple(each[:, :, :kept].expand(rows, -1, -1, -1) for each in layer) for layer in self.layers]
        return task.split_model.states(
            perturbed[:, kept:],
            positions=slice(task.steps.start + first - 1 - kept, task.steps.stop - 1 - kept),
            attention_mask=torch.ones((rows, length), dtype=torch.long, device=perturbed.device),
            past_key_values=DynamicCache(shared, config=task.split_model.network.config) if kept else None,
            use_cache=bool(kept),
        )
