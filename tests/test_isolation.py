"""Jobs do not affect each other, although Inseq leaves state behind in a long-lived process.

Many tests also remove the guard and check that the leak appears, which shows that they would detect it.
"""

from __future__ import annotations

import inspect
import json
import shutil
import sys

import inseq
import orjson
import pytest
from inseq.attr.feat import FeatureAttribution
from inseq.models import AttributionModel, HuggingfaceModel

from attribution import isolation
from attribution.results import inseq_fields
from attribution_schema.view_options import ViewOptions
from models import AttributionRequest, Progress
from problems import AttributionFailed, Cancelled, JobError
from tests.conftest import BUNDLED, LOOKUP, PHRASEBOOK, PROMPT, SENTENCE
from tests.fresh_engines import WITH_DROPOUT, measured_engine, new_engine, run, without


def no_snapshot(model):
    return lambda: None


@pytest.fixture
def engine():
    return new_engine()


# Hooks


@pytest.mark.parametrize(("model", "then"), [(PHRASEBOOK, "attention"), (LOOKUP, "saliency"), (PHRASEBOOK, "saliency")])
def test_a_job_stopped_midway_leaves_no_hooks(engine, monkeypatch, model, then):
    """Inseq's own value_zeroing leaves its hooks if it is stopped; on GPT-2 it stops by itself."""

    def stop_midway(stopped):
        with pytest.raises((Cancelled, ValueError)):
            run(stopped, model, "value_zeroing", cancel_at=14, corrections=False)

    clean = run(engine, model, then)
    stop_midway(engine)
    assert run(engine, model, then) == clean

    with without(monkeypatch, isolation, "_snapshot", no_snapshot):
        leaky = measured_engine(model)
        stop_midway(leaky)
        try:
            spoiled = run(leaky, model, then)
        except Exception as error:
            spoiled = error
    assert spoiled != clean


def test_a_stopped_job_leaves_no_trace_function(engine, monkeypatch):
    before = sys.gettrace()
    run(engine, LOOKUP, "dummy")
    with pytest.raises(Cancelled):
        run(engine, LOOKUP, "value_zeroing", cancel_at=6)  # in a layer that runs by itself
    assert sys.gettrace() is before


# Modes and attributes


def test_dropout_does_not_stay_on(engine, monkeypatch):
    """Inseq's `mc_dropout_prob_avg` leaves the model in train mode."""
    clean = run(engine, PHRASEBOOK, "saliency")
    run(engine, PHRASEBOOK, "dummy", step_scores=["mc_dropout_prob_avg"])
    assert run(engine, PHRASEBOOK, "saliency") == clean

    with without(monkeypatch, isolation, "_snapshot", no_snapshot):
        leaky = measured_engine(PHRASEBOOK)
        with pytest.raises(Cancelled):  # during a forward pass with dropout
            run(
                leaky, PHRASEBOOK, "dummy", step_scores=["mc_dropout_prob_avg"], generated_text="il", cancel_at=3,
                corrections=False,
            )  # fmt: skip
        assert run(leaky, PHRASEBOOK, "saliency") != clean


def test_the_wrapper_and_its_gradients_are_as_before(engine):
    with engine._models.lease(LOOKUP, device="cpu", dtype="float32") as loaded:
        model = loaded.model
        before = {name: value for name, value in vars(model).items() if name != "_modules"}
    for method in ("layer_gradient_x_activation", "value_zeroing", "integrated_gradients", "reagent"):
        run(engine, LOOKUP, method, attribution_args={"max_probe_steps": 5} if method == "reagent" else {})
        assert {name: value for name, value in vars(model).items() if name != "_modules"} == before, method
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert not any(module.training for module in model.modules())


# State that Inseq shares between all callers


def mutable_defaults():
    functions = [
        AttributionModel.attribute,
        HuggingfaceModel.__init__,
        HuggingfaceModel.load,
        FeatureAttribution.attribute,
        inspect.unwrap(FeatureAttribution.prepare_and_attribute),
        FeatureAttribution.filtered_attribute_step,
        FeatureAttribution.attribute_step,
    ]
    return [
        (function.__qualname__, parameter.name, parameter.default)
        for function in functions
        for parameter in inspect.signature(function).parameters.values()
        if isinstance(parameter.default, dict | list)
    ]


