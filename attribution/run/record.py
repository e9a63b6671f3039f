"""A result with the record of how it was computed, encoded in parts for the store."""

from __future__ import annotations

import copy
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Any

import orjson
from inseq.data import FeatureAttributionOutput

from attribution.catalogue import inseq_catalogue, next_token
from attribution.model_cache.loading import LoadedModel
from attribution.results import comparison_view, inseq_fields, json_views, stored_form
from attribution.run.candidate_notes import SequenceCandidates
from attribution.run.token_notes import SideNotes
from attribution_schema.view_options import ViewOptions
from models import Arguments, AttributionRequest, ResultPart

RAW, SUMMARY = "raw", "summary"


@dataclass(frozen=True)
class RunRecord:
    """How one method ran."""

    request: AttributionRequest  # of this method alone
    engine: dict[str, Any]  # see `EngineChoice.describe`
    corrections: list[str]  # names of the corrections that were applied
    corrections_withheld: list[str]  # names of those that the request switched off
    warnings: list[str]
    generation_args: list[Arguments]  # for each text that was generated, see `GenerationSettings.recorded`
    convergence: list[dict[str, list[float]]]  # for each sequence, see `completeness.describe`
    masking: list[dict[str, Any]]  # for each sequence, see `MaskedAttribution.describe`
    segments: list[list[dict[str, Any]]]  # for each text, see `InputParts.describe`
    n_steps: list[int]  # that a request with n_steps "auto" reached, for each sequence
    spans: list[dict[str, Any]]  # for each sequence whose spans were attributed, see `span_results.describe`


def with_record(
    output: FeatureAttributionOutput,
    run: RunRecord,
    loaded: LoadedModel,
    notes: list[SideNotes],
    candidates: list[SequenceCandidates | None],
) -> FeatureAttributionOutput:
    """The output of a run with its record, its tokens' notes and its steps' candidates in `info`, in plain JSON types,
    so that the result read from the store equals it.
    """
    told = {inseq_fields.CANDIDATES: candidates} if any(candidates) else {}
    output.info |= _info(run, loaded) | {inseq_fields.NOTES: notes} | told
    _leave_out_rows(output)
    output.info = orjson.loads(orjson.dumps(output.info, option=orjson.OPT_SERIALIZE_NUMPY, default=str))
    return inseq_fields.with_own_functions(output)


def _leave_out_rows(output: FeatureAttributionOutput) -> None:
    """Leave the rows of candidates out of the step scores. In copies: a partial result shares the run's own objects."""
    for name in ("sequence_attributions", "step_attributions"):
        each = getattr(output, name)
        if each is not None:
            setattr(output, name, [copy.copy(one) for one in each])
    for each in (*output.sequence_attributions, *(output.step_attributions or [])):
        if each.step_scores is not None:
            each.step_scores = next_token.without_own(each.step_scores)


def encode(request: AttributionRequest, outputs: Mapping[str, FeatureAttributionOutput]) -> list[ResultPart]:
    """The parts of a result that are stored: its raw scores, and the default view as JSON. Empty without outputs.

    `outputs` are by method name; a comparison has parts for each method (`part_of`) and a summary of all.
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
    """The name of a method's part; in a comparison, with the number of the method: `raw.0`."""
    return kind if request.methods is None else f"{kind}.{request.methods.index(method)}"


def _info(run: RunRecord, loaded: LoadedModel) -> dict[str, Any]:
    """Everything that is needed to compute the same numbers again."""
    request = run.request
    method = inseq_catalogue.methods()[request.attribution_method]
    functions = inseq_catalogue.step_functions()
    attributed = inseq_catalogue.attributed_function(request)
    defaults = {
        "attribution_args": method.parameters,
        "attributed_fn_args": attributed.parameters,
        "step_scores_args": {k: v for name in request.step_scores for k, v in functions[name].parameters.items()},
    }
    if run.n_steps:  # in place of "auto"
        steps = run.n_steps[0] if len(set(run.n_steps)) == 1 else run.n_steps
        request = request.model_copy(update={"attribution_args": request.attribution_args | {"n_steps": steps}})
    return {
        "model_name": loaded.source.name,
        "model_revision": loaded.source.revision,
        "model_source": loaded.source.kind,
        "device": loaded.key.device,
        **({"quantization": loaded.source.quantization} if loaded.source.quantization else {}),
        "dtype": loaded.key.dtype,
        "compute_dtype": loaded.compute_dtype,
        **run.engine,
        **({"languages": request.languages} if request.languages else {}),
        "seed": request.seed,
        "arguments": {
            name: inseq_catalogue.with_defaults(parameters, getattr(request, name))
            for name, parameters in defaults.items()
        }
        | {
            "attributed_fn": attributed.name,
            "skip_special_tokens": request.skip_special_tokens,
            "clean_special_chars": request.clean_special_chars,
            **({"generation_args": _of_all_texts(run.generation_args)} if run.generation_args else {}),
        },
        "corrections": run.corrections,
        "warnings": [*_corrections_off(run.corrections_withheld), *run.warnings],
        **({"convergence": run.convergence} if run.convergence else {}),
        **{name: [each[name] for each in run.spans] for name in (run.spans[0] if run.spans else ())},
        **({inseq_fields.SEGMENTS: run.segments} if run.segments else {}),
        **({"masking": run.masking} if run.masking else {}),
        "versions": versions(),
    }


def _of_all_texts(each: list[Arguments]) -> Arguments:
    """The arguments of all generations; one that differs between the texts (a length) is a list with each text's."""
    first = each[0]
    return {
        name: value if all(one.get(name) == value for one in each) else [one.get(name) for one in each]
        for name, value in first.items()
    }


def _corrections_off(withheld: list[str]) -> list[str]:
    if not withheld:
        return []
    names = ", ".join(withheld)
    return [f"corrections is false: these are Inseq's own numbers, without {names} (see /attribution/corrections)."]


@cache
def versions() -> dict[str, str]:
    """The versions of Python and of the packages that compute the numbers."""
    packages = ("inseq", "torch", "transformers", "captum", "tokenizers", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
