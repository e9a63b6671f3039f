"""Counts the tokens of a request's texts with the job's own code, beside a job that may hold the model."""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace

from transformers import AutoTokenizer

from attribution.catalogue import masked_methods
from attribution.catalogue.generation_catalogue import GenerationLimits
from attribution.estimates.passes import Shape
from attribution.model_cache.loading import LoadedModel
from attribution.text import encoding, languages
from attribution.text.encoding import Prompt
from attribution.text.generation_settings import GenerationSettings, generation_settings
from attribution.text.given_target import given_target
from attribution.text.sandbox import TextSandbox
from attribution.text.segments import parts_of, prompt_notes
from attribution.text.target_spans import MOST_HOPS
from models import AttributionRequest

_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")


@dataclass(frozen=True)
class CountedInput:
    """The token counts of one input."""

    prompt: int
    shape: Shape
    target: int
    new: int  # the most tokens that the model generates; 0 for a given target
    beams: int = 1
    warnings: Sequence[str] = ()  # about its generation


class TokenCounter:
    """Encodes a request's texts with a separate tokenizer, so that it can run while a job holds the model."""

    def __init__(self, loaded: LoadedModel) -> None:
        model = copy.copy(loaded.model)
        model.tokenizer = AutoTokenizer.from_pretrained(loaded.source.tokenizer_folder(), trust_remote_code=False)
        for name in _SPECIAL_TOKENS:  # as set by Inseq
            if (token := getattr(loaded.model.tokenizer, name)) is not None:
                setattr(model.tokenizer, name, token)
        self.lock = threading.Lock()
        self._loaded = replace(loaded, model=model, lock=self.lock)

    def inputs(
        self, request: AttributionRequest, max_tokens: int, limits: GenerationLimits, sandbox: TextSandbox
    ) -> list[CountedInput]:
        """The token counts of each input. Raises the `JobError` with which the job would fail, and `Cancelled`.

        The caller holds `lock`.
        """
        encoding.check_texts(request, sandbox)
        with languages.spoken(self._loaded.model, request.languages) as spoken:
            return [self._input(request, index, spoken, max_tokens, limits, sandbox) for index in range(request.count)]

    def _input(
        self,
        request: AttributionRequest,
        index: int,
        spoken: dict[str, int],
        max_tokens: int,
        limits: GenerationLimits,
        sandbox: TextSandbox,
    ) -> CountedInput:
        loaded, seq2seq = self._loaded, bool(self._loaded.model.is_encoder_decoder)
        prompt, forced = encoding.read_input(loaded, request, index, max_tokens=max_tokens, sandbox=sandbox)
        length = prompt.encoding.input_ids.shape[1]
        source = length if seq2seq else 0
        target = given_target(loaded, request, index, prompt, forced, sandbox=sandbox, warnings=[])
        if target is not None:
            first, end = encoding.check_positions(
                loaded.model, prompt.encoding, target, request.attr_pos_start, request.attr_pos_end, generated=False
            )
            shape = _with_spans(request, Shape(source, first, end, features=_features(loaded, request, prompt)))
            return CountedInput(length, shape, target.input_ids.shape[1], new=0)
        settings = generation_settings(loaded, request, prompt, spoken, limits)
        return counted_generation(loaded, request, prompt, settings)


def _with_spans(request: AttributionRequest, shape: Shape) -> Shape:
    """The shape of a text whose spans are attributed, each alternative counted as one more."""
    if not request.attributes_spans:
        return shape
    if request.trace is not None:
        most = MOST_HOPS if request.trace.hops == "all" else min(request.trace.hops, MOST_HOPS)
        return replace(shape, spans=1 + min(most, shape.steps))
    spans, choices = request.spans or (), request.choices or ()
    count = len(spans) + sum(each.contrast is not None for each in spans)
    return replace(shape, spans=count or max(1, 2 * (len(choices) - 1)))


def counted_generation(
    loaded: LoadedModel,
    request: AttributionRequest,
    prompt: Prompt,
    settings: GenerationSettings,
    new: int | None = None,
) -> CountedInput:
    """The token counts of an input whose target is generated, of `new` tokens: by default the most there may be."""
    length, new = prompt.encoding.input_ids.shape[1], settings.max_new_tokens if new is None else new
    source, before = (length, 1) if loaded.model.is_encoder_decoder else (0, length)
    first = request.attr_pos_start or before
    end = min(request.attr_pos_end or before + new, before + new)
    shape = _with_spans(request, Shape(source, first, max(end, first), features=_features(loaded, request, prompt)))
    return CountedInput(length, shape, before + new, new, settings.beams, settings.warnings)


def _features(loaded: LoadedModel, request: AttributionRequest, prompt: Prompt) -> int | None:
    """How many parts of the input are masked; None where no method masks any.

    Raises `InputRejected` for segments with which the job would fail.
    """
    if request.segments is None and not masked_methods.masks_any(request):
        return None
    parts = parts_of(request, prompt, prompt_notes(loaded.model, prompt), [])
    return None if parts.features is None else len(parts.features.positions)
