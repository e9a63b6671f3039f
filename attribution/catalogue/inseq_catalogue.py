"""Methods, functions and their arguments, read from Inseq's own registries, signatures and docstrings.

Methods, step functions and aggregators, each with its parameters. Knows nothing of models. What the registries do
not say is in `traits`; requests are checked in `checks`.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from typing import Any

import torch
from inseq.attr.feat import FeatureAttribution
from inseq.attr.feat.gradient_attribution import GradientAttributionRegistry
from inseq.attr.feat.internals_attribution import InternalsAttributionRegistry
from inseq.attr.feat.perturbation_attribution import PerturbationAttributionRegistry
from inseq.attr.step_functions import STEP_SCORES_MAP, StepFunctionDecoderOnlyArgs, StepFunctionEncoderDecoderArgs
from inseq.data.aggregation_functions import AggregationFunction
from inseq.data.aggregator import Aggregator
from pydantic import ConfigDict, TypeAdapter, ValidationError

import perturbation
from attribution.catalogue import next_token, traits, words
from attribution.catalogue.traits import (
    DEFAULT_FUNCTION,
    STEP_SCORES_ONLY,
    MethodTraits,
    Reads,
    ScoreShape,
    StepFunctionTraits,
)
from attribution.catalogue.words import Words
from attribution.corrections.step_functions import is_corrected_name
from models import AttributionRequest
from perturbation import PerturbationMethod

REQUIRED = inspect.Parameter.empty

# Arguments that Inseq fills in itself.
_SUPPLIED_BY_INSEQ = {
    "self", "cls", "args", "attribution_model", "hook_to_model", "inputs", "baselines", "target", "_target",
    "additional_forward_args", "show_progress", "attr", "tensors", "do_pre_aggregation_checks",
    "do_post_aggregation_checks",
}  # fmt: skip


@dataclass(frozen=True)
class Parameter:
    """One argument that a request may set: its type as JSON Schema, and its default."""

    name: str
    annotation: Any
    default: Any = REQUIRED

    @property
    def is_required(self) -> bool:
        return self.default is REQUIRED

    def parse(self, value: Any) -> Any:
        """The value in the type that Inseq expects. Raises `ValueError` that says what was expected.

        JSON is read strictly: `"20"` is no integer, `1` no boolean; a list may stand for a tuple.
        """
        adapter = _adapter(self.annotation)
        try:
            return adapter.validate_json(json.dumps(value), strict=True)
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            raise ValueError(f"{problem['msg']} (expected {self.type_name})") from None

    @property
    def type_name(self) -> str:
        """The type for people, e.g. `int` or `list[str] | None`."""
        text = self.annotation.__name__ if isinstance(self.annotation, type) else str(self.annotation)
        return re.sub(r"\b(typing|collections\.abc)\.", "", text).replace("NoneType", "None")


# Inseq takes it among other keyword arguments: a module's name, such as `transformer.h.0`; by default the embedding.
_LAYER = {"target_layer": Parameter("target_layer", str | None, None)}


class Family(StrEnum):
    """What a method changes or reads, by Inseq's own registries."""

    GRADIENT = "gradient"  # derivatives with respect to embeddings or activations
    PERTURBATION = "perturbation"  # runs of changed texts or states
    INTERNALS = "internals"  # what the model computes anyway
    NONE = "none"  # attributes nothing


# Inseq's registry of a family's methods.
_FAMILIES = {
    GradientAttributionRegistry: Family.GRADIENT,
    PerturbationAttributionRegistry: Family.PERTURBATION,
    InternalsAttributionRegistry: Family.INTERNALS,
}


