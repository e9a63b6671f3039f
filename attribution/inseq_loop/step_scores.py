"""Step scores in Inseq's loop from logits that another forward has computed.

Inseq runs the model once more for the scores of each step. Most methods already run the model on the step's text, so
their logits can be reused. For the others, one forward over the whole text gives the logits of all steps, on a model
whose single pass is trusted.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from inseq.attr.feat import FeatureAttribution
from inseq.models import HuggingfaceModel

from attribution.catalogue import inseq_catalogue, traits
from attribution.catalogue.inseq_catalogue import Method
from attribution.corrections.step_functions import plain_name
from attribution.single_pass.logit_functions import Batch, StepScores
from models import AttributionRequest

Scores = dict[str, torch.Tensor]
Function = Callable[..., torch.Tensor]


def has_own_logits(request: AttributionRequest, method: Method) -> bool:
    """Whether the attribution of a step runs the model on the step's own text, so that its logits can be reused."""
    if not request.corrections:  # the request asks for Inseq's own numbers and failures
        return False
    return method.traits.runs_own_text or inseq_catalogue.has_identity(request, method)


def is_noisy(names: Iterable[str]) -> bool:
    """Whether one of the scores compares the step's forward with dropout samples: both need the same shape, so it has
    its own forward.
    """
    return any(traits.of_step_function(plain_name(name)).draws_dropout for name in names)


class ReadOff:
    """Computes the step scores of one text from the logits of its steps' own forwards.

    Captum calls the attributed function with the output of each of its forwards, and one of their rows is usually the
    unchanged text of the step. We compare the rows that went in with the step's embeddings, and keep the logits of the
    first equal row. This is safe because equal inputs give equal logits while nothing inside the model is replaced
    (`has_own_logits`) and dropout is off; a step without such a row gets a forward for its scores, as in Inseq.
    """

    def __init__(self, method: FeatureAttribution, model: HuggingfaceModel, batch: Batch) -> None:
        """Replace how the loaded method computes its step scores. `batch` is the whole text."""
        self._method, self._model, self._batch = method, model, batch
        self._attribute_step = method.filtered_attribute_step
        self._step: Batch | None = None  # the step that is being attributed: its prefix
        self._logits: torch.Tensor | None = None  # of that prefix: [vocabulary]
        method.filtered_attribute_step = self._scored_step

    def watched(self, function: Function) -> Function:
        """The attributed function, wrapped: it keeps the logits of the step's own text when it is called with them."""

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
            self._model.eval()  # a dropout function may have left it in train mode
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
    """Give a loaded method the step scores that are known already: a dictionary of [1] tensors for each step, the first
    of which predicts target position `first`.
    """
    attribute_step = method.filtered_attribute_step

    def scored(step: Batch, **named: Any) -> Any:
        output = attribute_step(step, **named | {"step_scores": []})
        output.step_scores.update(scores[step.max_generation_length - first])
        return output

    method.filtered_attribute_step = scored


def _same_rows(arguments: Any, step: Batch) -> torch.Tensor:
    """Which rows of a forward were the step's own text: [rows], boolean."""
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
    """Within the block, a forward on the same inputs as the one before it returns that one's output.

    Each contrastive step function runs the model on the contrast; several of them now share one forward. Only for a
    block in which nothing but step functions runs the model through Inseq.
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
