"""A model whose input is the output of one of its layers, for methods that attribute to a layer."""

from __future__ import annotations

from typing import Any

import torch
from inseq.models import HuggingfaceModel

from attribution.single_pass.network import Graph, SplitModel
from attribution.single_pass.text_task import Task
from problems import UnsupportedByModel


class LayerModel(SplitModel):
    """A `SplitModel` called on a layer's outputs ([rows, length, width]) instead of embeddings.

    A forward runs on the text's embeddings, and the layer returns what is passed.
    """

    def __init__(self, model: HuggingfaceModel, layer: torch.nn.Module, embeddings: torch.Tensor) -> None:
        """`embeddings` are the text's, [1, length, width]."""
        super().__init__(model)
        self._layer = layer
        self._embeddings = embeddings

    def graph(self, *embeddings: torch.Tensor, positions: slice) -> Graph:
        """As of `SplitModel`, without a cut at the last block: the layer may lie behind the cut."""
        states = self.states(*embeddings, positions=positions)
        return Graph(states, (states,), (), 0, 0)

    def outputs(self, *embeddings: torch.Tensor) -> torch.Tensor:
        """The layer's outputs on embeddings: [rows, length, width]. Raises as `states`."""
        found: list[torch.Tensor] = []
        handle = self._layer.register_forward_hook(lambda _module, _arguments, output: found.append(output))
        try:
            with torch.no_grad():
                super()._states(embeddings, slice(None), {})
        finally:
            handle.remove()
        if len(found) != 1 or not isinstance(found[0], torch.Tensor) or found[0].shape[:2] != embeddings[0].shape[:2]:
            raise UnsupportedByModel("The layer does not return one vector for each token in one call.")
        return found[0]

    def _states(self, embeddings: tuple[torch.Tensor, ...], positions: slice, more: dict[str, Any]) -> torch.Tensor:
        outputs, *others = embeddings
        rows, length = outputs.shape[:2]
        text = self._embeddings[:, :length].expand(rows, -1, -1)
        handle = self._layer.register_forward_hook(lambda _module, _arguments, _output: outputs)
        try:
            return super()._states((text, *others), positions, more)
        finally:
            handle.remove()


def at_layer(task: Task, model: HuggingfaceModel, layer: torch.nn.Module) -> Task:
    """The task with the layer's outputs on the text and on the baseline as its inputs and baselines.

    Raises `UnsupportedByModel` where the layer does not return one vector for each token.
    """
    (text,), (baseline,) = task.inputs, task.baselines
    split = LayerModel(model, layer, text)
    context = () if task.context is None else (task.context,)
    outputs = [split.outputs(each, *context) for each in (text, baseline)]
    return task.with_inputs(split, (outputs[0],), (outputs[1],))
