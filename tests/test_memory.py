"""Memory: after running out of it, a job is tried once more in smaller pieces, or fails with a clear error.

Also the peak memory of attention as a method.
"""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from attribution.engine import AttributionEngine
from attribution.results import stored_form
from attribution.run import method_run
from models import AttributionRequest
from problems import OutOfMemory
from settings import Settings
from tests.conftest import LOOKUP, PROMPT
from tests.hub import build_small_gpt2
from tests.serving import ROOT


@pytest.fixture(scope="module")
def engine():
    return AttributionEngine(Settings())


def run(engine, **more):
    request = engine.check(AttributionRequest(model=LOOKUP, input_text=PROMPT, **more))
    parts = engine.run(request, device="cpu", report=lambda _: None, should_cancel=lambda: False)
    return stored_form.decode(parts[0].content)


def test_tried_again_in_smaller_pieces(engine, monkeypatch):
    body = {"method": "integrated_gradients", "n_steps": 40}
    whole = run(engine, **body)
    asked = []
    attribute = method_run.Runner._attribute

    def too_large_at_first(self, *arguments, **more):
        asked.append(self._request.attribution_args.get("internal_batch_size"))
        return torch.empty(10**15) if len(asked) == 1 else attribute(self, *arguments, **more)

    monkeypatch.setattr(method_run.Runner, "_attribute", too_large_at_first)
    again = run(engine, **body)
    assert asked == [None, 10]
    assert again.info["warnings"] == ["cpu ran out of memory at first: it was done again with internal_batch_size 10."]
    np.testing.assert_allclose(
        again[0].target_attributions.numpy(), whole[0].target_attributions.numpy(), rtol=1e-4, atol=1e-6
    )


def test_given_up_clearly_and_usable_afterwards(engine, monkeypatch):
    clean = run(engine, method="saliency")
    tries = []

    def too_large(self, *_arguments, **_more):
        tries.append(1)
        return torch.empty(10**15)

    with monkeypatch.context() as patch:
        patch.setattr(method_run.Runner, "_attribute", too_large)
        with pytest.raises(OutOfMemory, match="also in smaller pieces"):
            run(engine, method="saliency")
    assert len(tries) == 2
    assert engine.models()["loaded"] == []  # the model is unloaded to free its memory
    after = run(engine, method="saliency")
    assert torch.equal(after[0].target_attributions.nan_to_num(), clean[0].target_attributions.nan_to_num())


_LONG = """
import json, resource, sys
from attribution.engine import AttributionEngine
from models import AttributionRequest
from settings import Settings

def run(tokens):
    text = "1" * tokens
    request = engine.check(AttributionRequest(
        model="long", method="attention", engine="inseq", input_text=text, generated_text=text + "23"))
    engine.run(request, device="cpu", report=lambda _: None, should_cancel=lambda: False)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

engine = AttributionEngine(Settings(model_dirs=[sys.argv[1]], data_dir=sys.argv[1] + "/data"))
print(json.dumps([run(8), run(1200)]))
"""


def test_attention_keeps_the_rows_of_the_steps(tmp_path):
    """The peak memory of a process rises by less than half the attention weights of all layers and positions."""
    layers, heads, tokens = 16, 4, 1200
    build_small_gpt2(tmp_path / "long", layers=layers, positions=2048)
    found = subprocess.run(
        [sys.executable, "-c", _LONG, str(tmp_path)], cwd=ROOT, check=True, capture_output=True, text=True
    )
    before, after = json.loads(found.stdout.splitlines()[-1])
    weights = layers * heads * tokens**2 * torch.float32.itemsize
    assert after - before < weights / 2  # Inseq needs three times these weights
