"""The catalogue as plain data in a stable order, as the routes serve it. The cost of a method is added by estimates."""

from __future__ import annotations

from typing import Any

from attribution.catalogue import inseq_catalogue, words
from attribution.catalogue.inseq_catalogue import Parameter
from attribution.catalogue.text_units import describe_units
from attribution.catalogue.traits import START_HERE, STEP_COUNTS
from attribution.catalogue.words import Words


def of_methods() -> list[dict[str, Any]]:
    """The methods, by name."""
    return [
        {
            "name": method.name,
            "title": method.title,
            "description": method.description,
            "family": method.family,
            "start_here": words.START_HERE if method.name == START_HERE else None,
            "reference": method.reference,
            "parameters": _of_parameters(method.parameters),
            "supports_step_scores": True,
            "supports_attributed_fn": not method.ignores_attributed_fn,
        }
        for method in inseq_catalogue.methods().values()
    ]


def of_step_functions() -> list[dict[str, Any]]:
    """The step functions, by name."""
    return [
        {
            "name": function.name,
            "title": function.title,
            "description": function.description,
            "parameters": _of_parameters(function.parameters),
            "is_contrastive": function.is_contrastive,
        }
        for function in inseq_catalogue.step_functions().values()
    ]


def of_aggregators() -> dict[str, Any]:
    """The aggregators, those of units of text behind Inseq's, and the aggregation functions."""
    entries = [
        {"name": entry.name, "description": entry.description, "parameters": _of_parameters(entry.parameters)}
        for entry in inseq_catalogue.aggregators().values()
    ]
    return {
        "aggregators": entries + describe_units(),
        "aggregation_functions": inseq_catalogue.aggregation_functions(),
    }


def _of_parameters(parameters: dict[str, Parameter]) -> list[dict[str, Any]]:
    return [_of_parameter(each) for each in parameters.values()]


def _of_parameter(parameter: Parameter) -> dict[str, Any]:
    known = words.PARAMETERS.get(parameter.name, Words(words.title_of(parameter.name), ""))
    entry = {
        "name": parameter.name,
        "title": known.title,
        "description": known.description,
        "type": parameter.type_name,
        "required": parameter.is_required,
        "multiplies_cost": parameter.name in STEP_COUNTS,
    }
    return entry if parameter.is_required else entry | {"default": parameter.default}
