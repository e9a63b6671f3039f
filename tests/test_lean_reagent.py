"""ReAGent runs only the probes that have not stopped, with the scores of Inseq's own loop."""

from __future__ import annotations

import pytest
import torch

from attribution.engine import AttributionEngine
from attribution.inseq_loop import method_loading
from attribution.results import stored_form
from models import AttributionRequest
from settings import Settings
from tests.conftest import LOOKUP, PROMPT
from tests.families import build

FAMILIES_TOO = ("gpt2", "llama", "gemma2")


@pytest.fixture(scope="module")
def engine(tmp_path_factory, model_dir):
    return AttributionEngine(Settings(data_dir=tmp_path_factory.mktemp("data"), model_dirs=(str(model_dir),)))


@pytest.mark.parametrize("model", [LOOKUP, *(pytest.param(each, marks=pytest.mark.slow) for each in FAMILIES_TOO)])
def test_probes_that_have_stopped_run_no_more(engine, model_dir, monkeypatch, model):
    if model != LOOKUP and not (model_dir / model).exists():
        build(model, model_dir / model)
    arguments = {"stopping_condition_top_k": 20, "keep_top_n": 2, "max_probe_steps": 12, "num_probes": 5}
    request = engine.check(
        AttributionRequest(
            model=model, method="reagent", input_text=PROMPT, generated_text=f"{PROMPT} tea.", seed=3,
            attribution_args=arguments, step_scores=["probability"],
        )
    )  # fmt: skip

    def scores_and_rows():
        rows = []

        def before(_, arguments, named):
            given = (*arguments, *named.values())
            rows.append(len(next(each for each in given if isinstance(each, torch.Tensor))))

        with engine._models.in_use(model, device="cpu", dtype=request.dtype) as loaded:
            handle = loaded.network.register_forward_pre_hook(before, with_kwargs=True)
            try:
                parts = engine.run(request, device="cpu", report=lambda _: None, should_cancel=lambda: False)
            finally:
                handle.remove()
        return stored_form.decode(parts[0].content).sequence_attributions[0].target_attributions, sum(rows)

    scores_and_rows()  # measures and probes the model
    ours, fewer = scores_and_rows()
    monkeypatch.setattr(method_loading, "lean_reagent", lambda _: None)
    theirs, rows = scores_and_rows()
    assert fewer < rows
    assert torch.equal(ours.isnan(), theirs.isnan())
    # Float32's rounding of rows in other batches, in the logit of a difference of probabilities at each probe step.
    assert float((ours - theirs).nan_to_num().abs().max()) <= 1e-5 * float(theirs.nan_to_num().abs().max())
