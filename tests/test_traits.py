"""The traits of methods and step functions are complete and agree with Inseq."""

from __future__ import annotations

import ast

import inseq
import pytest

from attribution.catalogue import inseq_catalogue, traits
from attribution.catalogue.traits import Reads, ScoreShape
from tests.serving import ROOT

# Modules that may contain names of methods: the table, implementations, and the request's alias and examples.
MAY_NAME_METHODS = {
    "api/uvicorn_server.py",  # the first job that a started server prints
    "attribution/catalogue/traits.py",
    "attribution/single_pass/method_dispatch.py",  # maps methods to implementations
    "attribution_client/contrast.py",  # the difference that a click on a candidate asks for
    "attribution_client/options.py",  # the terminal's default method
    "attribution_client/plots.py",  # the axis of a probability
    "attribution_schema/request.py",
}


def test_every_method_and_step_function_of_inseq_is_described():
    assert set(traits.METHODS) == set(inseq.list_feature_attribution_methods())
    assert set(traits.STEP_FUNCTIONS) == set(inseq_catalogue.step_functions())


@pytest.mark.parametrize("name", sorted(traits.METHODS))
def test_the_facts_fit_the_methods_own_parameters(name):
    method, known = inseq_catalogue.methods()[name], traits.of_method(name)
    if isinstance(known.rows, str):
        assert known.rows in method.parameters
    if known.perturbed not in {None, "windows"}:
        assert known.perturbed in method.parameters
    assert (known.without_layer is not None) == method.is_layer
    assert known.without_layer is None or known.without_layer in traits.METHODS
    if method.is_gradient:
        assert known.scores is ScoreShape.EMBEDDING
    if known.completeness_advice and "multiply_by_inputs" in method.parameters:
        assert method.parameters["multiply_by_inputs"].default == known.multiplies_by_inputs


@pytest.mark.parametrize("name", sorted(traits.STEP_FUNCTIONS))
def test_the_facts_fit_the_functions_own_parameters(name):
    function, known = inseq_catalogue.step_functions()[name], traits.of_step_function(name)
    assert known.forwards is None or known.forwards in function.parameters
    assert known.difference is None or known.difference in traits.STEP_FUNCTIONS
    if known.reads is Reads.LOGITS_AND_PREFIX:
        assert function.is_contrastive
    if known.reads in {Reads.LOGITS, Reads.ONE_ROW}:
        assert not function.is_contrastive


def test_an_unknown_name_has_the_cautious_defaults():
    """An unknown method of a newer Inseq runs in Inseq's loop without optimizations."""
    unknown = traits.of_method("a_method_of_a_newer_inseq")
    assert not unknown.has_single_pass
    assert not unknown.runs_own_text
    assert unknown.completeness_advice is None
    assert traits.of_step_function("a_newer_function").reads is Reads.OWN_FORWARDS


def test_no_other_module_asks_for_a_method_or_function_by_its_name():
    names = (traits.METHODS.keys() | traits.STEP_FUNCTIONS.keys()) - {
        "attention"
    }  # also the name of a module in Transformers
    found = set()
    for path in ROOT.glob("*/**/*.py"):
        room, file = path.relative_to(ROOT).parts[0], path.relative_to(ROOT).as_posix()
        if room in {".venv", "build", "tests", "benchmarks", "demo_models"} or file.startswith(
            "attribution/corrections/"
        ):
            continue
        strings = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant))
        if any(node.value in names for node in strings if isinstance(node.value, str)):
            found.add(file)
    assert found <= MAY_NAME_METHODS
