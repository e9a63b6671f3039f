"""A whole request on a device: the model leased, one method after another, the result encoded for the store.

Knows nothing of jobs, threads or storage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from inseq.data import FeatureAttributionOutput

from attribution.catalogue.generation_catalogue import GenerationLimits
from attribution.catalogue.method_requests import requests_of_methods
from attribution.estimates.estimator import Estimator, route_of
from attribution.estimates.rates import Rates
from attribution.model_cache.cache import ModelCache
from attribution.model_cache.device_memory import is_out_of_memory
from attribution.model_cache.loading import LoadedModel
from attribution.model_cache.sources import bundled_models
from attribution.run import memory_retry, record
from attribution.run.candidate_notes import SequenceCandidates
from attribution.run.generated_targets import GeneratedTargets
from attribution.run.method_run import Runner
from attribution.run.request_progress import Report, RequestProgress
from attribution.run.time_plan import TimePlan
from attribution.single_pass.batch_sizes import smaller_pieces
from attribution.text.sandbox import Sandboxes, TextSandbox
from models import AttributionRequest, ResultPart
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
        is_comparison = request.methods is not None
        progress = RequestProgress(callbacks.report, texts=request.count, names_methods=is_comparison)
        try:
            return self._attempt(request, device, callbacks, progress)
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
                return self._attempt(smaller, device, callbacks, progress, warning)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self.models.forget_idle()
            raise OutOfMemory(
                f"{device} ran out of memory, also in smaller pieces ({_first_line(error)}). Shorten the text, lower "
                "n_steps, or set internal_batch_size to 1."
            ) from error

    def _attempt(
        self,
        request: AttributionRequest,
        device: str,
        callbacks: Callbacks,
        progress: RequestProgress,
        *warnings: str,
    ) -> list[ResultPart]:
        """Every method of the request in turn; `warnings` go into each method's result."""
        progress.restart()
        if request.model not in bundled_models():
            self.sandboxes.prepare()  # it starts while the model is loaded
        targets = GeneratedTargets(
            are_shared=request.methods is not None,
            limits=GenerationLimits.of(self.settings),
            should_cancel=callbacks.should_cancel,
        )
        done: dict[str, FeatureAttributionOutput] = {}
        with self.models.lease(
            request.model, device=device, dtype=request.dtype, should_cancel=callbacks.should_cancel
        ) as loaded:
            plan = TimePlan(request, loaded, self.estimator, progress)
            candidates: list[SequenceCandidates | None] = []
            for one in requests_of_methods(request):
                name = one.attribution_method
                runner = Runner(
                    one,
                    loaded,
                    progress=progress,
                    plan=plan,
                    should_cancel=callbacks.should_cancel,
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
        progress.saving()
        return record.encode(request, done)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


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
