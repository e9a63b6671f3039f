"""A short probe of a model: one method run by Inseq's loop and by the single pass, and how far they differ."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from inseq.data import FeatureAttributionOutput

from attribution.catalogue.inseq_catalogue import Method
from attribution.catalogue.next_token import without_own
from attribution.corrections.registry import Ledger
from attribution.estimates.passes import Shape
from attribution.estimates.probes import DOUBTED, MOST_ROUNDING, probe_request
from attribution.inseq_loop.engine_calls import EngineCall, by_loop, by_single_pass
from attribution.inseq_loop.text_attribution import TextAttribution, TextProgress
from attribution.isolation import RANDOM_DRAWS, RandomState
from attribution.model_cache.device_memory import is_out_of_memory
from attribution.model_cache.loading import LoadedModel
from attribution.run.rounding import MARGIN, SAME, fits_in_float64, in_float64
from attribution.single_pass.text_task import ProgressCallback
from attribution.text.encoding import Prompt, Text, from_ids
from models import AttributionRequest

# Relative to the largest score; rounding of most models stays far below it.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}
_HALF_TOLERANCE = 0.05


@dataclass(frozen=True)
class Verdict:
    """What a probe of a model found: the largest difference relative to the largest score, or why there is none."""

    length: int  # tokens
    difference: float | None = None
    tolerance: float = 0.0
    reason: str | None = None
    in_float64: float | None = None  # the difference there, where float32 left a doubt

    @property
    def is_trusted(self) -> bool:
        return self.reason is None and self.difference is not None and self.difference <= self.tolerance

    def describe(self) -> dict[str, Any]:
        """As plain data, for a result's `info`."""
        found = {"probe_tokens": self.length, "largest_difference": self.difference, "tolerance": self.tolerance}
        if self.in_float64 is not None:
            found["largest_difference_in_float64"] = self.in_float64
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
    shape: Shape,
    progress: TextProgress,
    on_progress: ProgressCallback,
) -> Verdict:
    """Run a method by both engines on a text of this shape.

    `progress` is told of steps that are none of the job's. The random generators are afterwards where they were. Raises
    what `on_progress` raises, and out-of-memory errors; any other failure is the verdict's reason.
    """
    length = shape.longest
    probed = probe_request(request, method, shape, loaded.model.get_embedding_layer().embedding_dim)
    run = _ProbeRun(probed, loaded, probe_text(loaded, shape), progress, on_progress)
    try:
        theirs, ours = run.output(by_loop), run.output(by_single_pass)
    except Exception as error:  # whatever a model raises: if Inseq's loop raises it too, the job fails with it
        if is_out_of_memory(error):
            raise
        return Verdict(length, reason=f"A probe of it failed: {type(error).__name__}: {str(error).strip()[:200]}")
    difference = largest_difference(ours, theirs)
    limit, exact = tolerance(loaded), None
    if loaded.network.dtype is torch.float32 and DOUBTED < difference <= MOST_ROUNDING:
        exact = _difference_in_float64(run)
    if exact is not None and exact <= SAME:
        limit = max(limit, min(MARGIN * difference, MOST_ROUNDING))  # all of it is rounding
    is_other = difference > limit or (exact is not None and exact > SAME)
    reason = "It gave other numbers than Inseq's loop on a probe." if is_other else None
    return Verdict(length, difference, limit, reason, exact)


@dataclass(frozen=True)
class _ProbeRun:
    """A request on a probe's text."""

    request: AttributionRequest
    loaded: LoadedModel
    text: Text
    progress: TextProgress
    on_progress: ProgressCallback

    def output(self, engine: EngineCall) -> FeatureAttributionOutput:
        """By this engine, with random draws that are the same in each run."""
        attribution = TextAttribution(
            self.request,
            self.loaded,
            Ledger(enabled=True),
            self.text,
            {"attributed_fn_args": dict(self.request.attributed_fn_args), "step_scores_args": {}},
            progress=self.progress,
            on_progress=self.on_progress,
        )
        (work,) = attribution.runs()
        with RANDOM_DRAWS:
            before = RandomState()
            RandomState.seeded(0)
            try:
                return attribution.run(work, engine)[0]
            finally:
                before.resume()


def _difference_in_float64(run: _ProbeRun) -> float | None:
    """The largest difference of the two engines in float64; None where the model or the device cannot compute in it."""
    network = run.loaded.network
    if not fits_in_float64(network):
        return None
    with in_float64(network):
        try:
            return largest_difference(run.output(by_single_pass), run.output(by_loop))
        except Exception:  # some families mix dtypes; then the usual tolerance decides
            return None


def probe_text(loaded: LoadedModel, shape: Shape) -> Text:
    """A text of ordinary tokens: a prompt and the tokens that follow it, or a source and a target."""
    model = loaded.model
    special = {*model.special_tokens_ids, loaded.network.config.pad_token_id}
    size = min(int(loaded.network.get_input_embeddings().num_embeddings), len(model.tokenizer))
    ordinary = [index for index in range(size) if index not in special]
    length = shape.longest
    ids = torch.tensor([[ordinary[(37 * index + 11) % len(ordinary)] for index in range(length)]], device=model.device)
    if model.is_encoder_decoder:
        start = loaded.network.config.decoder_start_token_id
        start = ids.new_tensor([[model.bos_token_id if start is None else start]])
        source, target = ids[:, : shape.source], torch.cat([start, ids[:, length - shape.end + 1 :]], 1)
    else:
        source, target = ids[:, : shape.first], ids
    encodings = [from_ids(model, each, include_eos_baseline=False) for each in (source, target)]
    return Text(Prompt("", encodings[0]), None, encodings[1], shape.first, shape.end)


def _differences(ours: FeatureAttributionOutput, theirs: FeatureAttributionOutput) -> Iterator[float]:
    for mine, other in zip(ours.sequence_attributions, theirs.sequence_attributions, strict=True):
        pairs = [(getattr(mine, name), getattr(other, name)) for name in ("source_attributions", "target_attributions")]
        scores = without_own(other.step_scores)  # ids of tokens, which have no difference
        pairs += [((mine.step_scores or {}).get(name), score) for name, score in scores.items()]
        for a, b in pairs:
            if a is None or b is None or a.shape != b.shape or not torch.equal(a.isnan(), b.isnan()):
                yield 0.0 if a is b is None else float("inf")
            elif b.numel():
                difference, size = torch.nan_to_num(a.double() - b.double()), torch.nan_to_num(b.double())
                yield float(difference.abs().max()) / max(float(size.abs().max()), 1e-30)
