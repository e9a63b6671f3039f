"""The hidden states that a forward gave to the LM head, kept so that step scores need no forward of their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from attribution.single_pass.text_task import HeadOutput, Task
from problems import UnsupportedByModel


@dataclass
class KeptStates:
    """Of the first forward: the head's input [1, length, width] and the last position's logits [1, 1, vocabulary]."""

    states: torch.Tensor | None = None
    last_logits: torch.Tensor | None = None
    is_alone: bool = True  # the head was called once

    def head_output(self, task: Task) -> HeadOutput:
        """The step scores of a text whose prefix the forward ran on.

        Raises `UnsupportedByModel` where the states are not those of the text's positions, or where the head does not
        turn them into the forward's own logits.
        """
        end, states = task.steps.stop - 1, self.states
        if states is None or self.last_logits is None or not self.is_alone or states.ndim != 3:  # noqa: PLR2004
            raise UnsupportedByModel("The forward kept no hidden states.")
        if states.shape[0] != 1 or states.shape[1] != end:
            raise UnsupportedByModel("The forward ran on other positions.")
        task.split_model.check_head(states[:, -1:], self.last_logits)
        with torch.no_grad():
            chosen = states[:, task.steps.start - 1 : end]
            return task.apply_head(chosen, gradients=False, values_too=False, step_scores=True)


@contextmanager
def kept_states(network: Any) -> Iterator[KeptStates]:
    """Within the block, the first forward of the network leaves its states in the yielded object."""
    kept = KeptStates()

    def before_head(_: Any, arguments: tuple[Any, ...]) -> None:
        if kept.last_logits is None and arguments:
            kept.is_alone = kept.states is None
            kept.states = arguments[0].detach()

    def after_forward(_: Any, _arguments: Any, output: Any) -> None:
        if kept.last_logits is None and isinstance(getattr(output, "logits", None), torch.Tensor):
            kept.last_logits = output.logits[:, -1:].detach()

    with ExitStack() as stack:
        stack.callback(network.register_forward_hook(after_forward).remove)
        if isinstance(head := network.get_output_embeddings(), torch.nn.Module):
            # Before the hook of `lean_forwards`, which leaves the last position alone.
            stack.callback(head.register_forward_pre_hook(before_head, prepend=True).remove)
        yield kept