def test_inseqs_shared_defaults_stay_empty(engine):
    for *_, default in mutable_defaults():
        default.clear()  # other tests call Inseq directly and leave entries
    contrast = {"contrast_targets": PROMPT + " milk.", "contrast_targets_alignments": [[[i, i] for i in range(12)]]}
    run(engine, LOOKUP, "occlusion", generation_args={"max_new_tokens": 2})
    run(
        engine,
        LOOKUP,
        "saliency",
        generated_text=PROMPT + " tea.",
        step_scores=["contrast_prob"],
        step_scores_args=contrast,
    )
    run(engine, PHRASEBOOK, "lime", step_scores=["probability"])
    assert len(mutable_defaults()) > 5
    assert [entry for entry in mutable_defaults() if entry[2]] == []


def test_another_callers_tokens_do_not_reach_a_job(engine):
    """In Inseq, a call with a target prefix makes all later generations in the process begin with its tokens."""
    clean = run(engine, PHRASEBOOK, "saliency")
    theirs = inseq.load_model(str(BUNDLED / PHRASEBOOK), "saliency", device="cpu")
    shared = inspect.signature(AttributionModel.attribute).parameters["generation_args"].default
    try:
        theirs.attribute("a dog", "il gatto", generate_from_target_prefix=True, show_progress=False)
        assert "decoder_input_ids" in shared  # the leak in Inseq itself
        assert run(engine, PHRASEBOOK, "saliency") == clean
        assert "gatto" in theirs.attribute(SENTENCE, show_progress=False).info["generated_texts"][0].split()[1]
    finally:
        shared.clear()


def test_one_methods_default_aggregation_is_not_anothers(engine, monkeypatch):
    """In Inseq, creating a gradient output makes `vnorm` the default aggregation of every class."""

    def attention_by_scores():
        request = engine.check(AttributionRequest(model=LOOKUP, method="attention", input_text=PROMPT))
        parts = engine.run(request, device="cpu", report=lambda p: None, should_cancel=lambda: False)
        return engine.view(parts[0].content, "json", ViewOptions(aggregator=("scores", "scores")))

    expected = orjson.loads(attention_by_scores())["sequence_attributions"]
    run(engine, LOOKUP, "saliency")
    assert orjson.loads(attention_by_scores())["sequence_attributions"] == expected
    request = engine.check(AttributionRequest(model=LOOKUP, method="attention", input_text=PROMPT))
    parts = engine.run(request, device="cpu", report=lambda p: None, should_cancel=lambda: False)
    by_mean = engine.view(parts[0].content, "json", ViewOptions(aggregator=("mean", "mean")))
    assert orjson.loads(by_mean)["sequence_attributions"] == expected

    with without(monkeypatch, inseq_fields, "set_own_functions", lambda sequence: None):
        run(engine, LOOKUP, "saliency")
        assert orjson.loads(attention_by_scores())["sequence_attributions"] != expected


# All methods in sequence


@pytest.fixture(scope="module")
def fresh_results():
    """The results of fresh models, by model and method: each is computed once for both orders."""
    return {}


@pytest.fixture(scope="module")
def models_with_dropout(tmp_path_factory):
    """Settings that serve LOOKUP with dropout."""
    root = tmp_path_factory.mktemp("models")
    folder = shutil.copytree(BUNDLED / LOOKUP, root / WITH_DROPOUT)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"resid_pdrop": 0.1}))
    return {"model_dirs": (str(root),)}


