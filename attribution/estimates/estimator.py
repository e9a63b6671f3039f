"""Estimates a request's tokens, passes, time and memory without running its method.

A job's own code encodes the texts and counts the tokens, so an estimate refuses whatever the job would refuse. Passes
are counted by arithmetic (`passes`); seconds and bytes come from rates measured for the model and device (`rates`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch

from attribution.catalogue import inseq_catalogue, masked_methods, refinement
from attribution.catalogue.config_checks import has_embeddings_of_layers
from attribution.catalogue.generation_catalogue import GenerationLimits
from attribution.catalogue.inseq_catalogue import Method
from attribution.catalogue.length_changes import length_changes, rescaling_within
from attribution.catalogue.method_requests import requests_of_methods
from attribution.catalogue.next_token import of_scores
from attribution.catalogue.single_pass_eligibility import obstacle
from attribution.catalogue.traits import ScoreShape
from attribution.estimates import passes, probes
from attribution.estimates.passes import Passes, Shape
from attribution.estimates.rates import ModelRates, Rates
from attribution.estimates.token_counts import CountedInput, TokenCounter
from attribution.isolation import DEFAULT_DTYPE
from attribution.model_cache.cache import ModelCache
from attribution.model_cache.device_memory import memory_of
from attribution.model_cache.loading import LoadedModel
from attribution.model_cache.model_source import ModelSource
from attribution.text.sandbox import Sandboxes, TextSandbox
from models import AttributionRequest, Engine, Estimate, InputEstimate, SecondsEstimate
from problems import Cancelled, InputRejected, InvalidRequest, ModelUnavailable, ServerBusy
from settings import Settings

_GIB = 1024**3
_READ_AT_ONCE = 4  # estimates that render and tokenize at the same time; the others wait
_GENERATING = "generating"  # the route under which the times of generations are shared
_ALWAYS_TRIED = 256 * 1024**2  # bytes that a job may take whatever is free: estimates are not that exact


@dataclass(frozen=True)
class StageSeconds:
    """The expected seconds of one method's stages: its probes, and its attribution."""

    method: str
    probing: float
    attributing: float


