"""The face of `attribution`: check a request, run it on a device, and show its result.

The only module that the service needs to know of this package. An engine is what `create_app` injects; a distributed
one would have the same methods.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import orjson
import torch
from inseq.data import FeatureAttributionOutput
from transformers.utils import logging as transformers_logging

from attribution.catalogue import comparison_checks, inseq_catalogue
from attribution.corrections import registry
from attribution.estimates.estimator import Estimator, check_weights, route_of
from attribution.estimates.passes import Shape
from attribution.estimates.rates import Rates
from attribution.model_cache.loading import LoadedModel, ModelCache, bundled_models
from attribution.results import (
    aggregation,
    comparison_view,
    heatmap_view,
    inseq_html_view,
    json_views,
    stored_form,
    table_views,
)
from attribution.run import record
from attribution.run.comparison_progress import JointProgress
from attribution.run.method_run import Runner
from attribution.single_pass.batch_sizes import is_out_of_memory, smaller_pieces
from attribution.text.generation import Written
from attribution_schema.view_options import ViewOptions
from models import AttributionRequest, Estimate, Progress, ResultPart, Stage
from problems import OutOfMemory
from settings import Settings

Partial = Callable[[], list[ResultPart]]
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
        self._estimator = Estimator(settings, self._models, self._rates)

    # Before the queue

    def check(self, request: AttributionRequest) -> AttributionRequest:
        """The request as it will run. Raises `InvalidRequest` for what can be known not to work."""
        self._models.check_allowed(request.model)
        kind = self._models.is_encoder_decoder(request.model)
        checked = comparison_checks.resolve(request, self._settings, is_encoder_decoder=kind)
        if source := self._models.on_this_machine(request.model):
            check_weights(source, checked, self._place(checked, self.devices()[0]))
        return checked

    def estimate(self, request: AttributionRequest) -> Estimate:
        """What a checked request would take: see `Estimator.estimate`."""
        return self._estimator.estimate(request, self._place(request, self.devices()[0]))

    def result_identity(self, request: AttributionRequest) -> str | None:
        """Equal for checked requests that must have the same result: model revision, arguments, texts, seed, device
        and versions. None where the revision is not known yet.
        """
        revision = self._models.revision(request.model)
        if revision is None:
            return None
        without = {"tags", "timeout_seconds", "priority", "reuse"}
        parts = [revision, request.model_dump(mode="json", exclude=without), self.devices(), record.versions()]
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
        offer_partial: Callable[[Partial], None] = lambda _: None,
    ) -> list[ResultPart]:
        """Run a checked request and return its result, encoded for the store.

        `offer_partial` is given a function that encodes what is done so far, from any thread, and also after this has
        raised. Where the device runs out of memory it is done once more, in smaller pieces. Raises a `JobError` that
        says why it cannot be done, `Cancelled` within one forward pass of `should_cancel` turning true, and whatever
        Inseq and the model raise.
        """
        place = self._place(request, device)
        smaller, notes = request, list[str]()
        for last in (False, True):
            try:
                with smaller_pieces(_SMALLER if last else 1):
                    return self._run(smaller, place, report, should_cancel, offer_partial, notes)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if last:
                    self._models.forget_idle()
                    raise OutOfMemory(
                        f"{place} ran out of memory, also in smaller pieces. Shorten the text, lower n_steps, or set "
                        "internal_batch_size to 1."
                    ) from error
            # Outside the handler, whose error holds the tensors of the forward that failed.
            self._models.forget_idle()
            smaller = _in_smaller_pieces(request)
            notes.append(
                f"{place} ran out of memory at first: it was done again with {_pieces(smaller) or 'more room'}."
            )
        raise AssertionError("unreachable")

    @staticmethod
    def _place(request: AttributionRequest, device: str) -> str:
        return "cpu" if request.force_cpu else device

    def _run(
        self,
        request: AttributionRequest,
        place: str,
        report: Callable[[Progress], None],
        should_cancel: Callable[[], bool],
        offer_partial: Callable[[Partial], None],
        notes: list[str],
    ) -> list[ResultPart]:
        report(Progress(stage=Stage.LOADING_MODEL))
        joint, written = JointProgress(report, request.method_names), dict[int, Written]()
        done: dict[str, FeatureAttributionOutput] = {}
        with self._models.lease(request.model, device=place, dtype=request.dtype) as loaded:

            def expected_seconds(shapes: Sequence[Shape]) -> float:
                for name in request.method_names if not joint.expected else ():
                    one = request.of_method(name)
                    joint.expected[name] = self._estimator.expected_seconds(one, loaded, shapes)
                return joint.expected[runner.request.attribution_method]

            for index, name in enumerate(request.method_names):
                runner = Runner(
                    request.of_method(name),
                    loaded,
                    report=report if request.methods is None else joint.of_method(index),
                    should_cancel=should_cancel,
                    expected_seconds=expected_seconds,
                    max_input_tokens=self._settings.max_input_tokens,
                    recheck_share=self._settings.recheck_share,
                    written=written if request.methods is not None else None,
                )
                runner.warnings += notes
                offer_partial(partial(_encode_partial, request, dict(done), loaded, runner))
                output = runner.run()
                self._rates.learn(loaded.key, route_of(runner.request), expected=runner.expected, took=runner.took)
                done[name] = record.with_record(output, runner, loaded, runner.token_notes)
        report(runner.finished())
        return record.encode(request, done)

    # After it

    def view(self, raw: bytes, view_format: str, options: ViewOptions) -> bytes:
        """A view of a stored result. Raises `InvalidRequest` where the scores cannot be shown as asked."""
        aggregation.check_options(options)
        return _VIEWS[view_format, options.style](stored_form.decode(raw), options)

    def comparison(self, raw: Mapping[str, bytes], options: ViewOptions) -> bytes:
        """A comparison's methods, by name, as one JSON document. Raises `InvalidRequest`."""
        aggregation.check_options(options)
        return comparison_view.json_view({name: stored_form.decode(each) for name, each in raw.items()}, options)

    def page_policy(self, options: ViewOptions) -> str:
        """The content security policy under which the html view shows, and nothing else."""
        return inseq_html_view.POLICY if options.style == "inseq" else heatmap_view.POLICY

    def methods(self) -> list[dict[str, Any]]:
        return inseq_catalogue.describe_methods()

    def step_functions(self) -> list[dict[str, Any]]:
        return inseq_catalogue.describe_step_functions()

    def aggregators(self) -> dict[str, Any]:
        return inseq_catalogue.describe_aggregators()

    def model_cache_numbers(self) -> dict[str, float]:
        return self._models.numbers()

    def corrections(self) -> list[dict[str, str]]:
        return registry.describe()

    def models(self) -> dict[str, Any]:
        """The models that ship with the project, those in memory, and what else this server allows."""
        return {
            "bundled": list(bundled_models()),
            "loaded": self._models.describe(),
            "loads": self._models.loads,
            "allowed": list(self._settings.allowed_models),
            "model_cache_bytes": self._settings.model_cache_bytes,
        }


