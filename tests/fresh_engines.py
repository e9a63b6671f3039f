"""Engines of their own, and jobs that run on them in this process, for tests of what one job leaves to another."""

from __future__ import annotations

import contextlib

import orjson

from attribution.engine import AttributionEngine
from attribution.results import json_views, stored_form
from attribution_schema.view_options import ViewOptions
from models import AttributionRequest
from settings import Settings
from tests.conftest import LOOKUP, PHRASEBOOK, PROMPT, SENTENCE

WITH_DROPOUT = "lookup-with-dropout"  # LOOKUP itself has none
INPUTS = {LOOKUP: PROMPT, PHRASEBOOK: SENTENCE, WITH_DROPOUT: PROMPT}


def new_engine(**settings) -> AttributionEngine:
    return AttributionEngine(Settings(cpu_half="native", **settings))


def measured_engine(model):
    """An engine that has measured the model's speed, so that later forward passes belong to jobs only."""
    engine = new_engine()
    run(engine, model, "dummy")
    return engine


def run(engine, model, method, *, cancel_at=None, on_forward=lambda: None, report=lambda progress: None, **body):
    """Run a job and return its scores as plain data. Raises `Cancelled` at forward pass number `cancel_at`."""
    request = engine.check(AttributionRequest(model=model, method=method, input_text=INPUTS[model], **body))
    with engine._models.in_use(model, device="cpu", dtype=request.dtype):
        pass  # loaded, so that only forward passes ask whether to stop
    forwards = 0

    def should_cancel():
        nonlocal forwards
        forwards += 1
        on_forward()
        return forwards == cancel_at

    parts = engine.run(request, device="cpu", report=report, should_cancel=should_cancel)
    return scores(parts)


def scores(parts):
    view = orjson.loads(json_views.json_view(stored_form.decode(parts[0].content), ViewOptions(granular=True)))
    return view["sequence_attributions"]


@contextlib.contextmanager
def without(monkeypatch, module, name, replacement):
    with monkeypatch.context() as patch:
        patch.setattr(module, name, replacement)
        yield
