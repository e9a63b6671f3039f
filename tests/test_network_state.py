"""Scores do not depend on what ran before on the same loaded model, though some networks change themselves.

Texts run short, long, short, with another method first each time. Each result equals first principles on networks that have
seen nothing: a new copy for each prefix.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from tests import reference
from tests.families import RELATIVES, build
from tests.first_principles import Plain

SHORT = "The quick"
LONG = "The quick brown fox jumps over the lazy dog. Feature attribution helps explain model predictions"
NAMES = ["bigbird-pegasus", "recurrent-gemma", "rwkv", "prophetnet", "ctrl", "xlnet"]


class Fresh(Plain):
    """A model of which each forward runs on a new copy."""

    def logits(self, step, embeddings=None):
        untouched = self.network
        self.network = copy.deepcopy(untouched)
        try:
            # Without a cache, in which RWKV changes what the backward pass needs; a copy for CTRL.
            self.network.config.use_cache = False
            return super().logits(step, None if embeddings is None else embeddings.clone())
        finally:
            self.network = untouched


def folder_of(model_dir, name):
    folder = model_dir / name
    if not folder.exists():
        build(name, folder)
    return folder


def target_of(name, text):
    return "fox jumps" if RELATIVES[name].is_encoder_decoder else f"{text} fox jumps"


def assert_equals_plain(result, plain, *, has_gradients=True):
    sequence = result["sequence_attributions"][0]
    np.testing.assert_allclose(sequence["step_scores"]["probability"], plain.probabilities(), rtol=1e-4, atol=1e-9)
    if has_gradients:
        expected = plain.scores(lambda step: plain.gradient(plain.embedded(step), step)[0].abs())
        found = sequence["source_attributions"] or sequence["target_attributions"]
        found = torch.tensor([[[float("nan") if x is None else x for x in cell] for cell in row] for row in found])
        scale = float(expected.nan_to_num().max())
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * scale, equal_nan=True)


@pytest.mark.parametrize("name", NAMES)
def test_whatever_ran_before(server, model_dir, name):
    folder = folder_of(model_dir, name)
    for method, text in (
        ("occlusion", SHORT),
        ("saliency", LONG),
        ("dummy", SHORT),
        ("saliency", SHORT),
        ("dummy", LONG),
    ):
        plain = Fresh(folder, text, target_of(name, text))
        job = {"model": name, "method": method, "input_text": text, "generated_text": target_of(name, text)}
        result = server.result(server.run(**job, step_scores=["probability"]), granular=True)
        assert_equals_plain(result, plain, has_gradients=method == "saliency")


@pytest.mark.parametrize("name", ["bigbird-pegasus", "recurrent-gemma"])
def test_generation_after_other_texts(server, model_dir, name):
    """What is generated is what a new model generates, whose forwards depend on each other."""
    folder = folder_of(model_dir, name)
    for text in (SHORT, LONG, SHORT):
        plain = Fresh(folder, text, target_of(name, text))
        arguments = {"max_new_tokens": 6, "min_new_tokens": 6, "num_beams": 1, "do_sample": False}
        expected = plain.network.generate(
            plain.source, attention_mask=torch.ones_like(plain.source), **arguments
        )[0].tolist()  # fmt: skip
        result = server.result(server.run(model=name, method="saliency", input_text=text, generation_args=arguments))
        assert [token["token_id"] for token in result["sequence_attributions"][0]["target"]] == expected


def test_modules_that_a_forward_builds_draw_nothing_from_a_job(server, model_dir):
    """BigBird-Pegasus builds attention modules at a short text. Their first weights are drawn, which must not change LIME's
    samples: Inseq's own are the same from its second run on.
    """
    folder = folder_of(model_dir, "bigbird-pegasus")
    body = {"method": "lime", "input_text": SHORT, "generated_text": "fox jumps", "attribution_args": {"n_samples": 8}}
    expected = reference.attribute(
        folder, SHORT, "lime", generated_texts="fox jumps", attribution_args={"n_samples": 8}, runs=2
    )
    result = server.result(server.run(model="bigbird-pegasus", seed=0, **body), granular=True)
    found = torch.tensor(result["sequence_attributions"][0]["source_attributions"])
    reference.assert_close(found, expected.sequence_attributions[0].source_attributions, "lime")
