"""A short probe of a model: one method run by Inseq's loop and by the single pass, and how far they differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from inseq.data import FeatureAttributionOutput

from attribution.catalogue.inseq_catalogue import Method, attributed_function
from attribution.catalogue.traits import DEFAULT_FUNCTION, Reads
from attribution.corrections.registry import Ledger
from attribution.inseq_loop.engine_calls import by_loop, by_single_pass
from attribution.inseq_loop.text_attribution import TextAttribution
from attribution.isolation import RANDOM_DRAWS, RandomState
from attribution.model_cache.device_memory import is_out_of_memory
from attribution.model_cache.loading import LoadedModel
from attribution.run.progress import ProgressCounter
from attribution.text.encoding import Prompt, Text, from_ids
from models import AttributionRequest

# Relative to the largest score; rounding stays far below it.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}
_HALF_TOLERANCE = 0.05
_PROMPT, _STEPS = 6, 3  # tokens of the short probe
SHORT_PROBE = _PROMPT + _STEPS
LONGEST_PROBE = 512
_SMALL = {"n_steps": 3, "n_samples": 2, "internal_batch_size": 2}
_KEPT = {"method", "multiply_by_inputs", "abs", "stdevs"}


@dataclass(frozen=True)
class Verdict:
    """What a probe of a model found: the largest difference relative to the largest score, or why there is none."""

    length: int  # tokens
    difference: float | None = None
    tolerance: float = 0.0
    reason: str | None = None

    @property
    def is_trusted(self) -> bool:
        return self.reason is None and self.difference is not None and self.difference <= self.tolerance

    def describe(self) -> dict[str, Any]:
        """As plain data, for a result's `info`."""
        found = {"probe_tokens": self.length, "largest_difference": self.difference, "tolerance": self.tolerance}
        return (found if self.difference is not None else {}) | ({"reason": self.reason} if self.reason else {})


def tolerance(loaded: LoadedModel) -> float:
    """The largest difference, relative to the largest score, that is rounding in this model's dtype."""
    return TOLERANCE.get(loaded.network.dtype, _HALF_TOLERANCE)


def largest_difference(ours: FeatureAttributionOutput, theirs: FeatureAttributionOutput) -> float:
    """The largest difference of two results, relative to the largest score; infinite where shapes or NaNs differ."""
    return max(_differences(ours, theirs), default=0.0)


def probe(
    request: AttributionRequest,
    loaded: LoadedModel,
    method: Method,
    *,
    length: int,
    on_progress: Callable[[float], None],
) -> Verdict:
    """Run a method by both engines on a text of `length` tokens.

    The random generators are afterwards where they were. Raises what `on_progress` raises, and out-of-memory errors;
    any other failure is the verdict's reason.
    """
    request, text = _probe_request(request, method), probe_text(loaded, length)
    contrast = {"attributed_fn_args": dict(request.attributed_fn_args), "step_scores_args": {}}
    outputs = []
    try:
        for engine in (by_loop, by_single_pass):
            attribution = TextAttribution(
                request,
                loaded,
                Ledger(enabled=True),
                text,
                contrast,
                progress=ProgressCounter(lambda _: None),
                on_progress=on_progress,
            )
            (work,) = attribution.runs()
            with RANDOM_DRAWS:
                before = RandomState()
                RandomState.seeded(0)
                try:
                    outputs.append(attribution.run(work, engine)[0])
                finally:
                    before.resume()
    except Exception as error:  # whatever a model raises: if Inseq's loop raises it too, the job fails with it
        if is_out_of_memory(error):
            raise
        return Verdict(length, reason=f"A probe of it failed: {type(error).__name__}: {str(error).strip()[:200]}")
    difference = largest_difference(outputs[1], outputs[0])
    reason = None if difference <= tolerance(loaded) else "It gave other numbers than Inseq's loop on a probe."
    return Verdict(length, difference, tolerance(loaded), reason)


def probe_text(loaded: LoadedModel, length: int) -> Text:
    """A text of ordinary tokens: a prompt and the tokens that follow it, or a source and a target."""
    model = loaded.model
    special = {*model.special_tokens_ids, loaded.network.config.pad_token_id}
    size = min(int(loaded.network.get_input_embeddings().num_embeddings), len(model.tokenizer))
    ordinary = [index for index in range(size) if index not in special]
    ids = torch.tensor([[ordinary[(37 * index + 11) % len(ordinary)] for index in range(length)]], device=model.device)
    if model.is_encoder_decoder:
        start = loaded.network.config.decoder_start_token_id
        target = torch.cat([ids.new_tensor([[model.bos_token_id if start is None else start]]), ids[:, -_STEPS:]], 1)
        if length > SHORT_PROBE:
            target = torch.cat([target[:, :1], ids], 1)
        source, first = ids, target.shape[1] - _STEPS
    else:
        target, source, first = ids, ids[:, :-_STEPS], length - _STEPS
    encodings = [from_ids(model, each, include_eos_baseline=False) for each in (source, target)]
    return Text(Prompt("", encodings[0]), None, encodings[1], first, target.shape[1])


def probe_length(limit: int) -> int:
    """Tokens of a probe that shows what a model does behind its first `limit` tokens."""
    return limit + _STEPS + 1


def _probe_request(request: AttributionRequest, method: Method) -> AttributionRequest:
    arguments = {name: value for name, value in request.attribution_args.items() if name in _KEPT}
    arguments |= {name: value for name, value in _SMALL.items() if name in method.parameters}
    reads_logits = attributed_function(request).traits.reads is Reads.LOGITS
    function = request.attributed_fn if reads_logits else None
    return request.model_copy(
        update={
            "method": method.name,
            "attribution_args": arguments if method.has_scores else {},
            "attributed_fn": function,
            "attributed_fn_args": request.attributed_fn_args if function else {},
            "step_scores": [DEFAULT_FUNCTION],
            "step_scores_args": {},
            "output_step_attributions": False,
            "clean_special_chars": False,
        }
    )


def _differences(ours: FeatureAttributionOutput, theirs: FeatureAttributionOutput) -> Iterator[float]:
    for mine, other in zip(ours.sequence_attributions, theirs.sequence_attributions, strict=True):
        pairs = [(getattr(mine, name), getattr(other, name)) for name in ("source_attributions", "target_attributions")]
        scores = other.step_scores or {}
        pairs += [((mine.step_scores or {}).get(name), score) for name, score in scores.items()]
        for a, b in pairs:
            if a is None or b is None or a.shape != b.shape or not torch.equal(a.isnan(), b.isnan()):
                yield 0.0 if a is b is None else float("inf")
            elif b.numel():
                difference, size = torch.nan_to_num(a.double() - b.double()), torch.nan_to_num(b.double())
                yield float(difference.abs().max()) / max(float(size.abs().max()), 1e-30)
