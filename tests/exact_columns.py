"""The scores of the single pass in float64, before Inseq's classes store them in float32."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from attribution.engine import AttributionEngine
from attribution.inseq_loop import engine_calls
from attribution.model_cache.loading import ModelKey, load
from attribution.run.method_run import Runner
from attribution.run.request_progress import RequestProgress
from attribution.run.time_plan import TimePlan
from attribution.single_pass.text_task import StepResult
from attribution.text.sandbox import Sandboxes, TextSandbox
from models import AttributionRequest

# Relative to the largest score. Measured: at most 2e-14, with AVX2 and without vector instructions. Other processors
# round in another order, with the same error bound for each operation.
DIGITS = 1e-12


def exact_columns(
    engine: AttributionEngine, request: AttributionRequest, monkeypatch: pytest.MonkeyPatch
) -> list[torch.Tensor]:
    """The scores of each result of a checked request ([length, width] each), those of a probe first.

    In this thread, which alone may run in float64 throughout: rotary models compute their frequencies when they are
    loaded.
    """
    found: list[torch.Tensor] = []
    steps_of = engine_calls.step_results  # type: ignore[attr-defined]

    def recorded(*given: Any, **named: Any) -> Iterator[StepResult]:
        for column in steps_of(*given, **named):
            assert column.scores is not None
            found.append(column.scores[0][0])
            yield column

    monkeypatch.setattr(engine_calls, "step_results", recorded)
    source = engine._models.sources.resolve(request.model)
    loaded = load(source, ModelKey(request.model, source.revision, device="cpu", dtype="float64"))
    sandbox = TextSandbox(Sandboxes(seconds=60, memory=2**30), source, lambda: False)
    progress = RequestProgress(lambda _: None)
    Runner(
        request, loaded, progress=progress, plan=TimePlan(request, loaded, engine._estimator, progress),
        should_cancel=lambda: False, most_n_steps=2000, max_input_tokens=100, sandbox=sandbox,
    ).run()  # fmt: skip
    return found
