"""What is kept of a run: its output with the record of how to get it again, encoded in parts for the store."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from typing import Any

import orjson
from inseq.data import FeatureAttributionOutput

from attribution.catalogue import inseq_catalogue
from attribution.corrections.registry import Ledger
from attribution.model_cache.loading import LoadedModel
from attribution.results import comparison_view, inseq_fields, json_views, stored_form
from attribution.run.method_run import Runner
from attribution.text.readable_tokens import Note
from attribution_schema.view_options import ViewOptions
from models import AttributionRequest, ResultPart

RAW, SUMMARY = "raw", "summary"


def with_record(
    output: FeatureAttributionOutput, runner: Runner, loaded: LoadedModel, notes: list[dict[str, list[Note]]]
) -> FeatureAttributionOutput:
    """A run's output with all that is known of it in its `info`, in plain JSON types: what is read back equals it."""
    output.info |= _record(runner, loaded) | {inseq_fields.NOTES: notes}
    output.info = orjson.loads(orjson.dumps(output.info, option=orjson.OPT_SERIALIZE_NUMPY, default=str))
    return inseq_fields.with_own_functions(output)


def encode(request: AttributionRequest, outputs: Mapping[str, FeatureAttributionOutput]) -> list[ResultPart]:
    """The parts that are stored: everything, and the default view as it is sent. Empty for no output.

    `outputs` by method; a comparison has parts for each method (`part_of`) and a summary of all.
    """
    parts = []
    for name, output in outputs.items():
        summary = json_views.json_view(output, ViewOptions())
        parts += [
            ResultPart(part_of(request, RAW, name), stored_form.RAW_CODEC, stored_form.encode(output)),
            ResultPart(part_of(request, SUMMARY, name), stored_form.JSON_CODEC, stored_form.compress(summary)),
        ]
    if request.methods is not None and outputs:
        joint = comparison_view.json_view(outputs, ViewOptions())
        parts.append(ResultPart(SUMMARY, stored_form.JSON_CODEC, stored_form.compress(joint)))
    return parts


def part_of(request: AttributionRequest, kind: str, method: str) -> str:
    """The name of a method's part: by its number where there are several."""
    return kind if request.methods is None else f"{kind}.{request.methods.index(method)}"


def _record(runner: Runner, loaded: LoadedModel) -> dict[str, Any]:
    """What it takes to get the same numbers again."""
    request = runner.request
    method = inseq_catalogue.methods()[request.attribution_method]
    functions = inseq_catalogue.step_functions()
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
        **runner.engine,
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