class Estimator:
    """Estimates over one model cache."""

    def __init__(self, settings: Settings, models: ModelCache, rates: Rates, sandboxes: Sandboxes) -> None:
        self._settings = settings
        self._models = models
        self._rates = rates
        self._sandboxes = sandboxes
        self._reading = threading.BoundedSemaphore(_READ_AT_ONCE)
        self._counters: WeakKeyDictionary[LoadedModel, TokenCounter] = WeakKeyDictionary()
        self._guard = threading.Lock()

    def estimate(self, request: AttributionRequest, device: str) -> Estimate:
        """The cost of a checked request on a device.

        Loads the model if it is on this machine but not in memory. Raises `ModelUnavailable` if it is not on this
        machine, the `JobError` with which the job would fail, `InputRejected` if reading the texts takes longer than
        `settings.estimate_seconds`, and `ServerBusy` if other estimates take all of that time.
        """
        if self._models.sources.revision(request.model) is None:
            raise ModelUnavailable(
                f"{request.model!r} is not on this machine, and an estimate downloads nothing. Submit a short job, "
                "which downloads it, and ask again."
            )
        with self._models.in_use(request.model, device=device, dtype=request.dtype) as loaded:
            rates = self._measured(loaded)
            inputs = self._inputs(request, loaded)
            requests = requests_of_methods(request)
            stages = self.expected_stages(requests, loaded, [each.shape for each in inputs])
            each = [
                self._estimate(one, loaded, rates, inputs, seconds)
                for one, seconds in zip(requests, stages, strict=True)
            ]
            return self._in_time(each[0] if request.methods is None else _added_up(request, each))

    def is_measured(self, loaded: LoadedModel) -> bool:
        """Whether the model's rates are known."""
        return self._rates.of(loaded.key) is not None

    def measure(self, loaded: LoadedModel) -> None:
        """Measure the model's rates if they are not known. The caller holds the model's lock."""
        self._rates.measured(loaded)

    def expected_stages(
        self, requests: Sequence[AttributionRequest], loaded: LoadedModel, shapes: Sequence[Shape]
    ) -> list[StageSeconds]:
        """The expected seconds of each method of a request (see `requests_of_methods`) on texts of these shapes, one
        after another. The model's rates are known.
        """
        rates = self._rates.of(loaded.key)
        assert rates is not None
        probed = [_probed_method(one) for one in requests]
        found = []
        for index, (one, method) in enumerate(zip(requests, probed, strict=True)):
            factor = self._rates.factor(loaded.key, route_of(one)) or 1.0
            attributing = rates.seconds(_all_passes(one, loaded, shapes)) * factor
            probing = 0.0
            if method is not None and method not in probed[:index]:  # methods that Inseq's loop runs share a probe
                probing = probes.expected_seconds(of_scores(one), loaded, rates, method, shapes)
            found.append(StageSeconds(one.attribution_method, probing, attributing))
        return found

    def generating_seconds(self, loaded: LoadedModel, inputs: Sequence[CountedInput]) -> float:
        """The expected seconds of generating the `new` tokens of these inputs. The model's rates are known."""
        rates = self._rates.of(loaded.key)
        assert rates is not None
        seconds = sum(rates.of_generation(each.prompt, each.new, each.beams) for each in inputs if each.new)
        return seconds * (self._rates.factor(loaded.key, _GENERATING) or 1.0)

    def prompt_cost(self, loaded: LoadedModel, one: CountedInput) -> float:
        """How many times as long as a new token's forward the prompt's takes. The model's rates are known."""
        rates = self._rates.of(loaded.key)
        assert rates is not None
        return rates.of_generation(one.prompt, 0, one.beams) / max(rates.of_generation(1, 0, one.beams), 1e-9)

    def learn_generating(self, loaded: LoadedModel, inputs: Sequence[CountedInput], took: float) -> None:
        """Record the real duration in seconds of generating the `new` tokens of these inputs."""
        expected = self.generating_seconds(loaded, inputs)
        self._rates.learn(loaded.key, _GENERATING, expected=expected, took=took)

    def check_memory(self, request: AttributionRequest, loaded: LoadedModel, shapes: Sequence[Shape]) -> None:
        """Raise `MemoryError` if these texts need more than the CPU's free memory. The caller holds the model's lock.

        A GPU refuses an allocation by itself, and only the job fails. The operating system promises more than it has,
        and then ends the process.
        """
        if loaded.key.device != "cpu":
            return
        # The single pass and masking divide their rows by what is free.
        every = [] if _engine(request, loaded, shapes) is not Engine.INSEQ else _all_passes(request, loaded, shapes)
        peak = self._peak(request, loaded, self._rates.measured(loaded), every, shapes) - loaded.size
        free = memory_of("cpu").free
        if peak > max(_ALWAYS_TRIED, free):
            raise MemoryError(f"the estimate is {peak / _GIB:.1f} GiB, and {free / _GIB:.1f} GiB are free")

    @staticmethod
    def _peak(
        request: AttributionRequest,
        loaded: LoadedModel,
        rates: ModelRates,
        every: list[Passes],
        shapes: Sequence[Shape],
    ) -> int:
        """Bytes, with the weights."""
        stored = sum(_score_bytes(request, loaded, each) for each in shapes)
        # All steps' scores stay in CPU memory until they are joined, and the joined copy needs as much again.
        joined = 2 * stored if loaded.key.device == "cpu" else 0
        return int(rates.peak_bytes(every)) + joined + _token_search_bytes(loaded, every)

    def _measured(self, loaded: LoadedModel) -> ModelRates:
        """The model's rates, measured now if needed.

        May wait while a job generates its targets, but not for its attribution: the job measures the rates before that.
        """
        while (rates := self._rates.of(loaded.key)) is None:
            if loaded.lock.acquire(timeout=0.05):
                try:
                    with DEFAULT_DTYPE.shared(), torch.enable_grad():
                        return self._rates.measured(loaded)
                finally:
                    loaded.lock.release()
        return rates

    def _inputs(self, request: AttributionRequest, loaded: LoadedModel) -> list[CountedInput]:
        """The token counts of each input, within the time limit: on threads that others wait for."""
        limit = self._settings.estimate_seconds
        deadline = time.monotonic() + limit
        sandbox = TextSandbox(self._sandboxes, loaded.source, should_cancel=lambda: time.monotonic() > deadline)
        counter = self._counter(loaded)
        with _held(self._reading, deadline), _held(counter.lock, deadline):
            try:
                limits = GenerationLimits.of(self._settings)
                return counter.inputs(request, self._settings.max_input_tokens, limits, sandbox)
            except Cancelled:
                raise InputRejected(
                    f"An estimate may take {limit:g} seconds to render and tokenize its texts, and these take longer. "
                    "Send fewer or shorter texts, or submit the job without an estimate "
                    "(INSEQ_API_ESTIMATE_SECONDS sets the limit)."
                ) from None

    def _counter(self, loaded: LoadedModel) -> TokenCounter:
        with self._guard:
            if loaded not in self._counters:
                self._counters[loaded] = TokenCounter(loaded)
            return self._counters[loaded]

    def _estimate(
        self,
        request: AttributionRequest,
        loaded: LoadedModel,
        rates: ModelRates,
        inputs: list[CountedInput],
        expected: StageSeconds,
    ) -> Estimate:
        """The cost of one method, whose stages take these seconds."""
        device, method = loaded.key.device, request.attribution_method
        shapes = [each.shape for each in inputs]
        engine = _engine(request, loaded, shapes)
        every = _all_passes(request, loaded, shapes)
        factor = self._rates.factor(loaded.key, route_of(request))
        probing, attributing = expected.probing, expected.attributing
        generating = self.generating_seconds(loaded, inputs)
        stored = sum(_score_bytes(request, loaded, each.shape) for each in inputs)
        peak = self._peak(request, loaded, rates, every, shapes)
        available = memory_of(device).free + loaded.size  # the weights are in memory already
        estimate = Estimate(
            model=request.model,
            methods=[method],
            device=device,
            dtype=loaded.key.dtype,
            engine=engine,
            inputs=[
                InputEstimate(input_tokens=each.prompt, target_tokens=each.target, attributed_tokens=each.shape.steps)
                for each in inputs
            ],
            is_upper_bound=any(each.new for each in inputs) or inseq_catalogue.methods()[method].traits.probes,
            forward_passes=sum(each.calls for each in every if each.is_forward),
            backward_passes=sum(each.calls * each.backwards for each in every),
            generation_passes=sum(each.new for each in inputs),
            seconds=SecondsEstimate(
                generating=generating,
                probing=probing,
                attributing=attributing,
                total=generating + probing + attributing,
            ),
            is_calibrated=factor is not None,
            peak_memory_bytes=peak,
            available_memory_bytes=available,
            fits=peak <= available,
            result_bytes=stored,
            warnings=[
                *_of_refinement(request),
                *dict.fromkeys(warning for each in inputs for warning in each.warnings),
            ],
            request=request,
        )
        if estimate.fits:
            return estimate
        smaller = "internal_batch_size" in inseq_catalogue.methods()[method].parameters
        warning = (
            f"{method} needs about {peak / _GIB:.1f} GiB and {device} has {available / _GIB:.1f} GiB: try "
            f"{'a smaller internal_batch_size, ' if smaller else ''}a shorter text or a smaller dtype."
        )
        return estimate.model_copy(update={"warnings": [*estimate.warnings, warning]})

    def _in_time(self, estimate: Estimate) -> Estimate:
        """The estimate, with a warning if the job would exceed its time limit."""
        limit = min(estimate.request.timeout_seconds or self._settings.max_job_seconds, self._settings.max_job_seconds)
        if estimate.seconds.total <= limit:
            return estimate
        warning = f"The job would be stopped after {limit:g} seconds, its time limit."
        return estimate.model_copy(update={"warnings": [*estimate.warnings, warning]})