def _encode_partial(
    request: AttributionRequest, done: Mapping[str, FeatureAttributionOutput], loaded: LoadedModel, runner: Runner
) -> list[ResultPart]:
    """What is done so far, as a result of its own; empty where nothing is."""
    found = runner.partial()
    if found is None:
        return record.encode(request, done)
    output, notes = found
    name = runner.request.attribution_method
    return record.encode(request, {**done, name: record.with_record(output, runner, loaded, notes)})


_SMALLER = 4  # what was too much is done again in quarters
# What divides the rows of one forward, and how many there are where nothing was asked for (n_steps, in Captum).
_PIECES = ("internal_batch_size", "perturbations_per_eval")


def _in_smaller_pieces(request: AttributionRequest) -> AttributionRequest:
    """The same request with a quarter of the rows in a forward, where the method can divide them."""
    if request.methods is not None:
        smaller = {name: _in_smaller_pieces(request.of_method(name)).attribution_args for name in request.methods}
        return request.model_copy(update={"attribution_args": smaller})
    parameters, arguments = (
        inseq_catalogue.methods()[request.attribution_method].parameters,
        dict(request.attribution_args),
    )
    for name in _PIECES:
        if name in parameters:
            rows = arguments.get(name) or arguments.get("n_steps") or parameters[name].default or 50
            arguments[name] = max(1, int(rows) // _SMALLER)
    return request.model_copy(update={"attribution_args": arguments})


def _pieces(request: AttributionRequest) -> str:
    each = [request.of_method(name).attribution_args for name in request.method_names]
    given = dict.fromkeys(f"{name} {one[name]}" for one in each for name in _PIECES if name in one)
    return " and ".join(given)
