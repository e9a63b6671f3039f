"""The face of `attribution`: check a request, run it on a device, and show its result.

The only module that the service needs to know of this package. An engine is what `create_app` injects; a distributed
one would have the same methods.
"""

from __future__ import annotations

import hashlib
import platform
import warnings
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from typing import Any

import orjson
import torch
from inseq.data import FeatureAttributionOutput
from transformers.utils import logging as transformers_logging

from attribution import catalogue, checks, results
from attribution.corrections import registry
from attribution.corrections.registry import Ledger
from attribution.model_cache import LoadedModel, ModelCache, bundled_models
from attribution.results import ViewOptions
from attribution.runner import Runner
from models import AttributionRequest, Progress, ResultPart, Stage
from problems import OutOfMemory
from settings import Settings

RAW, SUMMARY = "raw", "summary"


class AttributionEngine:
    """Inseq on this machine's devices."""

    def __init__(self, settings: Settings) -> None:
        # Progress bars and advice for people at a terminal have no place in a service's log.
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        warnings.filterwarnings("ignore", module=r"(captum|inseq|transformers)\b")
        self._settings = settings
        self._models = ModelCache(settings)

    # Before the queue

    def check(self, request: AttributionRequest) -> AttributionRequest:
        """The request as it will run. Raises `InvalidRequest` for what can be known not to work."""
        self._models.check_allowed(request.model)
        kind = self._models.is_encoder_decoder(request.model)
        return checks.resolve(request, self._settings, is_encoder_decoder=kind)

    def result_identity(self, request: AttributionRequest) -> str | None:
        """Equal for checked requests that must have the same result: model revision, arguments, texts, seed, device
        and versions. None where the revision is not known yet.
        """
        revision = self._models.revision(request.model)
        if revision is None:
            return None
        without = {"tags", "timeout_seconds", "priority", "reuse"}
        parts = [revision, request.model_dump(mode="json", exclude=without), self.devices(), versions()]
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
    ) -> list[ResultPart]:
        """Run a checked request and return its result, encoded for the store.

        Where the device runs out of memory it is done once more, in smaller pieces. Raises a `JobError` that says why
        it cannot be done, `Cancelled` within one forward pass of `should_cancel` turning true, and whatever Inseq and
        the model raise.
        """
        place = "cpu" if request.force_cpu else device
        smaller, notes = request, list[str]()
        for last in (False, True):
            try:
                return self._run(smaller, place, report, should_cancel, notes)
            except (RuntimeError, MemoryError) as error:
                if not _is_out_of_memory(error):
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

    def _run(
        self,
        request: AttributionRequest,
        place: str,
        report: Callable[[Progress], None],
        should_cancel: Callable[[], bool],
        notes: list[str],
    ) -> list[ResultPart]:
        report(Progress(stage=Stage.LOADING_MODEL))
        with self._models.lease(request.model, device=place, dtype=request.dtype) as loaded:
            runner = Runner(
                request,
                loaded,
                report=report,
                should_cancel=should_cancel,
                max_input_tokens=self._settings.max_input_tokens,
            )
            runner.warnings += notes
            output = runner.run()
            output.info |= _record(request, loaded, runner)
        report(runner.finished())
        return encode(output)

    # After it

    def view(self, raw: bytes, view_format: str, options: ViewOptions) -> bytes:
        """A view of a stored result. Raises `InvalidRequest` where the scores cannot be shown as asked."""
        output = results.decode(raw)
        return results.inseq_view(output, options) if view_format == "inseq" else results.json_view(output, options)

    def methods(self) -> list[dict[str, Any]]:
        return catalogue.describe_methods()

    def step_functions(self) -> list[dict[str, Any]]:
        return catalogue.describe_step_functions()

    def aggregators(self) -> dict[str, Any]:
        return catalogue.describe_aggregators()

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


def encode(output: FeatureAttributionOutput) -> list[ResultPart]:
    """The parts of a result that are stored: everything, and the default view as it is sent."""
    # Plain JSON types from here on, so that what is read back equals what was written.
    output.info = orjson.loads(orjson.dumps(output.info, option=orjson.OPT_SERIALIZE_NUMPY, default=str))
    raw = results.encode(output)
    summary = results.json_view(results.with_own_functions(output), ViewOptions())
    return [
        ResultPart(RAW, results.RAW_CODEC, raw),
        ResultPart(SUMMARY, results.JSON_CODEC, results.compress(summary)),
    ]


def _record(request: AttributionRequest, loaded: LoadedModel, runner: Runner) -> dict[str, Any]:
    """What it takes to get the same numbers again."""
    method = catalogue.methods()[request.method]
    functions = catalogue.step_functions()
    attributed = functions[request.attributed_fn or "probability"]
    defaults = {
        "attribution_args": method.parameters,
        "attributed_fn_args": attributed.parameters,
        "step_scores_args": {k: v for name in request.step_scores for k, v in functions[name].parameters.items()},
    }
    return {
        "model_name": loaded.source.name,
        "model_revision": loaded.source.revision,
        "model_source": loaded.source.kind,
        "device": loaded.key.device,
        "dtype": loaded.key.dtype,
        "engine": "inseq",
        **({"languages": request.languages} if request.languages else {}),
        "seed": request.seed,
        "arguments": {
            name: {k: None if p.is_required else p.default for k, p in parameters.items()} | getattr(request, name)
            for name, parameters in defaults.items()
        }
        | {
            "attributed_fn": attributed.name,
            "skip_special_tokens": request.skip_special_tokens,
            "clean_special_chars": request.clean_special_chars,
        },
        "corrections": runner.ledger.applied,
        "warnings": [*_corrections_off(runner.ledger), *runner.warnings],
        **({"convergence": runner.convergence} if runner.convergence else {}),
        results.NOTES: runner.token_notes,
        "versions": versions(),
    }


def _corrections_off(ledger: Ledger) -> list[str]:
    if not ledger.withheld:
        return []
    names = ", ".join(ledger.withheld)
    return [f"corrections is false: these are Inseq's own numbers, without {names} (see /attribution/corrections)."]


@cache
def versions() -> dict[str, str]:
    """The software that makes the numbers."""
    packages = ("inseq", "torch", "transformers", "captum", "tokenizers", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


# What divides the rows of one forward, and how many there are where nothing was asked for (n_steps, in Captum).
_PIECES = ("internal_batch_size", "perturbations_per_eval")


def _in_smaller_pieces(request: AttributionRequest) -> AttributionRequest:
    """The same request with a quarter of the rows in a forward, where the method can divide them."""
    parameters, arguments = catalogue.methods()[request.method].parameters, dict(request.attribution_args)
    for name in _PIECES:
        if name in parameters:
            rows = arguments.get(name) or arguments.get("n_steps") or parameters[name].default or 50
            arguments[name] = max(1, int(rows) // 4)
    return request.model_copy(update={"attribution_args": arguments})


def _pieces(request: AttributionRequest) -> str:
    given = [f"{name} {request.attribution_args[name]}" for name in _PIECES if name in request.attribution_args]
    return " and ".join(given)


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
