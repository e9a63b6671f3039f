"""A whole request on a device: the model leased, one method after another, the result encoded for the store.

Knows nothing of jobs, threads or storage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from inseq.data import FeatureAttributionOutput

from attribution.catalogue.generation_catalogue import GenerationLimits
from attribution.catalogue.next_token import requests_of_methods
from attribution.estimates.estimator import Estimator, route_of
from attribution.estimates.passes import Shape
from attribution.estimates.rates import Rates
from attribution.model_cache.cache import ModelCache
from attribution.model_cache.device_memory import is_out_of_memory
from attribution.model_cache.loading import LoadedModel
from attribution.model_cache.sources import bundled_models
from attribution.run import memory_retry, record
from attribution.run.candidate_notes import SequenceCandidates
from attribution.run.comparison_progress import ComparisonProgress
from attribution.run.generated_targets import GeneratedTargets
from attribution.run.method_run import Runner
from attribution.run.progress import Report
from attribution.single_pass.batch_sizes import smaller_pieces
from attribution.text.sandbox import Sandboxes, TextSandbox
from models import AttributionRequest, Progress, ResultPart, Stage
from problems import OutOfMemory
from settings import Settings

EncodePartial = Callable[[], list[ResultPart]]  # the parts of what is done so far; from any thread


@dataclass(frozen=True)
class Callbacks:
    """The caller's side of a run."""

    report: Report
    should_cancel: Callable[[], bool]
    offer_partial: Callable[[EncodePartial], None]


@dataclass(frozen=True)
class RequestRunner:
    """Runs requests on one model cache."""

    settings: Settings
    models: ModelCache
    rates: Rates
    estimator: Estimator
    sandboxes: Sandboxes

    def run(self, request: AttributionRequest, device: str, callbacks: Callbacks) -> list[ResultPart]:
        """The parts of a checked request's result (see `record.encode`).

        Where the device runs out of memory, the request runs once more with fewer rows in a forward; `OutOfMemory` if
        that fails too. Raises a `JobError` that says why it cannot be done, `Cancelled`, and whatever Inseq and the
        model raise.
        """
        try:
            return self._attempt(request, device, callbacks)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Outside the handler, whose error holds the tensors of the forward that failed.
        self.models.forget_idle()
        smaller = memory_retry.with_fewer_rows(request)
        warning = (
            f"{device} ran out of memory at first: it was done again with "
            f"{memory_retry.describe_rows(smaller) or 'more room'}."
        )
        try:
            with smaller_pieces(memory_retry.DIVISOR):
                return self._attempt(smaller, device, callbacks, warning)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self.models.forget_idle()
            raise OutOfMemory(
                f"{device} ran out of memory, also in smaller pieces ({_first_line(error)}). Shorten the text, lower "
                "n_steps, or set internal_batch_size to 1."
            ) from error

    def _attempt(
        self, request: AttributionRequest, device: str, callbacks: Callbacks, *warnings: str
    ) -> list[ResultPart]:
        """Every method of the request in turn; `warnings` go into each method's result."""
        callbacks.report(Progress(stage=Stage.LOADING_MODEL))
        if request.model not in bundled_models():
            self.sandboxes.prepare()  # it starts while the model is loaded
        is_comparison = request.methods is not None
        progress = ComparisonProgress(callbacks.report, request.method_names)
        targets = GeneratedTargets(
            are_shared=is_comparison,
            limits=GenerationLimits.of(self.settings),
            should_cancel=callbacks.should_cancel,
        )
        done: dict[str, FeatureAttributionOutput] = {}
        with self.models.lease(
            request.model, device=device, dtype=request.dtype, should_cancel=callbacks.should_cancel
        ) as loaded:
            expected = _ExpectedSeconds(request, loaded, self.estimator, progress)
            candidates: list[SequenceCandidates | None] = []
            for one in requests_of_methods(request):
                name = one.attribution_method
                runner = Runner(
                    one,
                    loaded,
                    report=progress.of_method(name) if is_comparison else callbacks.report,
                    should_cancel=callbacks.should_cancel,
                    expected_seconds=partial(expected.of_method, name),
                    max_input_tokens=self.settings.max_input_tokens,
                    most_n_steps=self.settings.max_n_steps,
                    sandbox=TextSandbox(self.sandboxes, loaded.source, callbacks.should_cancel),
                    recheck_share=self.settings.recheck_share,
                    targets=targets,
                    warnings=warnings,
                    candidates=candidates,
                )
                callbacks.offer_partial(partial(_encode_partial, request, dict(done), loaded, runner))
                output = runner.run()
                self.rates.learn(loaded.key, route_of(one), expected=runner.expected, took=runner.took)
                candidates = candidates or runner.candidates(output)
                done[name] = record.with_record(output, runner.record, loaded, runner.notes, candidates)
        callbacks.report(runner.saving)
        return record.encode(request, done)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class _ExpectedSeconds:
    """The time that each method of a request should take, estimated once the shapes of the texts are known."""

    def __init__(
        self, request: AttributionRequest, loaded: LoadedModel, estimator: Estimator, progress: ComparisonProgress
    ) -> None:
        self._request = request
        self._loaded = loaded
        self._estimator = estimator
        self._progress = progress
        self._seconds: dict[str, float] = {}

    def of_method(self, name: str, shapes: Sequence[Shape]) -> float:
        """Seconds of one method; the first call estimates all of them, which have the same texts."""
        if not self._seconds:
            for one in requests_of_methods(self._request):
                self._seconds[one.attribution_method] = self._estimator.expected_seconds(one, self._loaded, shapes)
                self._estimator.check_memory(one, self._loaded, shapes)
            self._progress.expect(self._seconds)
        return self._seconds[name]


def _encode_partial(
    request: AttributionRequest, done: Mapping[str, FeatureAttributionOutput], loaded: LoadedModel, runner: Runner
) -> list[ResultPart]:
    """The parts of the methods that are `done` and of what the present one has done; empty where there is nothing."""
    found = runner.partial()
    if found is None:
        return record.encode(request, done)
    output, notes = found
    run = runner.record
    output = record.with_record(output, run, loaded, notes, runner.candidates(output))
    return record.encode(request, {**done, run.request.attribution_method: output})
