"""The keys and values of a prefix that perturbed rows have in common, so that only what stands behind it is run."""

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
        """The text's hidden states ([1, steps, width]), and what rows can share of them: None where the model keeps
        something else than keys and values of all positions.
        """
        network = task.trunk.network
        config = network.config.get_text_config(decoder=True)
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        if task.trunk.is_encoder_decoder or kinds != {"full_attention"} or getattr(config, "sliding_window", None):
            return task.states(*task.inputs), None
        cache = DynamicCache(config=network.config)
        states = task.states(*task.inputs, past_key_values=cache, use_cache=True)
        if not cache.layers or any(type(layer) is not DynamicLayer or layer.keys is None for layer in cache.layers):
            return states, None
        return states, cls(task, [(layer.keys, layer.values) for layer in cache.layers])

    def effects(self, perturbed: torch.Tensor, kept: int, values: torch.Tensor) -> torch.Tensor:
        """`values` ([1, steps]) minus those of rows ([rows, length, width]) that share their first `kept` positions
        with the text: [rows, steps]; nothing for steps that stand before it.
        """
        task, (rows, length, _) = self.task, perturbed.shape
        shared = [tuple(each[:, :, :kept].expand(rows, -1, -1, -1) for each in layer) for layer in self.layers]
        first = max(0, kept + 1 - task.steps.start)  # the first step whose token is predicted behind `kept`
        states = task.trunk.states(
            perturbed[:, kept:],
            positions=slice(task.steps.start + first - 1 - kept, task.steps.stop - 1 - kept),
            attention_mask=torch.ones((rows, length), dtype=torch.long, device=perturbed.device),
            past_key_values=DynamicCache(shared, config=task.trunk.network.config) if kept else None,
            use_cache=bool(kept),
        )
        found = values.new_zeros((rows, len(task.steps)))
        found[:, first:] = values[:, first:] - task.read(states, gradients=False, first=first).values
        return found
