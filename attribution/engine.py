"""The face of `attribution`: check a request, run it on a device, and show its result.

The only module that the service needs to know of this package. An engine is what `create_app` injects; a distributed
one would have the same methods.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import orjson
import torch
from transformers.utils import logging as transformers_logging

from attribution.catalogue import comparison_checks, plain_data
from attribution.corrections import registry
from attribution.estimates import method_costs
from attribution.estimates.estimator import Estimator, check_weights
from attribution.estimates.rates import Rates
from attribution.model_cache import model_listing
from attribution.model_cache.cache import ModelCache
from attribution.model_cache.sources import bundled_models
from attribution.results import (
    aggregation,
    comparison_view,
    heatmap_view,
    html_page,
    inseq_html_view,
    json_views,
    stored_form,
    table_views,
    trace_views,
)
from attribution.run import record
from attribution.run.request_run import Callbacks, EncodePartial, RequestRunner
from attribution.text.sandbox import Sandboxes
from attribution_schema.trace_options import TraceOptions
from attribution_schema.view_options import ViewOptions
from models import AttributionRequest, Estimate, Progress, ResultPart
from settings import Settings

_VIEWS = {
    ("json", "heatmap"): json_views.json_view,
    ("inseq", "heatmap"): json_views.inseq_view,
    ("csv", "heatmap"): table_views.csv_view,
    ("parquet", "heatmap"): table_views.parquet_view,
    ("html", "heatmap"): heatmap_view.html_view,
    ("html", "inseq"): inseq_html_view.inseq_html_view,
}


class AttributionEngine:
    """Inseq on this machine's devices."""

    def __init__(self, settings: Settings) -> None:
        # Progress bars and advice for people at a terminal have no place in a service's log.
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        warnings.filterwarnings("ignore", module=r"(captum|inseq|transformers)\b")
        self._settings = settings
        self._models = ModelCache(settings)
        self._rates = Rates()
        sandboxes = Sandboxes(seconds=settings.text_seconds, memory=settings.text_memory_bytes)
        self._estimator = Estimator(settings, self._models, self._rates, sandboxes)
        self._runner = RequestRunner(settings, self._models, self._rates, self._estimator, sandboxes)

    # Before the queue

    def check(self, request: AttributionRequest) -> AttributionRequest:
        """The request as it will run. Raises `InvalidRequest` for what can be known not to work."""
        self._models.sources.check_allowed(request.model)
        kind = self._models.sources.is_encoder_decoder(request.model)
        checked = comparison_checks.resolve(
            request,
            self._settings,
            is_encoder_decoder=kind,
            config=self._models.sources.config(request.model),
            generation=self._models.sources.generation_config(request.model),
        )
        if source := self._models.sources.on_this_machine(request.model):
            device = self._place(checked, self.devices()[0])
            check_weights(source, checked, device, self._models.compute_dtype(checked.dtype, device))
        return checked

    def estimate(self, request: AttributionRequest) -> Estimate:
        """What a checked request would take: see `Estimator.estimate`."""
        return self._estimator.estimate(request, self._place(request, self.devices()[0]))

    def result_identity(self, request: AttributionRequest) -> str | None:
        """Equal for checked requests that must have the same result: model revision, arguments, texts, seed, device
        and versions. None where the revision is not known yet.
        """
        revision = self._models.sources.revision(request.model)
        if revision is None:
            return None
        without = {"name", "notes", "tags", "timeout_seconds", "priority", "reuse", "webhook", "webhook_events"}
        devices = [*self.devices(), *(["cpu"] if request.force_cpu else [])]
        computed = [self._models.compute_dtype(request.dtype, each) for each in devices]
        parts = [revision, request.model_dump(mode="json", exclude=without), devices, computed, record.versions()]
        return hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest()

    # On a worker

    def devices(self) -> tuple[str, ...]:
        """The devices that jobs run on."""
        if self._settings.devices != ("auto",):
            return self._settings.devices
        return tuple(f"cuda:{index}" for index in range(torch.cuda.device_count())) or ("cpu",)

    def prepare_worker(self, threads: int) -> None:
        """Called once on each worker's thread: its share of the cores for torch's own threads."""
        torch.set_num_threads(threads)

    def run(
        self,
        request: AttributionRequest,
        *,
        device: str,
        report: Callable[[Progress], None],
        should_cancel: Callable[[], bool],
        offer_partial: Callable[[EncodePartial], None] = lambda _: None,
    ) -> list[ResultPart]:
        """Run a checked request and return its result, encoded for the store.

        `report` receives the progress; its `eta_seconds` is the expected time of what is left, never extrapolated from
        elapsed time. `offer_partial` receives a function that encodes what is done so far, from any thread, and also
        after this has raised. Where the device runs out of memory, the request runs once more in smaller pieces. Raises
        a `JobError` that says why it cannot be done, `Cancelled` within one large module of a forward or backward of
        `should_cancel` turning true, and whatever Inseq and the model raise.
        """
        callbacks = Callbacks(report, should_cancel, offer_partial)
        return self._runner.run(request, self._place(request, device), callbacks)

    @staticmethod
    def _place(request: AttributionRequest, device: str) -> str:
        return "cpu" if request.force_cpu else device

    # After it

    def view(self, raw: bytes, view_format: str, options: ViewOptions) -> bytes:
        """A view of a stored result. Raises `InvalidRequest` where the scores cannot be shown as asked."""
        aggregation.check_options(options)
        return _VIEWS[view_format, options.style](stored_form.decode(raw), options)

    def trace(self, raw: bytes, view_format: str, options: ViewOptions, asked: TraceOptions) -> bytes:
        """A trace through a stored result, in a view. Raises `InvalidRequest` where it cannot be traced as asked."""
        aggregation.check_options(options)
        return trace_views.trace_view(stored_form.decode(raw), view_format, options, asked)

    def comparison(self, raw: Mapping[str, bytes], options: ViewOptions) -> bytes:
        """A comparison's methods, by name, as one JSON document. Raises `InvalidRequest`."""
        aggregation.check_options(options)
        return comparison_view.json_view({name: stored_form.decode(each) for name, each in raw.items()}, options)

    def page_policy(self, options: ViewOptions) -> str:
        """The content security policy under which the html view shows, and nothing else."""
        return inseq_html_view.POLICY if options.style == "inseq" else html_page.POLICY

    def methods(self) -> list[dict[str, Any]]:
        return method_costs.describe_methods()

    def step_functions(self) -> list[dict[str, Any]]:
        return plain_data.of_step_functions()

    def aggregators(self) -> dict[str, Any]:
        return plain_data.of_aggregators()

    def model_cache_numbers(self) -> dict[str, float]:
        return self._models.numbers()

    def corrections(self) -> list[dict[str, str]]:
        return registry.all_corrections()

    def is_listed(self, model: str) -> bool:
        """Whether the operator made this model's name known: bundled, in a model directory, or allowed by name."""
        return self._models.sources.is_listed(model)

    def models(self) -> dict[str, Any]:
        """The bundled models, those on this machine, those in memory, and what else this server allows."""
        return {
            "bundled": list(bundled_models()),
            "available": model_listing.available(self._models),
            "loaded": self._models.loaded_models(),
            "loads": self._models.loads,
            "allowed": list(self._settings.allowed_models),
            "model_cache_bytes": self._settings.model_cache_bytes,
        }
