"""A device that runs out of memory: tried once more in smaller pieces, told clearly, and serving afterwards."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from attribution import results, runner
from attribution.engine import AttributionEngine
from models import AttributionRequest
from problems import OutOfMemory
from settings import Settings
from tests.conftest import LOOKUP, PROMPT


@pytest.fixture(scope="module")
def engine():
    return AttributionEngine(Settings())


def run(engine, **more):
    request = engine.check(AttributionRequest(model=LOOKUP, input_text=PROMPT, **more))
    parts = engine.run(request, device="cpu", report=lambda _: None, should_cancel=lambda: False)
    return results.decode(parts[0].content)


def test_tried_again_in_smaller_pieces(engine, monkeypatch):
    body = {"method": "integrated_gradients", "n_steps": 40}
    whole = run(engine, **body)
    asked = []
    attribute = runner.Runner._attribute

    def too_large_at_first(self, *arguments, **more):
        asked.append(self._request.attribution_args.get("internal_batch_size"))
        return torch.empty(10**15) if len(asked) == 1 else attribute(self, *arguments, **more)

    monkeypatch.setattr(runner.Runner, "_attribute", too_large_at_first)
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
        patch.setattr(runner.Runner, "_attribute", too_large)
        with pytest.raises(OutOfMemory, match="also in smaller pieces"):
            run(engine, method="saliency")
    assert len(tries) == 2
    assert engine.models()["loaded"] == []  # its memory was given back
    after = run(engine, method="saliency")
    assert torch.equal(after[0].target_attributions.nan_to_num(), clean[0].target_attributions.nan_to_num())
