"""Completeness: convergence deltas equal those computed in plain Transformers, and large ones cause a warning."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.conftest import BUNDLED, LOOKUP, PHRASEBOOK, PROMPT, SENTENCE
from tests.first_principles import Plain
from tests.test_corrections_methods import run, scores

CASES = {
    LOOKUP: (PROMPT, PROMPT + " milk. Ben"),
    PHRASEBOOK: (SENTENCE, "il gatto rosso vede un cane"),
}


def at_ends(plain):
    """The probability of each generated token, given the input and given the baseline."""
    with torch.no_grad():
        given_input = [float(plain.probability(plain.logits(step), step)) for step in plain.steps]
        given_baseline = [
            float(plain.probability(plain.logits(step, plain.embedded(step, baseline=True)), step))
            for step in plain.steps
        ]
    return np.array(given_input), np.array(given_baseline)


@pytest.mark.parametrize("model", CASES)
@pytest.mark.parametrize("method", ["integrated_gradients", "layer_integrated_gradients", "deeplift", "gradient_shap"])
def test_the_delta_is_what_is_missing(server, tmp_path, model, method):
    text, target = CASES[model]
    arguments = (
        {"n_steps": 500} if "integrated" in method else {"n_samples": 200, "stdevs": 0.01} if "shap" in method else {}
    )
    ours = run(
        server, tmp_path, model=model, method=method, input_text=text, generated_text=target, attribution_args=arguments
    )
    (found,) = ours.info["convergence"]
    given_input, given_baseline = at_ends(Plain(BUNDLED / model, text, target))
    np.testing.assert_allclose(found["at_input"], given_input, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(found["at_baseline"], given_baseline, rtol=1e-4, atol=1e-7)
    missing = scores(ours).double().nansum((0, 2)).numpy() - (given_input - given_baseline)
    np.testing.assert_allclose(found["delta"], missing, rtol=1e-3, atol=1e-6)
    if "integrated" in method:
        assert max(found["relative"]) < 0.02
        assert ours.info["warnings"] == []


@pytest.mark.parametrize(("method", "arguments", "advice"), [
    ("integrated_gradients", {"n_steps": 2}, "Raise n_steps."),
    ("deeplift", {}, "see integrated_gradients"),
])  # fmt: skip
def test_a_large_delta_is_warned_of(server, tmp_path, method, arguments, advice):
    ours = run(
        server, tmp_path, model=LOOKUP, method=method, input_text=PROMPT, generated_text=PROMPT + " milk.",
        attribution_args=arguments,
    )  # fmt: skip
    (warning,) = ours.info["warnings"]
    assert "do not sum to f(input) - f(baseline)" in warning
    assert advice in warning


@pytest.mark.parametrize("more", [
    {"method": "saliency"},
    {"method": "occlusion"},
    {"method": "integrated_gradients", "n_steps": 4, "attribution_args": {"multiply_by_inputs": False}},
    {"method": "layer_integrated_gradients", "n_steps": 4, "attribution_args": {"target_layer": "transformer.h.1.mlp"}},
])  # fmt: skip
def test_no_delta_where_nothing_is_promised(server, more):
    info = server.result(server.run(model=LOOKUP, input_text=PROMPT, generated_text=PROMPT + " milk.", **more))["info"]
    assert "convergence" not in info
    assert info["warnings"] == []