def _added_up(request: AttributionRequest, each: list[Estimate]) -> Estimate:
    """The estimate of a comparison: the methods run one after another, on a target that is generated once."""
    generating = each[0].seconds.generating
    probing, attributing = sum(one.seconds.probing for one in each), sum(one.seconds.attributing for one in each)
    largest = max(each, key=lambda one: one.peak_memory_bytes)
    return each[0].model_copy(
        update={
            "methods": request.method_names,
            "is_upper_bound": any(one.is_upper_bound for one in each),
            "forward_passes": sum(one.forward_passes for one in each),
            "backward_passes": sum(one.backward_passes for one in each),
            "seconds": SecondsEstimate(
                generating=generating,
                probing=probing,
                attributing=attributing,
                total=generating + probing + attributing,
            ),
            "is_calibrated": all(one.is_calibrated for one in each),
            "peak_memory_bytes": largest.peak_memory_bytes,
            "fits": all(one.fits for one in each),
            "result_bytes": sum(one.result_bytes for one in each),
            "warnings": list(dict.fromkeys(warning for one in each for warning in one.warnings)),
            "request": request,
        }
    )


def check_weights(source: ModelSource, request: AttributionRequest, device: str, compute_dtype: str) -> None:
    """Raise `InvalidRequest` if the model's weights alone, in `compute_dtype`, exceed the device's memory."""
    weights = source.parameters * torch.finfo(getattr(torch, compute_dtype)).bits // 8
    memory = memory_of(device).total
    if weights > memory:
        raise InvalidRequest.at(
            "/model",
            f"The weights of {request.model!r} take {weights / _GIB:.1f} GiB in {compute_dtype}, and {device} has "
            f"{memory / _GIB:.1f} GiB. Use a smaller dtype or model.",
        )


def route_of(request: AttributionRequest) -> str:
    """The key under which measured times are shared: method and requested engine."""
    return f"{request.attribution_method}/{request.engine}"