@dataclass(frozen=True)
class Method:
    """An attribution method. `call_parameters` go to its `attribute`, `init_parameters` to its constructor."""

    name: str
    title: str
    description: str
    family: Family
    reference: str | None
    call_parameters: dict[str, Parameter]
    init_parameters: dict[str, Parameter]
    is_layer: bool
    is_final_step: bool  # one pass over the whole sequence: reads weights or states, not one step after another
    ignores_attributed_fn: bool

    @property
    def parameters(self) -> dict[str, Parameter]:
        return {**self.call_parameters, **self.init_parameters}

    @property
    def traits(self) -> MethodTraits:
        return traits.of_method(self.name)

    @property
    def is_gradient(self) -> bool:
        return self.family is Family.GRADIENT

    @property
    def has_scores(self) -> bool:
        """Whether it attributes anything: false for `dummy`, which computes step scores only."""
        return self.traits.scores is not ScoreShape.NONE

    def with_defaults(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """All arguments of the method: these, and the default of each other one (None for a required one)."""
        return with_defaults(self.parameters, arguments)


@dataclass(frozen=True)
class StepFunction:
    """A function of one generation step's output: reported as a step score, or attributed."""

    name: str
    title: str
    description: str
    parameters: dict[str, Parameter]
    function: Callable[..., torch.Tensor] = field(compare=False)

    @property
    def is_contrastive(self) -> bool:
        return "contrast_targets" in self.parameters

    @property
    def traits(self) -> StepFunctionTraits:
        return traits.of_step_function(self.name)


@dataclass(frozen=True)
class AggregatorEntry:
    """An aggregator of a result's scores, and its arguments."""

    name: str
    description: str
    parameters: dict[str, Parameter]
    cls: type[Aggregator] = field(compare=False)


@cache
def methods() -> dict[str, Method]:
    """Every method of `inseq.list_feature_attribution_methods()` and of `perturbation.METHODS`, by name, sorted."""
    found = {name: _method(name, cls) for name, cls in FeatureAttribution.available_classes().items()}
    found |= {name: _own_method(name, each) for name, each in perturbation.METHODS.items()}
    return dict(sorted(found.items()))


@cache
def step_functions() -> dict[str, StepFunction]:
    """Every function of `inseq.list_step_functions()`, by name, sorted."""
    reserved = {
        *StepFunctionDecoderOnlyArgs.__dataclass_fields__,
        *StepFunctionEncoderDecoderArgs.__dataclass_fields__,
    }
    return {
        name: StepFunction(
            name=name,
            title=(known := _words(words.STEP_FUNCTIONS, name, function)).title,
            description=known.description,
            parameters=_with_ids({k: v for k, v in _parameters(function).items() if k not in reserved}),
            function=function,
        )
        for name, function in sorted(STEP_SCORES_MAP.items())
        if not is_corrected_name(name) and name not in next_token.OWN
    }


def _with_ids(parameters: dict[str, Parameter]) -> dict[str, Parameter]:
    """The parameters of a step function, with ours for a contrast as token ids where it has one."""
    if "contrast_targets" not in parameters:
        return parameters
    return parameters | {"contrast_ids": Parameter("contrast_ids", list[list[int]] | None, None)}


def step_scores_only() -> Method:
    """Inseq's method that computes step scores and attributes nothing."""
    return methods()[STEP_SCORES_ONLY]


def attributed_function(request: AttributionRequest) -> StepFunction:
    """The step function that a request attributes: the one it names, else Inseq's default."""
    return step_functions()[request.attributed_fn or DEFAULT_FUNCTION]


def samples_share_forwards(request: AttributionRequest) -> bool:
    """Whether the perturbed samples of a step (LIME's) run in batches of our size: the request names no batch size, and
    the attributed function reads the logits of each row by itself and draws nothing.
    """
    if methods()[request.attribution_method].traits.perturbed != "n_samples" or not request.corrections:
        return False
    own_size = "perturbations_per_eval" in request.attribution_args
    return not own_size and attributed_function(request).traits.reads is Reads.LOGITS


def has_identity(request: AttributionRequest, method: Method, arguments: Mapping[str, Any] | None = None) -> bool:
    """Whether the scores of this request must sum to a difference of the attributed function (completeness).

    `arguments` are the method's, where they are not the request's `attribution_args`.
    """
    if method.traits.completeness_advice is None or attributed_function(request).traits.draws_dropout:
        return False
    arguments = request.attribution_args if arguments is None else arguments
    default = method.traits.multiplies_by_inputs
    # A layer inside the network may be one of several ways from the input to the output.
    return arguments.get("multiply_by_inputs", default) == default and not arguments.get("target_layer")


@cache
def aggregators() -> dict[str, AggregatorEntry]:
    """Inseq's aggregators that need one result only (`pair` compares two), by name, sorted."""
    return {
        name: AggregatorEntry(name, _first_sentence(cls), _parameters(cls.aggregate), cls)
        for name, cls in sorted(Aggregator.available_classes().items())
        if name != "pair"
    }


@cache
def aggregation_functions() -> list[str]:
    """The functions an aggregator can apply (`aggregate_fn`), sorted."""
    return sorted(AggregationFunction.available_classes())


# Reading Inseq


def _method(name: str, cls: type[FeatureAttribution]) -> Method:
    # The names that the constructor mentions tell which operation it makes, and which flags it sets, without a model.
    mentioned = set(cls.__init__.__code__.co_names)
    module = vars(sys.modules[cls.__module__])
    operations = [module.get(each) or getattr(cls, each, None) for each in sorted(mentioned)]
    operation = next((op for op in operations if isinstance(op, type) and hasattr(op, "attribute")), None)
    call_parameters = _parameters(operation.attribute) if operation else {}
    if operation is not None and hasattr(operation, "perturb_func"):
        # LIME hands what is left over to its perturbation function.
        call_parameters |= _parameters(operation.perturb_func)
    known = _words(words.METHODS, name, cls)
    references = re.findall(r"https?://[^\s>`<]+", inspect.getdoc(cls) or "")
    return Method(
        name=name,
        title=known.title,
        description=known.description,
        family=next((family for registry, family in _FAMILIES.items() if issubclass(cls, registry)), Family.NONE),
        reference=references[0] if references else None,
        call_parameters=call_parameters,
        init_parameters=_parameters(cls.__init__) | (_LAYER if name.startswith("layer_") else {}),
        is_layer=name.startswith("layer_"),
        is_final_step="is_final_step_method" in mentioned and traits.of_method(name).scores is not ScoreShape.NONE,
        ignores_attributed_fn="use_predicted_target" in mentioned or traits.of_method(name).scores is ScoreShape.NONE,
    )


def _own_method(name: str, method: PerturbationMethod) -> Method:
    """A method of this service; its arguments are those of the function that computes it."""
    known = _words(words.METHODS, name, method.run)
    references = re.findall(r"https?://[^\s>`<),]+", inspect.getdoc(method.run) or "")
    return Method(
        name=name,
        title=known.title,
        description=known.description,
        family=Family.PERTURBATION,
        reference=references[0] if references else None,
        call_parameters={key: each for key, each in _parameters(method.run).items() if key != "seed"},
        init_parameters={},
        is_layer=False,
        is_final_step=False,
        ignores_attributed_fn=False,
    )


def with_defaults(parameters: Mapping[str, Parameter], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments: these, and the default of each other parameter (None for a required one)."""
    return {name: None if each.is_required else each.default for name, each in parameters.items()} | dict(arguments)


def _words(known: Mapping[str, Words], name: str, thing: Any) -> Words:
    return known.get(name) or Words(words.title_of(name), _first_sentence(thing))


def _parameters(function: Callable[..., Any]) -> dict[str, Parameter]:
    """The arguments of a function that JSON can carry."""
    hints = _hints(function)
    found = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if name in _SUPPLIED_BY_INSEQ or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        annotation = _json_type(hints.get(name, parameter.annotation))
        if annotation is not None:
            # Occlusion's window has no default in Captum, but Inseq fills it in.
            default = None if name == "sliding_window_shapes" else parameter.default
            if default is None:
                annotation = annotation | None
            found[name] = Parameter(name, annotation, default)
    return found


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except (NameError, TypeError):
        return {}


def _json_type(annotation: Any) -> Any | None:
    """The part of an annotation that JSON can carry, or None where nothing is left (tensors, callables, modules)."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in (int, float, bool, str, types.NoneType) or origin is typing.Literal:
        return annotation
    if origin in (typing.Union, types.UnionType):
        kept = [each for each in map(_json_type, arguments) if each is not None]
        useful = any(each is not types.NoneType for each in kept)
        return typing.Union[tuple(kept)] if useful else None  # noqa: UP007 - built at run time
    if origin in (list, tuple, dict, Sequence):
        inner = [each if each is Ellipsis else _json_type(each) for each in arguments]
        container: Any = list if origin is Sequence else origin
        return None if None in inner else container[tuple(inner)]
    return None


def _first_sentence(thing: Any) -> str:
    text = " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())
    text = re.sub(r":\w+:`~?([^`<]+?)(?:\s*<[^>]+>)?`", r"\1", text).replace("``", "`")
    text = re.sub(r"`([^`<]+?)\s*<[^>]+>`__?", r"\1", text)
    return re.split(r"(?<=\.)\s+(?=[A-Z])(?<!al\. )", text)[0]


@cache
def _adapter(annotation: Any) -> TypeAdapter[Any]:
    return TypeAdapter(annotation, config=ConfigDict(allow_inf_nan=False))
