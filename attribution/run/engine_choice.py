"""Verify, then trust: whether a model's single pass gives Inseq's numbers, found by running both on a short probe.

Causality over what stands behind a position is all that the single pass assumes of a model; no list of families could
promise it. A verdict holds for a loaded model (so for its revision, device and type), a method, and a length: what a
configuration says shows only in long texts is probed at such a length, or left to Inseq's loop.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from inseq.data import FeatureAttributionOutput

from attribution.catalogue.inseq_catalogue import Method, attributed_function
from attribution.catalogue.single_pass_eligibility import obstacle
from attribution.catalogue.traits import DEFAULT_FUNCTION, Reads
from attribution.corrections.registry import Ledger
from attribution.inseq_loop.text_attribution import Attributed, AttributionLoop, EngineChoice
from attribution.isolation import RANDOM_DRAWS, RandomState
from attribution.model_cache.loading import LoadedModel
from attribution.single_pass.batch_sizes import is_out_of_memory
from attribution.text.encoding import Prompt, Text, from_ids
from models import AttributionRequest, Engine
from problems import UnsupportedByModel

# Relative to the largest score; rounding stays far below it.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}
_HALF_TOLERANCE = 0.05
_CHANCE = random.SystemRandom()
_PROMPT, _STEPS = 6, 3  # tokens of the short probe
_LONGEST_PROBE = 512
_SMALL = {"n_steps": 3, "n_samples": 2, "internal_batch_size": 2}
_KEPT = {"method", "multiply_by_inputs", "abs", "stdevs"}


@dataclass(frozen=True)
class Verdict:
    """What a probe of a model found: the largest difference relative to the largest score, or why there is none."""

    length: int
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


@dataclass
class Referee:
    """Decides for one job which engine runs, and remembers what it decided on."""

    request: AttributionRequest
    loaded: LoadedModel
    tick: Callable[[float], None]
    recheck_share: float = 0.0  # of jobs whose single pass is followed by Inseq's loop all the same
    longest: int = 0  # positions in the longest of the job's texts
    decided: dict[str, Verdict] = field(default_factory=dict)
    rechecked_difference: float | None = None  # of the last text that both engines did
    probing_seconds: float = 0.0  # spent once for a model, and no part of a job's own time

    def takes_single_pass(self, method: Method) -> bool:
        """Whether this method goes the single pass. Raises `UnsupportedByModel` where that was insisted on in vain."""
        if method.name not in self.decided:
            self.decided[method.name] = self._decide(method)
        return self.decided[method.name].is_trusted

    def give_up(self, method: Method, reason: str) -> None:
        """The single pass found that this text cannot go its way."""
        self.decided[method.name] = self._insisted_on(method, Verdict(0, reason=reason))

    def describe(self, method: Method) -> dict[str, Any]:
        """Which engine ran, and why or on what grounds."""
        verdict = self.decided.get(method.name)
        is_single = verdict is not None and verdict.is_trusted
        found: dict[str, Any] = {"engine": Engine.SINGLE_PASS if is_single else Engine.INSEQ}
        check = {} if verdict is None else verdict.describe()
        if self.rechecked_difference is not None:
            check["rechecked_difference"] = self.rechecked_difference
        if check:
            found["engine_check"] = check
        return found

    def rechecked(self, method: Method, attribute: Callable[[EngineChoice], Attributed]) -> Attributed:
        """A text's attribution. Of a share of them by both engines: where they differ, Inseq's, and the single pass of
        this model and method is not trusted again.
        """
        ours = attribute(self)
        # Not the random generators of the process: methods draw from them.
        if self.describe(method)["engine"] != Engine.SINGLE_PASS or _CHANCE.random() >= self.recheck_share:
            return ours
        theirs = attribute(_Always(single_pass=False))
        self.rechecked_difference = self.compare(ours[0], theirs[0])
        if self.rechecked_difference <= self._tolerance:
            return ours
        reason = "A job that was checked again came out otherwise."
        verdict = Verdict(self.longest, self.rechecked_difference, self._tolerance, reason)
        for key in self.loaded.verdicts:
            if key[0] == method.name:
                self.loaded.verdicts[key] = verdict
        self.decided[method.name] = verdict
        return theirs

    def compare(self, ours: FeatureAttributionOutput, theirs: FeatureAttributionOutput) -> float:
        """The largest difference of two results, relative to the largest score; infinite where they have other gaps."""
        return max(_differences(ours, theirs), default=0.0)

    @property
    def _tolerance(self) -> float:
        return TOLERANCE.get(self.loaded.network.dtype, _HALF_TOLERANCE)

    def _decide(self, method: Method) -> Verdict:
        if self.request.engine == Engine.INSEQ:
            return Verdict(0, reason="Asked for.")
        return self._insisted_on(method, self._verdict(method))

    def _insisted_on(self, method: Method, verdict: Verdict) -> Verdict:
        insisted = self.request.engine == Engine.SINGLE_PASS and method.name == self.request.attribution_method
        if insisted and not verdict.is_trusted:
            raise UnsupportedByModel(f"engine single_pass cannot be had here: {_why_not(verdict)} Use auto or inseq.")
        return verdict

    def _verdict(self, method: Method) -> Verdict:
        if reason := obstacle(self.request, method):
            return Verdict(0, reason=reason)
        length = _PROMPT + _STEPS
        if (limit := _shows_from(self.loaded)) is not None and self.longest > limit:
            length = limit + _STEPS + 1
            if length > min(_LONGEST_PROBE, self.loaded.limit or length):
                return Verdict(
                    0,
                    reason=f"The text is longer than {limit} tokens, where this model's attention or positions change.",
                )
        key = (method.name, length, self.request.attribute_target)
        if key not in self.loaded.verdicts:
            began = perf_counter()
            self.loaded.verdicts[key] = self._probe(method, length)
            self.probing_seconds += perf_counter() - began
        verdict: Verdict = self.loaded.verdicts[key]
        return verdict

    def _probe(self, method: Method, length: int) -> Verdict:
        request, text = _probe_request(self.request, method), probe_text(self.loaded, length)
        contrast = {"attributed_fn_args": dict(request.attributed_fn_args), "step_scores_args": {}}
        outputs = []
        try:
            for single in (False, True):
                loop = AttributionLoop(
                    request,
                    self.loaded,
                    Ledger(enabled=True),
                    preparing=lambda _: None,
                    choice=_Always(single),
                    tick=self.tick,
                )
                with RANDOM_DRAWS:
                    before = RandomState()
                    RandomState.seeded(0)
                    try:
                        outputs.append(loop.attribute(method, text, contrast, lambda _: None)[0])
                    finally:
                        before.resume()
        except Exception as error:  # whatever a model raises: Inseq's loop is asked next, and says it again
            if is_out_of_memory(error):
                raise
            return Verdict(length, reason=f"A probe of it failed: {type(error).__name__}: {str(error).strip()[:200]}")
        difference = self.compare(outputs[1], outputs[0])
        reason = None if difference <= self._tolerance else "It gave other numbers than Inseq's loop on a probe."
        return Verdict(length, difference, self._tolerance, reason)


@dataclass(frozen=True)
class _Always:
    """One engine, whatever the method."""

    single_pass: bool

    def takes_single_pass(self, method: Method) -> bool:  # noqa: ARG002 - the protocol's
        return self.single_pass

    def give_up(self, method: Method, reason: str) -> None:  # noqa: ARG002 - the protocol's
        raise UnsupportedByModel(reason)


def probe_text(loaded: LoadedModel, length: int) -> Text:
    """Ordinary tokens of the model's: a prompt and the tokens that follow it, or a source and a target."""
    model = loaded.model
    special = {*model.special_tokens_ids, loaded.network.config.pad_token_id}
    size = min(int(loaded.network.get_input_embeddings().num_embeddings), len(model.tokenizer))
    ordinary = [index for index in range(size) if index not in special]
    ids = torch.tensor([[ordinary[(37 * index + 11) % len(ordinary)] for index in range(length)]], device=model.device)
    if model.is_encoder_decoder:
        start = loaded.network.config.decoder_start_token_id
        target = torch.cat([ids.new_tensor([[model.bos_token_id if start is None else start]]), ids[:, -_STEPS:]], 1)
        if length > _PROMPT + _STEPS:
            target = torch.cat([target[:, :1], ids], 1)
        source, first = ids, target.shape[1] - _STEPS
    else:
        target, source, first = ids, ids[:, :-_STEPS], length - _STEPS
    encodings = [from_ids(model, each, include_eos_baseline=False) for each in (source, target)]
    return Text(Prompt("", encodings[0]), None, encodings[1], first, target.shape[1])


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


def _shows_from(loaded: LoadedModel) -> int | None:
    """The length behind which the configuration has something that does not show before; None where there is none."""
    config = loaded.network.config.get_text_config(decoder=True)
    limits = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    ropes = [getattr(config, name, None) for name in ("rope_parameters", "rope_scaling")]
    for rope in (each for given in ropes if given for each in (given, *given.values()) if isinstance(each, dict)):
        if (rope.get("rope_type") or rope.get("type")) in {"dynamic", "longrope", "su"}:
            original = rope.get("original_max_position_embeddings")
            limits.append(original or getattr(config, "original_max_position_embeddings", None) or loaded.limit)
    return min((int(limit) for limit in limits if limit), default=None)


def _why_not(verdict: Verdict) -> str:
    difference = "" if verdict.difference is None else f" (off by {verdict.difference:.2g} of the largest score)"
    return f"{(verdict.reason or '').removesuffix('.')}{difference}."


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
