"""Answers masks over the features of one text: the attributed function of its target tokens, by batched forwards.

A feature is some tokens of the input. Those of a masked feature are replaced by another embedding in their places, so
that all rows have the text's own length, and need no padding: a row is the plain forward on the text that it stands
for. The value of every target token comes from the same row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from attribution.single_pass.batch_sizes import rows_at_once
from attribution.single_pass.text_task import HeadOutput, Task
from perturbation import Masks, Values

_KEPT_BYTES = 64 * 1024**2  # of values that are kept, so that a mask that comes again has no second forward


class MaskedForwards:
    """A text's answers to masks."""

    def __init__(self, task: Task, features: Sequence[Sequence[int]], replacement: torch.Tensor | None = None) -> None:
        """Run the unmasked text. `features`: the positions of each in `task.inputs[0]`, the masked side.

        `replacement`: embeddings that stand in the place of masked tokens ([1, length, width]), by default those of
        Inseq's baseline: the unknown token.
        """
        self._task = task
        given = task.inputs[0]
        self._given = given
        self._replacement = task.baselines[0] if replacement is None else replacement
        covers = torch.zeros((len(features), given.shape[1]), dtype=torch.bool)
        for row, positions in enumerate(features):
            covers[row, list(positions)] = True
        self._covers = covers
        self._known: dict[bytes, Values] = {}
        self._kept_bytes = 0
        self.rows = 0  # that were run, the unmasked text among them
        with torch.no_grad():
            states = task.states(*task.inputs)
            self.unmasked: HeadOutput = task.apply_head(states, gradients=False, step_scores=bool(task.step_scores))
        self.rows += 1
        self.at_all = self._values(self.unmasked)[0]  # [tokens]
        self._keep(np.ones(len(features), bool).tobytes(), self.at_all)

    @property
    def rows_at_once(self) -> int:
        """How many rows one forward takes, by the free memory."""
        return rows_at_once(self._task.split_model, self._task.rows_length, with_graph=False)

    def __call__(self, masks: Masks) -> Values:
        """The values of the target tokens for each mask ([rows, features], True for what is kept): [rows, tokens].

        Equal masks share a row. Raises what the caller's cancel points raise.
        """
        keys = [row.tobytes() for row in np.ascontiguousarray(masks)]
        found = {key: self._known[key] for key in keys if key in self._known}
        missing = {key: row for key, row in zip(keys, masks, strict=True) if key not in found}
        if missing:
            values = self._run(np.stack(list(missing.values())))
            for key, value in zip(missing, values, strict=True):
                found[key] = value
                self._keep(key, value)
        return np.stack([found[key] for key in keys])

    def _run(self, masks: Masks) -> Values:
        at_once, values = self.rows_at_once, []
        for first in range(0, len(masks), at_once):
            batch = torch.from_numpy(masks[first : first + at_once])
            replaced = (~batch).float() @ self._covers.float() > 0  # [rows, length]
            with torch.no_grad():
                masked = torch.where(replaced.to(self._given.device)[..., None], self._replacement, self._given)
                others = [each.expand(len(batch), -1, -1) for each in self._task.inputs[1:]]
                states = self._task.states(masked, *others)
                values.append(self._values(self._task.apply_head(states, gradients=False)))
            self.rows += len(batch)
        return np.concatenate(values)

    def _values(self, output: HeadOutput) -> Values:
        """The attributed function of each row and target token, or span of them."""
        values = output.values.detach().cpu().double()
        return (values if self._task.columns is None else self._task.columns.summed(values)).numpy()

    def _keep(self, key: bytes, value: Values) -> None:
        self._kept_bytes += len(key) + value.nbytes
        if self._kept_bytes <= _KEPT_BYTES:
            self._known[key] = value
