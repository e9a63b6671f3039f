"""Estimates of tokens, passes, memory and time, compared with the jobs that they estimate."""

from __future__ import annotations

import json
import struct

import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers import GenerationMixin

from attribution.catalogue.inseq_catalogue import methods, step_scores_only
from attribution.engine import AttributionEngine
from attribution.estimates import rates
from attribution.estimates.passes import Passes, Shape, of_text
from attribution.estimates.probes import passes_of_missing
from attribution.estimates.rates import Rates
from attribution.model_cache.cache import ModelCache
from attribution.model_cache.loading import ModelKey
from attribution.results import stored_form
from models import AttributionRequest
from problems import InvalidRequest
from settings import Settings
from tests.conftest import BUNDLED, LOOKUP, PHRASEBOOK, PROMPT, SENTENCE
from tests.hub import build_small_gpt2

ONE_TOKEN = {"generation_args": {"max_new_tokens": 1}}
METHODS = [
    ("saliency", {}),
    ("input_x_gradient", {}),
    ("integrated_gradients", {"n_steps": 6}),
    ("integrated_gradients", {"n_steps": 7, "internal_batch_size": 3}),
    ("gradient_shap", {"attribution_args": {"n_samples": 3}}),
    ("deeplift", {}),
    ("discretized_integrated_gradients", {"n_steps": 4}),
    ("sequential_integrated_gradients", {"n_steps": 3}),
    ("layer_integrated_gradients", {"n_steps": 4}),
    ("layer_deeplift", {}),
    ("layer_gradient_x_activation", {}),
    ("lime", {"attribution_args": {"n_samples": 5, "perturbations_per_eval": 2}}),
    ("occlusion", {}),
    ("occlusion", {"attribution_args": {"perturbations_per_eval": 4}}),
    ("occlusion", {"attribution_args": {"sliding_window_shapes": [3, "hidden size"], "strides": [2, "hidden size"]}}),
    ("attention", {}),
    ("value_zeroing", {}),
    ("dummy", {}),
]
CONTRAST = f"{PROMPT} milk. Ben likes"
SCORES = {"step_scores": ["probability", "logit"]}
CONTRASTS = [
    {"contrast_targets": "another target"},
    {"contrast_targets": "another target", "contrast_force_inputs": True},
]
# Step scores and attributed functions, whose passes are counted alike for all methods.
METHODS += [
    ("saliency", {"step_scores": []}),
    ("saliency", {"step_scores": ["mc_dropout_prob_avg"], "step_scores_args": {"n_mcd_steps": 3}}),
    *(
        ("integrated_gradients", {"n_steps": 3, "attributed_fn": "contrast_prob_diff", "attributed_fn_args": arguments})
        for arguments in CONTRASTS
    ),
    *(
        ("saliency", {"step_scores": ["pcxmi", "kl_divergence", "logit"], "step_scores_args": arguments})
        for arguments in CONTRASTS
    ),
]


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return AttributionEngine(Settings(data_dir=tmp_path_factory.mktemp("data")))


@pytest.fixture
def passes(monkeypatch):
    """Counts [forward, backward] passes of all models."""
    counted, gradient = [0, 0], torch.autograd.grad

    def count(module, _inputs):
        counted[0] += isinstance(module, GenerationMixin)

    def count_back(*arguments, **more):
        counted[1] += 1
        return gradient(*arguments, **more)

    monkeypatch.setattr(torch.autograd, "grad", count_back)
    handle = register_module_forward_pre_hook(count)
    yield counted
    handle.remove()


def checked(engine, **body):
    return engine.check(AttributionRequest(engine="inseq", **body))


def run(engine, request, progress=None):
    report = (lambda _: None) if progress is None else progress.append
    return engine.run(request, device="cpu", report=report, should_cancel=lambda: False)


