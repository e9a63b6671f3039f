"""Step scores in Inseq's loop, without a forward of their own where another one has their logits.

Inseq runs the model once more for the scores of each step. Most methods run it on the very text of the step anyhow, and
its logits are those; for the others one forward over the whole text has the logits of all steps, on a model whose
single pass is trusted.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from inseq.attr.feat import FeatureAttribution
from inseq.models import HuggingfaceModel

from attribution.catalogue import traits
from attribution.catalogue.inseq_catalogue import Method
from attribution.corrections.step_functions import plain_name
from attribution.inseq_loop import completeness
from attribution.single_pass.logit_functions import Batch, StepScores
from models import AttributionRequest

Scores = dict[str, torch.Tensor]
Function = Callable[..., torch.Tensor]


def has_own_logits(request: AttributionRequest, method: Method) -> bool:
    """Whether the attribution of a step runs the model on the step's own text, and its logits may be taken."""
    if not request.corrections:  # Inseq's own numbers, and its own failures
        return False
    return method.traits.runs_own_text or completeness.has_identity(request, method)


def is_noisy(names: Iterable[str]) -> bool:
    """Whether one of the scores is a distance from forwards of its own: it needs one more, of the same shape."""
    return any(traits.of_step_function(plain_name(name)).draws_dropout for name in names)


class ReadOff:
    """Takes the step scores of one text from the logits of its steps' own forwards.

    A step that did not run its own text has a forward for them, as Inseq has it for every step.
    """

    def __init__(self, method: FeatureAttribution, model: HuggingfaceModel, batch: Batch) -> None:
        """`batch` is the whole text. From now on the loaded method computes its step scores here."""
        self._method, self._model, self._batch = method, model, batch
        self._attribute_step = method.filtered_attribute_step
        self._step: Batch | None = None  # the present one
        self._logits: torch.Tensor | None = None  # its own: [vocabulary]
        method.filtered_attribute_step = self._scored_step

    def watched(self, function: Function) -> Function:
        """The attributed function; the logits that it is called with are looked at."""

        @functools.wraps(function)
        def watched(arguments: Any, **more: Any) -> torch.Tensor:
            if self._logits is None and self._step is not None and not self._model.model.training:
                same = _same_rows(arguments, self._step)
                if bool(same.any()):
                    self._logits = arguments.forward_output.logits[int(same.int().argmax()), -1].detach()
            return function(arguments, **more)

        return watched

    def _scored_step(
        self, step: Batch, *, step_scores: list[str], step_scores_args: dict[str, Any], **named: Any
    ) -> Any:
        self._step, self._logits = step, None
        output = self._attribute_step(step, step_scores=[], step_scores_args=step_scores_args, **named)
        logits, self._step, self._logits = self._logits, None, None
        if logits is None:
            self._model.eval()  # a dropout function may have left it otherwise
            with torch.no_grad():
                forward = self._model.get_forward_output(step, use_embeddings=self._method.forward_batch_embeds)
            logits = forward.logits[0, -1]
        scores = StepScores(self._model, step_scores, step_scores_args, self._batch)
        with remembered_forward(self._model):
            position = step.max_generation_length
            (found,) = scores.of_steps(range(position, position + 1), logits[None])
            output.step_scores.update(found)
        return output


def take_from(method: FeatureAttribution, scores: list[Scores], first: int) -> None:
    """Have a loaded method take the scores of the steps from target position `first` that are known already."""
    attribute_step = method.filtered_attribute_step

    def scored(step: Batch, **named: Any) -> Any:
        output = attribute_step(step, **named | {"step_scores": []})
        output.step_scores.update(scores[step.max_generation_length - first])
        return output

    method.filtered_attribute_step = scored


def _same_rows(arguments: Any, step: Batch) -> torch.Tensor:
    """Which rows of a forward were the step's own text: [rows]."""
    names = ["decoder_input_embeds"] + (["encoder_input_embeds"] if step.source_ids is not None else [])
    found = torch.ones((), dtype=torch.bool)
    for name in names:
        given, side = getattr(arguments, name), name.partition("_")[0]
        own = step.source_embeds if side == "encoder" else step.target_embeds
        if given is None:  # a layer method's, of ids
            given = getattr(arguments, f"{side}_input_ids")
            own = step.source_ids if side == "encoder" else step.target_ids
        if given.shape[1:] != own.shape[1:]:
            return torch.zeros(1, dtype=torch.bool)
        found = found.to(given.device) & (given == own).flatten(1).all(1)
    return found


@contextmanager
def remembered_forward(model: HuggingfaceModel) -> Iterator[None]:
    """Within the block, a step function that asks for the forward of the one before it gets its output.

    Contrastive functions do, each of them. Only for a block in which step functions alone ask for forwards.
    """
    run = model.get_forward_output
    last: tuple[Batch, bool, Any] | None = None

    def get_forward_output(batch: Batch, use_embeddings: bool = True, **more: Any) -> Any:
        nonlocal last
        if more or model.model.training or torch.is_grad_enabled():
            return run(batch, use_embeddings=use_embeddings, **more)
        if last is None or last[1] != use_embeddings or not _same_inputs(last[0], batch):
            last = None  # its memory first
            last = batch, use_embeddings, run(batch, use_embeddings=use_embeddings)
        return last[2]

    model.get_forward_output = get_forward_output
    try:
        yield
    finally:
        del model.get_forward_output


_INPUTS = ("source_ids", "source_mask", "source_embeds", "target_ids", "target_mask", "target_embeds")


def _same_inputs(batch: Batch, other: Batch) -> bool:
    pairs = [(getattr(batch, name), getattr(other, name)) for name in _INPUTS]
    return all(a is b or (a is not None and b is not None and torch.equal(a, b)) for a, b in pairs)