def _of_refinement(request: AttributionRequest) -> list[str]:
    if not refinement.is_asked(request.attribution_args):
        return []
    counted = ", ".join(map(str, refinement.USUAL))
    return [f'n_steps "auto": the attempts with {counted} steps are counted; each further one costs as much again.']


def _engine(request: AttributionRequest, loaded: LoadedModel, shapes: Sequence[Shape]) -> Engine:
    """The engine that the job is expected to use."""
    method = inseq_catalogue.methods()[request.attribution_method]
    if masked_methods.is_masked(request):
        return Engine.MASKING
    return Engine.SINGLE_PASS if _takes_single_pass(request, loaded, method, shapes) else Engine.INSEQ


def _takes_single_pass(
    request: AttributionRequest, loaded: LoadedModel, method: Method, shapes: Sequence[Shape]
) -> bool:
    """Whether the single pass is expected to run: assumed if the model was not probed yet at such lengths."""
    if request.engine == Engine.INSEQ or obstacle(request, method):
        return False
    if rescaling_within(length_changes(loaded.network.config), shapes):
        return False
    probed = [verdict for key, verdict in dict(loaded.verdicts).items() if key[0] == method.name]
    # Each text met the shortest probe, and those of lengths that it reaches.
    reached = max([each.longest for each in shapes] + [min((each.length for each in probed), default=0)])
    return all(verdict.is_trusted for verdict in probed if verdict.length <= reached)


def _probed_method(request: AttributionRequest) -> Method | None:
    """The method whose probe the job may need: its own, or that of step scores beside Inseq's loop or masking."""
    method = inseq_catalogue.methods()[request.attribution_method]
    if masked_methods.is_masked(request):
        return inseq_catalogue.step_scores_only()
    if request.engine != Engine.INSEQ and not obstacle(request, method):
        return method
    return inseq_catalogue.step_scores_only() if passes.shares_scores(request) else None


def _all_passes(request: AttributionRequest, loaded: LoadedModel, shapes: Sequence[Shape]) -> list[Passes]:
    if refinement.is_asked(request.attribution_args):
        method = inseq_catalogue.methods()[request.attribution_method]
        attempts = refinement.usual(request, method)
        return [each for attempt in attempts for each in _all_passes(attempt, loaded, shapes)]
    if masked_methods.is_masked(request):
        return [each for shape in shapes for each in passes.of_masking(request, shape)]
    if _engine(request, loaded, shapes) is Engine.SINGLE_PASS:
        return [each for shape in shapes for each in passes.of_single_pass(request, shape)]
    at_once = _takes_single_pass(of_scores(request), loaded, inseq_catalogue.step_scores_only(), shapes)
    return [each for shape in shapes for each in passes.of_text(request, shape, scores_at_once=at_once)]


def _token_search_bytes(loaded: LoadedModel, every: Sequence[Passes]) -> int:
    """Bytes of the largest comparison by which a model with embeddings in each layer finds the tokens of given
    embeddings: one for each position, token of the vocabulary and dimension.
    """
    config = loaded.network.config.get_text_config(decoder=True)
    if not has_embeddings_of_layers(config):
        return 0
    return max((each.tokens for each in every), default=0) * int(config.vocab_size) * int(config.hidden_size)


def _score_bytes(request: AttributionRequest, loaded: LoadedModel, shape: Shape) -> int:
    """Bytes of one text's stored scores ([attributed, generated, ...] in float32) and step scores."""
    method, config = inseq_catalogue.methods()[request.attribution_method], loaded.network.config.get_text_config()
    prefix = 0 if shape.source and not (request.attribute_target or method.is_final_step) else shape.end
    attributed = shape.source + prefix
    return 4 * shape.steps * (attributed * _width(method.traits.scores, config) + len(request.step_scores))


def _width(scores: ScoreShape, config: Any) -> int:
    """Numbers for one attributed token at one step."""
    if scores is ScoreShape.EMBEDDING:
        return int(config.hidden_size)
    if scores is ScoreShape.LAYER:
        return int(config.num_hidden_layers)
    if scores is ScoreShape.HEAD:
        return int(config.num_hidden_layers * config.num_attention_heads)
    return 1 if scores is ScoreShape.TOKEN else 0


@contextmanager
def _held(lock: threading.Lock | threading.Semaphore, deadline: float) -> Iterator[None]:
    """Hold the lock within the block. Raises `ServerBusy` if it is not free by the deadline."""
    if not lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
        raise ServerBusy(
            "Other estimates take all the time that this server has for them; ask again in a few seconds.",
            headers={"Retry-After": "5"},
        )
    try:
        yield
    finally:
        lock.release()