@pytest.mark.slow
@pytest.mark.parametrize("model", [WITH_DROPOUT, PHRASEBOOK])
@pytest.mark.parametrize("backwards", [False, True])
def test_any_order_with_failures_between_equals_fresh_models(models_with_dropout, fresh_results, model, backwards):
    engine = new_engine(**models_with_dropout)
    settings = {
        "integrated_gradients": {"n_steps": 4},
        "sequential_integrated_gradients": {"n_steps": 3},
        "lime": {"n_samples": 8},
        "reagent": {"max_probe_steps": 5, "num_probes": 2},
    }
    methods = ["attention", "deeplift", "dummy", "gradient_shap", "input_x_gradient", "integrated_gradients", "lime",
               "occlusion", "saliency", "sequential_integrated_gradients", "value_zeroing"]  # fmt: skip
    if model == WITH_DROPOUT:
        methods += ["layer_gradient_x_activation", "reagent"]
    for index, method in enumerate(sorted(methods, reverse=backwards)):
        body = {"attribution_args": settings.get(method, {}), "step_scores": ["mc_dropout_prob_avg", "probability"]}
        ours = run(engine, model, method, **body)
        if (model, method) not in fresh_results:
            fresh_results[model, method] = run(new_engine(**models_with_dropout), model, method, **body)
        assert orjson.dumps(ours) == orjson.dumps(fresh_results[model, method]), method
        # Three kinds of failure: cancelled during attribution, invalid positions, and an error in Inseq.
        if index % 3 == 0:
            with pytest.raises(Cancelled):
                run(engine, model, method, cancel_at=9, **body)
        elif index % 3 == 1:
            with pytest.raises(JobError):
                run(engine, model, method, attr_pos_start=50, **body)
        else:
            with pytest.raises(Exception, match=r"."):
                run(engine, model, "occlusion", attribution_args={"sliding_window_shapes": [99, 99]})


@pytest.mark.parametrize("corrections", [True, False])
def test_a_cancelled_forward_with_dropout_leaves_no_train_mode(models_with_dropout, corrections):
    engine = new_engine(**models_with_dropout)
    clean = run(engine, WITH_DROPOUT, "dummy", step_scores=["probability"])
    for forward in range(4, 9):
        with pytest.raises(Cancelled):
            run(
                engine, WITH_DROPOUT, "dummy", step_scores=["mc_dropout_prob_avg"], cancel_at=forward,
                step_scores_args={"n_mcd_steps": 9}, corrections=corrections,
            )  # fmt: skip
        assert run(engine, WITH_DROPOUT, "dummy", step_scores=["probability"]) == clean


def test_scores_that_are_all_nan_are_refused(engine, monkeypatch):
    """A job fails if all its scores are NaN, which can happen with ReAGent; it would look like a result."""
    original = FeatureAttribution.load

    def load(name, **kwargs):
        method = original(name, **kwargs)
        attribute_step = method.attribute_step

        def all_nan(*args, **kwargs):
            step = attribute_step(*args, **kwargs)
            step.target_attributions = step.target_attributions * float("nan")
            return step

        method.attribute_step = all_nan
        return method

    monkeypatch.setattr(FeatureAttribution, "load", load)
    with pytest.raises(AttributionFailed, match="every score is NaN"):
        run(engine, LOOKUP, "saliency")


def test_progress_is_told_step_by_step(engine):
    told: list[Progress] = []
    run(engine, LOOKUP, "saliency", report=told.append)
    attributing = [(p.steps_done, p.steps_total) for p in told if p.stage == "attributing"]
    assert list(dict.fromkeys(attributing)) == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert told[0].stage == "loading_model"
    assert told[-1].stage == "saving"
    told.clear()
    run(engine, LOOKUP, "value_zeroing", report=told.append)
    forwards = [(p.steps_done, p.steps_total) for p in told if p.stage == "attributing"]
    assert forwards[-1][0] == forwards[-1][1] > 10


def test_what_a_method_needs_once_is_a_stage_of_its_own(engine):
    """Finding nearest neighbours takes a minute for a large vocabulary; meanwhile the job's stage is `preparing`."""
    stages = []
    run(
        engine, PHRASEBOOK, "discretized_integrated_gradients", attribution_args={"n_steps": 4}, generated_text="il",
        report=lambda progress: stages.append(progress.stage.value),
    )  # fmt: skip
    order = [stage for stage in dict.fromkeys(stages) if stage != "measuring"]  # the first job on this model
    assert order == ["loading_model", "checking", "preparing", "attributing", "saving"]  # the probe needs it first