@pytest.mark.parametrize(("method", "more"), METHODS, ids=lambda value: str(value)[:60])
@pytest.mark.parametrize("model", [LOOKUP, PHRASEBOOK])
def test_the_passes_are_those_of_the_job(engine, passes, model, method, more):
    text = PROMPT if model == LOOKUP else SENTENCE
    target = f"{PROMPT} tea." if model == LOOKUP else "il gatto rosso"
    config = json.loads((BUNDLED / model / "config.json").read_text())
    other = f"{PROMPT} milk." if model == LOOKUP else "il cane rosso"
    more = json.dumps(more).replace("another target", other)
    more = json.loads(more.replace('"hidden size"', str(config.get("n_embd") or config["d_model"])))
    body = {"model": model, "method": method, "input_text": text, "generated_text": target, **SCORES | more}
    if model == LOOKUP and "mc_dropout_prob_avg" in body["step_scores"]:
        with pytest.raises(InvalidRequest, match="this model has none"):
            checked(engine, **body)
        return
    request = checked(engine, **body)
    estimate = engine.estimate(request)
    passes[:] = [0, 0]
    run(engine, request)
    assert [estimate.forward_passes, estimate.backward_passes] == passes


@pytest.mark.parametrize(
    ("method", "more", "expected"),
    [
        # (forward, backward) passes for four generated tokens.
        ("saliency", {}, (1, 4)),
        ("deeplift", {}, (3, 4)),
        ("integrated_gradients", {"n_steps": 6}, (3, 4)),
        ("integrated_gradients", {"n_steps": 6, "internal_batch_size": 4}, (4, 8)),
        ("gradient_shap", {}, (6, 4)),
        ("occlusion", {}, (2, 0)),
        ("saliency", {"step_scores": ["pcxmi"], "step_scores_args": {"contrast_targets": CONTRAST}}, (1 + 4, 4)),
        ("attention", {}, (1, 0)),  # its own forward also gives the step scores of all steps
        ("lime", {"attribution_args": {"n_samples": 6}}, (4 + 1, 0)),  # the samples of a step are one batch
        ("lime", {"attribution_args": {"n_samples": 6, "perturbations_per_eval": 1}}, (4 * 6 + 1, 0)),
    ],
)
def test_the_single_pass_is_told_where_it_is_taken(engine, method, more, expected):
    request = engine.check(
        AttributionRequest(
            model=LOOKUP, method=method, input_text=PROMPT, generated_text=f"{PROMPT} tea. Ben likes", **SCORES | more
        )
    )
    for _ in range(2):  # before and after the model is probed
        estimate = engine.estimate(request)
        assert estimate.engine == ("inseq" if method in {"attention", "lime"} else "single_pass")
        assert (estimate.forward_passes, estimate.backward_passes) == expected
        output = stored_form.decode(run(engine, request)[0].content)
        assert output.info["engine"] == estimate.engine


