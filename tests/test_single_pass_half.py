"""In half precision, the single pass is as close to float32 scores as Inseq is.

Rounding makes any two computations in half precision differ by some percent on models as small as these, so comparing
with Inseq in half precision shows little. Each is compared with Inseq in float32 on the same weights.
"""

from __future__ import annotations

from functools import cache

import inseq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from attribution.engine import AttributionEngine
from attribution.results import stored_form
from models import AttributionRequest
from settings import Settings
from tests.families import FAMILIES, build

HALVES = ["bfloat16", "float16"]
FAMILIES_HERE = ["gpt2", "llama", "gemma2", "t5", "bart"]
METHODS = {
    "saliency": {},
    "input_x_gradient": {},
    "integrated_gradients": {"n_steps": 20},
    "occlusion": {},
    "deeplift": {},
}
TEXTS = [
    ("The quick brown fox", "jumps over the lazy dog."),
    ("Feature attribution", "helps explain model predictions."),
    ("Predictions of models", "help the lazy dog."),
    ("A dog explains", "what quick features the fox jumps over."),
    ("Over the brown model", "a feature jumps."),
    ("Lazy predictions", "attribute the fox."),
]
ALWAYS = {
    *(("gpt2", method, "bfloat16") for method in ("saliency", "integrated_gradients")),
    ("llama", "saliency", "bfloat16"),
    ("t5", "deeplift", "float16"),
}
# Errors are alike but random: the ratio for one text may be off by half, the mean over six texts by a tenth.
ROOM = 1.15


class Measured:
    """Computes scores on models with half-precision weights, with Inseq (in any dtype) and with the service."""

    def __init__(self, root):
        self.root = root
        # Computed in half precision on every processor.
        self.engine = AttributionEngine(Settings(data_dir=root / "data", model_dirs=(str(root),), cpu_half="native"))
        self.inseq_model = cache(self._inseq_model)

    def folder(self, family, dtype):
        """The family's model with weights rounded to `dtype`, so that float32 has the same weights."""
        folder = self.root / f"{family}-{dtype}"
        if not folder.exists():
            build(family, folder)
            kind = AutoModelForSeq2SeqLM if FAMILIES[family].is_encoder_decoder else AutoModelForCausalLM
            kind.from_pretrained(folder, dtype=getattr(torch, dtype)).save_pretrained(folder)
        return folder

    def _inseq_model(self, folder, dtype):
        return inseq.load_model(str(folder), "dummy", device="cpu", model_kwargs={"dtype": getattr(torch, dtype)})

    def inseq(self, family, dtype, method, text, *, computed_in):
        model = self.inseq_model(self.folder(family, dtype), computed_in)
        assert model.model.dtype == getattr(torch, computed_in)
        return scores(model.attribute(
            text[0], generated_texts=target(family, text), method=method, attribution_args=dict(METHODS[method]),
            attribute_target=FAMILIES[family].is_encoder_decoder, show_progress=False,
        ))  # fmt: skip

    def ours(self, family, dtype, method, text, *, computed_in=None, **more):
        body = {"model": self.folder(family, dtype).name, "method": method, "input_text": text[0],
                "dtype": computed_in or dtype,
                "generated_text": target(family, text), "attribution_args": METHODS[method],
                "attribute_target": FAMILIES[family].is_encoder_decoder, "engine": "single_pass"} | more  # fmt: skip
        request = self.engine.check(AttributionRequest(**body))
        parts = self.engine.run(request, device="cpu", report=lambda _: None, should_cancel=lambda: False)
        return stored_form.decode(parts[0].content)


def target(family, text):
    return text[1] if FAMILIES[family].is_encoder_decoder else " ".join(text)


def scores(output):
    (sequence,) = output.sequence_attributions
    sides = [each for each in (sequence.source_attributions, sequence.target_attributions) if each is not None]
    return torch.cat([each.double().flatten() for each in sides])


def off(found, truth):
    """Norm of the difference, relative to the norm of the true scores."""
    assert found.shape == truth.shape
    return float((found - truth).nan_to_num().norm() / truth.nan_to_num().norm())


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    return Measured(tmp_path_factory.mktemp("half"))


def combinations():
    """All combinations; as they take minutes, only those in ALWAYS are not marked as slow."""
    for family in FAMILIES_HERE:
        for method in METHODS:
            for dtype in HALVES:
                marks = () if (family, method, dtype) in ALWAYS else pytest.mark.slow
                yield pytest.param(family, method, dtype, marks=marks)


@pytest.mark.parametrize(("family", "method", "dtype"), list(combinations()))
def test_as_near_to_float32_as_inseq(measured, family, method, dtype):
    ratios = []
    for text in TEXTS:
        truth = measured.inseq(family, dtype, method, text, computed_in="float32")
        theirs = measured.inseq(family, dtype, method, text, computed_in=dtype)
        ours = scores(measured.ours(family, dtype, method, text))
        assert off(theirs, truth) > 0  # otherwise Inseq did not compute in half precision
        assert torch.equal(ours.isnan(), truth.isnan())
        if not torch.equal(theirs.isnan(), truth.isnan()):
            # Captum's DeepLIFT divides by 0 where an activation equals its baseline: its epsilon is 0 in float16.
            assert (method, dtype) == ("deeplift", "float16")
            continue
        ratios.append(off(ours, truth) / off(theirs, truth))
    mean = float(torch.tensor(ratios).log().mean().exp())
    assert mean <= ROOM, ratios


@pytest.mark.parametrize("family", ["gpt2", "bart"])
def test_a_verdict_of_its_own(measured, family):
    """Each dtype has its own probe and tolerance, and `info` has the difference that its probe found."""
    checks = {
        dtype: measured.ours(family, "bfloat16", "saliency", TEXTS[0], computed_in=dtype, engine="auto").info
        for dtype in ("bfloat16", "float32", "bfloat16")
    }
    name = measured.folder(family, "bfloat16").name
    for dtype, tolerance in (("bfloat16", 0.05), ("float32", 1e-4)):
        assert checks[dtype]["dtype"] == dtype
        assert checks[dtype]["engine"] == "single_pass"
        found = checks[dtype]["engine_check"]
        assert found["tolerance"] == tolerance
        with measured.engine._models.lease(name, device="cpu", dtype=dtype) as loaded:
            (verdict,) = (each for key, each in loaded.verdicts.items() if key[0] == "saliency")
        assert found["largest_difference"] == verdict.difference <= tolerance
