"""The traits of methods and step functions are complete and agree with Inseq."""

from __future__ import annotations

import ast

import inseq
import pytest

import perturbation
from attribution.catalogue import inseq_catalogue, traits, words
from attribution.catalogue.inseq_catalogue import Family
from attribution.catalogue.traits import Reads, ScoreShape
from attribution.estimates.method_costs import cost_of, describe_methods
from tests.serving import ROOT

# Modules that may contain names of methods: the table, implementations, and the request's alias and examples.
MAY_NAME_METHODS = {
    "api/uvicorn_server.py",  # the first job that a started server prints
    "attribution/catalogue/traits.py",
    "attribution/catalogue/words.py",  # what they are called
    "attribution/single_pass/method_dispatch.py",  # maps methods to implementations
    "attribution_client/contrast.py",  # the difference that a click on a candidate asks for
    "attribution_client/heatmap_text.py",  # the usual function, which a result's head leaves out
    "attribution_client/terminal/options.py",  # the terminal's default method
    "attribution_client/plots.py",  # the axis of a probability
    "attribution_schema/request.py",
    "perturbation/__init__.py",  # maps methods to implementations
}


def test_every_method_and_step_function_of_inseq_is_described():
    assert set(traits.METHODS) == {*inseq.list_feature_attribution_methods(), *perturbation.METHODS}
    assert set(traits.STEP_FUNCTIONS) == set(inseq_catalogue.step_functions())


def test_every_method_function_and_argument_is_called_something():
    methods, functions = inseq_catalogue.methods(), inseq_catalogue.step_functions()
    assert set(words.METHODS) == set(methods)
    assert set(words.STEP_FUNCTIONS) == set(functions)
    owners = [*methods.values(), *functions.values()]
    assert set(words.PARAMETERS) == {name for owner in owners for name in owner.parameters}
    for known in (words.METHODS, words.STEP_FUNCTIONS):
        assert len({each.title for each in known.values()}) == len(known)


def test_methods_are_grouped_as_inseq_registers_them():
    families = {name: method.family for name, method in inseq_catalogue.methods().items()}
    named = {family: {name for name, each in families.items() if each is family} for family in Family}
    assert named[Family.PERTURBATION] == {
        "lime", "occlusion", "reagent", "value_zeroing", *perturbation.METHODS,
    }  # fmt: skip
    assert named[Family.INTERNALS] == {"attention"}
    assert named[Family.NONE] == {traits.STEP_SCORES_ONLY}
    assert len(named[Family.GRADIENT]) == 10
    starts = [each for each in describe_methods() if each["start_here"]]
    assert [(each["name"], each["family"]) for each in starts] == [(traits.START_HERE, Family.GRADIENT)]


def test_a_methods_cost_is_that_of_its_passes():
    costs = {name: cost_of(method) for name, method in inseq_catalogue.methods().items()}
    # 119 tokens run once and back for 20 of them; each point of a path does the same, and one forward is the baseline's.
    assert costs["input_x_gradient"].relative == costs["saliency"].relative == 1
    assert costs["integrated_gradients"].relative == pytest.approx(50 + 2 / 21)
    assert costs["attention"].relative == pytest.approx(1 / 21)
    assert costs["occlusion"].relative == pytest.approx((119 + 1) / 21)
    # A row for each token of the prompt but the unmasked one, and for 32 orders of 100 tokens; of 119 tokens each.
    assert costs["leave_one_out"].relative == pytest.approx((1 + 101) / 21)
    assert costs["shapley"].relative == pytest.approx((1 + 2 + 32 * 99) / 21)
    assert costs["banzhaf"].relative == pytest.approx((1 + 256) / 21)
    told = {each["name"]: each["cost"]["words"] for each in describe_methods()}
    assert told["saliency"] == "one forward pass, and a backward pass for each generated token"
    assert told["input_x_gradient"] == "as much as saliency"
    assert told["integrated_gradients"] == "about 50 times saliency"
    assert told["attention"] == "a fraction of saliency"
    assert told["reagent"] == "at most 84,000 times saliency"


@pytest.mark.parametrize("name", sorted(traits.METHODS))
def test_the_facts_fit_the_methods_own_parameters(name):
    method, known = inseq_catalogue.methods()[name], traits.of_method(name)
    if isinstance(known.rows, str):
        assert known.rows in method.parameters
    assert known.masks_features == (name in perturbation.METHODS)
    assert known.masks_segments == (name in perturbation.OF_SEGMENTS)
    if known.masks_features or known.masks_segments:
        assert perturbation.METHODS.keys().isdisjoint(perturbation.OF_SEGMENTS)
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