LONGER = "Carla likes bread. "


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("leave_one_out", {}),
        ("shapley", {"segments": "words"}),
        ("shapley", {"attribution_args": {"n_samples": 5}}),
        ("banzhaf", {"attribution_args": {"n_samples": 150}}),
        ("occlusion", {"segments": [{"start": 0, "end": 3}, {"start": 3, "end": 4}, {"start": 4, "end": 5, "pinned": True}]}),
        ("lime", {"segments": "sentences", "attribution_args": {"n_samples": 90}}),
        ("shapley", {"step_scores": ["pcxmi"], "step_scores_args": {"contrast_targets": "another target"}}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("model", [LOOKUP, PHRASEBOOK])
def test_the_rows_of_masks_are_told(engine, passes, model, method, more):
    text = LONGER + PROMPT if model == LOOKUP else SENTENCE
    words = (LONGER + f"{PROMPT} tea.", LONGER + f"{PROMPT} milk.") if model == LOOKUP else ("il gatto", "il cane")
    target, other = words
    more = json.loads(json.dumps(more).replace("another target", other))
    body = {"model": model, "method": method, "input_text": text, "generated_text": target, **SCORES | more}
    request = engine.check(AttributionRequest(**body))
    run(engine, request)  # the model is probed, and its texts are counted
    estimate = engine.estimate(request)
    passes[:] = [0, 0]
    output = stored_form.decode(run(engine, request)[0].content)
    assert output.info["engine"] == estimate.engine == "masking"
    assert [estimate.forward_passes, estimate.backward_passes] == passes


PROBED = [
    ("saliency", {}),
    ("integrated_gradients", {"n_steps": 8}),
    ("occlusion", {}),
    ("layer_deeplift", {}),
    ("lime", {}),
]


@pytest.mark.parametrize(("method", "arguments"), PROBED)
@pytest.mark.parametrize("model", [LOOKUP, PHRASEBOOK])
def test_a_probe_is_counted_until_it_has_run(tmp_path, passes, model, method, arguments):
    engine = AttributionEngine(Settings(data_dir=tmp_path))
    text, target = (PROMPT, f"{PROMPT} tea.") if model == LOOKUP else (SENTENCE, "il gatto rosso")
    body = {"model": model, "method": method, "input_text": text, "generated_text": target, **SCORES}
    request = engine.check(AttributionRequest(**body, attribution_args=arguments))
    estimate = engine.estimate(request)
    seconds, (tokens,) = estimate.seconds, estimate.inputs
    assert seconds.probing > 0
    assert seconds.total == seconds.generating + seconds.probing + seconds.attributing
    source, first = (0, tokens.input_tokens) if model == LOOKUP else (tokens.input_tokens, 1)
    with engine._models.lease(model, device="cpu", dtype="float32") as loaded:
        probed = step_scores_only() if method == "lime" else methods()[method]
        shape = Shape(source, first, tokens.target_tokens)
        expected = list(passes_of_missing(request, loaded, probed, [shape]))
    forwards = []
    for _ in range(2):
        passes[:] = [0, 0]
        run(engine, request)
        forwards.append(passes[0])
    # One more or less: a forward of the unchanged text that an engine can do without, or not.
    assert abs(forwards[0] - forwards[1] - sum(each.calls for each in expected)) <= 1
    assert engine.estimate(request).seconds.probing == 0
    assert engine.estimate(request.model_copy(update={"engine": "inseq"})).seconds.probing == 0


def test_reagent_may_end_before_its_passes(engine, passes):
    request = checked(
        engine, model=LOOKUP, method="reagent", input_text=PROMPT, generated_text=f"{PROMPT} tea.",
        attribution_args={"max_probe_steps": 20},
    )  # fmt: skip
    estimate = engine.estimate(request)
    assert estimate.is_upper_bound
    passes[:] = [0, 0]
    run(engine, request)
    assert 0 < passes[0] <= estimate.forward_passes


@pytest.mark.parametrize("method", ["saliency", "occlusion", "attention", "value_zeroing", "layer_deeplift", "lime"])
@pytest.mark.parametrize("model", [LOOKUP, PHRASEBOOK])
def test_tokens_and_bytes_are_those_of_the_result(engine, model, method):
    text = [PROMPT, "Ben likes"] if model == LOOKUP else [SENTENCE, "a dog"]
    target = [f"{each} tea." for each in text] if model == LOOKUP else ["le chat rouge", "un chien"]
    request = checked(
        engine, model=model, method=method, input_text=text, generated_text=target, step_scores=["probability"]
    )
    estimate = engine.estimate(request)
    output = stored_form.decode(run(engine, request)[0].content)
    assert not estimate.is_upper_bound
    assert estimate.generation_passes == 0
    for told, sequence in zip(estimate.inputs, output.sequence_attributions, strict=True):
        assert told.target_tokens == len(sequence.target)
        assert told.attributed_tokens == sequence.attr_pos_end - sequence.attr_pos_start
        assert told.input_tokens == len(sequence.source)
    tensors = [
        tensor
        for each in output.sequence_attributions
        for tensor in (
            each.source_attributions, each.target_attributions, *each.step_scores.values(),
            *each.sequence_scores.values(),
        )
        if tensor is not None
    ]  # fmt: skip
    stored = sum(each.numel() * 4 for each in tensors)
    # The estimate leaves out the decoder's self-attention, and counts rows that have no scores.
    assert 0.4 * stored <= estimate.result_bytes <= 1.5 * stored


def test_what_the_model_writes_is_bounded_by_its_room(engine):
    request = checked(
        engine,
        model=LOOKUP,
        method="saliency",
        input_text=PROMPT,
        generation_args={"max_new_tokens": 3},
        attr_pos_end=12,
    )
    estimate = engine.estimate(request)
    assert estimate.is_upper_bound
    assert estimate.generation_passes == 3
    (one,) = estimate.inputs
    assert (one.input_tokens, one.target_tokens, one.attributed_tokens) == (10, 13, 2)


def test_the_first_eta_is_the_estimate_and_jobs_correct_it(tmp_path):
    engine = AttributionEngine(Settings(data_dir=tmp_path))
    request = checked(engine, model=LOOKUP, method="occlusion", input_text=PROMPT, generated_text=f"{PROMPT} tea.")
    before = engine.estimate(request)
    assert not before.is_calibrated
    progress = []
    run(engine, request, progress)
    first = next(each for each in progress if each.stage == "attributing")
    assert first.steps_done == 0
    assert first.eta_seconds == pytest.approx(before.seconds.attributing, abs=1e-3)
    after = engine.estimate(request)
    assert after.is_calibrated
    assert after.seconds.attributing != before.seconds.attributing


def test_real_times_replace_what_was_expected():
    known, key = Rates(), ModelKey("m", "r", "cpu", "float32")
    assert known.factor(key, "saliency") is None
    known.learn(key, "saliency", expected=2.0, took=6.0)
    assert known.factor(key, "saliency") == pytest.approx(3.0)
    # Expected times now include the factor, so a job that takes the expected time changes nothing.
    known.learn(key, "saliency", expected=3.0, took=3.0)
    assert known.factor(key, "saliency") == pytest.approx(3.0)
    known.learn(key, "saliency", expected=3.0, took=6.0)
    assert 3.0 < known.factor(key, "saliency") < 6.0
    assert known.factor(key, "occlusion") is None


def test_kept_bytes_are_what_torch_keeps_for_a_larger_pass(tmp_path):
    """Memory measured at two short lengths predicts the bytes that torch saves for backward with longer rows."""
    build_small_gpt2(tmp_path / "one", seed=0)
    cache = ModelCache(Settings(model_dirs=[str(tmp_path)]))
    with cache.lease("one", device="cpu", dtype="float32") as loaded:
        told = rates.measure(loaded)
        embeds = torch.randn(3, 90, loaded.network.config.hidden_size, requires_grad=True)
        own = {each.untyped_storage().data_ptr() for each in loaded.network.parameters()}
        kept, held = {}, []

        def keep(tensor):
            held.append(tensor)
            if (at := tensor.untyped_storage().data_ptr()) not in own:
                kept[at] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = loaded.network(inputs_embeds=embeds).logits[:, -1].softmax(-1)
        assert output.requires_grad
        foretold = told.peak_bytes([Passes(1, 3, 90, backwards=1)]) - told.weights
    assert sum(kept.values()) < foretold < 1.6 * sum(kept.values())


# Over HTTP


def estimate_of(server, **body):
    return server.client.post("/attribution/estimate", json=body)


def test_estimate_over_http_queues_nothing(server):
    listed = lambda: [job["job_id"] for job in server.client.get("/attribution/jobs").json()["jobs"]]  # noqa: E731
    before = listed()
    answer = estimate_of(server, model=LOOKUP, method="deep_lift", input_text=PROMPT, step_scores=["logit"])
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert told["request"]["method"] == "deeplift"
    assert told["inputs"][0]["input_tokens"] == 10
    assert told["backward_passes"] == told["inputs"][0]["attributed_tokens"]
    assert (told["engine"], told["forward_passes"]) == ("single_pass", 3)
    assert 0 < told["seconds"]["total"] < 60
    assert (told["device"], told["dtype"], told["fits"], told["warnings"]) == ("cpu", "float32", True, [])
    assert told["peak_memory_bytes"] > (BUNDLED / LOOKUP / "model.safetensors").stat().st_size
    assert listed() == before


@pytest.mark.parametrize(
    ("body", "status", "slug", "word"),
    [
        ({"method": "saliencey"}, 422, "invalid-request", "saliency"),
        ({"input_text": "tea " * 300}, 422, "input-rejected", "tokens"),
        ({"generated_text": "something else"}, 422, "invalid-request", "start with"),
        ({"model": "org/nowhere"}, 404, "model-unavailable", "downloads nothing"),
        ({"attr_pos_start": 2, "generated_text": f"{PROMPT} tea"}, 422, "input-rejected", "attr_pos_start"),
    ],
)
def test_what_a_job_would_refuse_is_refused(server, body, status, slug, word):
    answer = estimate_of(server, **({"model": LOOKUP, "method": "saliency", "input_text": PROMPT} | body))
    assert (answer.status_code, answer.json()["type"]) == (status, f"/problems/{slug}")
    assert word in answer.json()["detail"]


def test_an_estimate_does_not_wait_for_the_job_that_has_the_model(server):
    job_id = server.submit(
        model=PHRASEBOOK, method="sequential_integrated_gradients", input_text=SENTENCE, n_steps=2000, engine="inseq"
    )
    server.wait_until_attributing(job_id)
    told = estimate_of(server, model=PHRASEBOOK, method="saliency", input_text=SENTENCE)
    assert told.status_code == 200
    assert server.job(job_id)["status"] == "running"
    server.client.post(f"/attribution/jobs/{job_id}/cancel")
    server.wait(job_id)


def test_a_job_that_would_be_stopped_is_told(server):
    told = estimate_of(
        server, model=LOOKUP, method="integrated_gradients", input_text=PROMPT, n_steps=2000, timeout_seconds=0.001
    ).json()
    assert "stopped after 0.001 seconds" in told["warnings"][0]


def test_a_comparison_that_would_be_stopped_is_told(server):
    body = {"model": LOOKUP, "input_text": PROMPT, "generated_text": f"{PROMPT} tea."}
    one = estimate_of(server, **body, method="lime").json()["seconds"]["total"]
    other = estimate_of(server, **body, method="integrated_gradients").json()["seconds"]["total"]
    limit = max(one, other) + 0.5 * min(one, other)
    methods = ["lime", "integrated_gradients"]
    assert estimate_of(server, **body, method="lime", timeout_seconds=limit).json()["warnings"] == []
    assert len(estimate_of(server, **body, methods=methods, timeout_seconds=limit).json()["warnings"]) == 1


def test_beams_take_their_time(server):
    body = {"model": LOOKUP, "method": "saliency", "input_text": PROMPT}
    one, five = (
        estimate_of(server, **body, generation_args={"max_new_tokens": 4, "num_beams": beams}).json()["seconds"]
        for beams in (1, 5)
    )
    assert five["generating"] >= one["generating"]


def test_the_largest_request_is_estimated_at_once(server):
    """2,000 samples for each of 1,024 tokens of 64 texts (131 million forwards) are counted as groups of passes."""
    told = estimate_of(
        server, model=PHRASEBOOK, method="lime", attribution_args={"n_samples": 2000, "perturbations_per_eval": 1},
        generation_args={"max_new_tokens": 1024}, input_text=[SENTENCE] * 64,
    )  # fmt: skip
    assert told.status_code == 200
    assert told.json()["forward_passes"] == 64 * 1024 * 2000 + 64  # one over each text, for the candidates
    request = AttributionRequest(
        model="m", method="lime", input_text="x", attribution_args={"n_samples": 2000}, candidates=0
    )
    assert len(list(of_text(request, Shape(5, 1, 1025)))) <= 2 * 1024  # whole batches and a rest, for each token


def test_weights_that_cannot_fit_are_refused_before_the_queue(server, model_dir):
    """A sparse file declares 2^41 float32 numbers, or 8,192 GiB, and has that length."""
    folder = model_dir / "giant"
    folder.mkdir()
    (folder / "config.json").write_text((BUNDLED / LOOKUP / "config.json").read_text())
    numbers = 2**41
    header = json.dumps({"w": {"dtype": "F32", "shape": [numbers], "data_offsets": [0, 4 * numbers]}}).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + 4 * numbers)
    problem = server.refusal(model="giant", method="saliency", input_text=PROMPT)
    assert problem["errors"][0]["pointer"] == "/model"
    assert "8192.0 GiB in float32" in problem["detail"]
