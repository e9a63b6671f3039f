"""The single pass has the numbers of Inseq's loop for all families, methods, functions, arguments and lengths.

`test_exactness` and `test_families` compare `engine: auto`, which uses the single pass, with Inseq called directly.
"""

from __future__ import annotations

import math
from contextlib import nullcontext

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attribution.engine import AttributionEngine
from attribution.results import stored_form
from attribution.run.engine_probe import largest_difference
from attribution.run.rounding import Float64Throughout
from attribution.single_pass import batch_sizes, method_dispatch
from attribution.single_pass.network import SplitModel
from models import AttributionRequest
from problems import Cancelled, InvalidRequest, UnsupportedByModel
from settings import Settings
from tests import reference
from tests.conftest import BUNDLED, LOOKUP, PHRASEBOOK, PROMPT
from tests.families import FAMILIES, build, family_params

METHODS = ["saliency", "input_x_gradient", "integrated_gradients", "gradient_shap", "deeplift", "occlusion", "dummy"]
OWN_INFO = {"engine", "engine_check", "exec_time", "convergence", "candidates"}


@pytest.fixture(scope="module")
def engine(tmp_path_factory, model_dir):
    """The real engine in this process, with a model of each family."""
    for name in (*FAMILIES, "falcon"):
        if not (model_dir / name).exists():
            build(name, model_dir / name)
    return AttributionEngine(Settings(data_dir=tmp_path_factory.mktemp("data"), model_dirs=(str(model_dir),)))


def run(engine, way, *, dtype="float32", should_cancel=lambda: False, report=lambda _: None, **body):
    # Requests cannot ask for float64; in it, differences above rounding show errors.
    request = engine.check(AttributionRequest(engine=way, **body)).model_copy(update={"dtype": dtype})
    parts = engine.run(request, device="cpu", report=report, should_cancel=should_cancel)
    return stored_form.decode(parts[0].content)


def assert_same(ours, theirs, rtol=1e-5):
    """Compare all fields of sequences and steps, and all of `info` except the keys about the engine."""
    for mine, other in zip(ours.sequence_attributions, theirs.sequence_attributions, strict=True):
        reference.assert_same_sequence(mine, other, rtol=rtol)
        assert type(mine).__name__ == type(other).__name__
    assert (ours.step_attributions is None) == (theirs.step_attributions is None)
    for mine, other in zip(ours.step_attributions or [], theirs.step_attributions or [], strict=True):
        assert type(mine) is type(other)
        for name in ("source", "prefix", "target"):
            assert str(getattr(mine, name)) == str(getattr(other, name)), name
        for name in ("source_attributions", "target_attributions"):
            reference.assert_close(getattr(mine, name), getattr(other, name), name, rtol)
        assert mine.step_scores.keys() == other.step_scores.keys()
    assert ours.info.keys() - OWN_INFO == theirs.info.keys() - OWN_INFO
    reference.assert_same_candidates(ours.info.get("candidates"), theirs.info.get("candidates"), rtol=rtol)
    for key in theirs.info.keys() - OWN_INFO:
        assert ours.info[key] == theirs.info[key], key
    assert ("convergence" in ours.info) == ("convergence" in theirs.info)
    for mine, other in zip(ours.info.get("convergence", []), theirs.info.get("convergence", []), strict=True):
        scale = max(map(abs, other["at_input"] + other["delta"]), default=0)
        for name in ("delta", "at_input", "at_baseline"):
            assert mine[name] == pytest.approx(other[name], rel=10 * rtol, abs=rtol * max(scale, 1e-3)), name


def arguments(method):
    """A strategy for arguments of a method."""
    return {
        "saliency": st.fixed_dictionaries({}, optional={"abs": st.booleans()}),
        "integrated_gradients": st.fixed_dictionaries(
            {"n_steps": st.integers(2, 6)},
            optional={
                "method": st.sampled_from(["riemann_trapezoid", "riemann_left", "gausslegendre"]),
                "internal_batch_size": st.integers(2, 7),
                "multiply_by_inputs": st.booleans(),
            },
        ),
        "gradient_shap": st.fixed_dictionaries(
            {"n_samples": st.integers(1, 3)}, optional={"stdevs": st.sampled_from([0.0, 0.1])}
        ),
        "deeplift": st.fixed_dictionaries({}, optional={"multiply_by_inputs": st.booleans()}),
        "occlusion": st.fixed_dictionaries({}, optional={"perturbations_per_eval": st.integers(1, 4)}),
    }.get(method, st.just({}))


@st.composite
def bodies(draw):
    """A strategy for requests on a family's model. Texts are digits, each of which is one token."""
    family, method = draw(st.sampled_from(sorted(FAMILIES))), draw(st.sampled_from(METHODS))
    digits = st.text("0123456789", min_size=1, max_size=9)
    source, target = draw(digits), draw(digits)
    is_encoder_decoder = FAMILIES[family].is_encoder_decoder
    body = {"model": family, "method": method, "input_text": source, "attribution_args": draw(arguments(method)),
            "generated_text": target if is_encoder_decoder else source + target,
            "step_scores": draw(st.lists(st.sampled_from(["probability", "entropy", "crossentropy", "logit"]),
                                         unique=True, max_size=2)),
            "output_step_attributions": draw(st.booleans()), "clean_special_chars": draw(st.booleans()),
            "include_eos_baseline": draw(st.booleans()), "seed": draw(st.integers(0, 9))}  # fmt: skip
    if method != "dummy":
        body["attributed_fn"] = draw(
            st.sampled_from([None, "probability", "logit", "entropy", "crossentropy", "perplexity"])
        )
        body["attribute_target"] = is_encoder_decoder and draw(st.booleans())
    if is_encoder_decoder:
        body["attr_pos_start"] = draw(st.integers(1, len(target)))
        body["attr_pos_end"] = draw(st.integers(body["attr_pos_start"] + 1, len(target) + 1))
    return body


# Relative to the largest score. What remains is rounding (6e-8), as results are stored in float32.
IN_FLOAT64 = 1e-6


def largest_allowed_difference(engine, body, dtype, theirs):
    """The largest difference that rounding explains, relative to the largest score.

    The network amplifies float32 rounding by a factor that differs between examples. The error of Inseq's float32
    scores is their distance from its float64 scores. The single pass makes as many roundings of the same size, so the
    two differ by about twice this error at most; the tolerance is four times the error.
    """
    if dtype == "float64":
        return IN_FLOAT64
    if body["method"] == "gradient_shap":  # random draws differ in float64
        return 1e-5
    with Float64Throughout():
        exact = run(engine, "inseq", dtype="float64", **body)
    return max(1e-5, 4 * largest_difference(theirs, exact))


ANY_BODY = given(body=bodies(), positions=st.sampled_from([1, 20, 1000]), dtype=st.sampled_from(["float32", "float64"]))
ANY_FIXTURE = settings(
    derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@ANY_BODY
@settings(ANY_FIXTURE, max_examples=30)
def test_equals_inseqs_loop(engine, monkeypatch, body, positions, dtype):
    equals_inseqs_loop(engine, monkeypatch, body, positions, dtype)


@pytest.mark.slow
@ANY_BODY
@settings(ANY_FIXTURE, max_examples=150)
def test_equals_inseqs_loop_for_many_requests(engine, monkeypatch, body, positions, dtype):
    equals_inseqs_loop(engine, monkeypatch, body, positions, dtype)


def equals_inseqs_loop(engine, monkeypatch, body, positions, dtype):
    """Equals Inseq's loop for any batch size (`positions` per forward pass)."""
    monkeypatch.setattr(batch_sizes, "_CPU_POSITIONS", positions)
    with Float64Throughout() if dtype == "float64" else nullcontext():
        ours, theirs = (run(engine, way, dtype=dtype, **body) for way in ("single_pass", "inseq"))
    assert (ours.info["engine"], theirs.info["engine"]) == ("single_pass", "inseq")
    assert_same(ours, theirs, rtol=largest_allowed_difference(engine, body, dtype, theirs))


@pytest.mark.parametrize("family", family_params(*FAMILIES, "falcon"))
@pytest.mark.parametrize("method", METHODS)
def test_every_family_is_trusted(engine, family, method):
    """`auto` uses the single pass and reports the probe's difference, also for sliding-window attention."""
    text, target = "The quick brown", "fox jumps over"
    target = target if family in FAMILIES and FAMILIES[family].is_encoder_decoder else f"{text} {target}"
    body = {"model": family, "method": method, "input_text": text, "generated_text": target}
    ours = run(engine, "auto", **body)
    assert ours.info["engine"] == "single_pass"
    check = ours.info["engine_check"]
    assert 0 <= check["largest_difference"] <= check["tolerance"] == 1e-4
    assert_same(ours, run(engine, "inseq", **body))


@pytest.mark.parametrize(
    ("family", "is_fused"),
    [
        ("gpt2", True), ("llama", True), ("opt", True), ("bart", True),
        # Attention bias (t5), capped attention scores (gemma2), attention written out in a module (falcon, bloom).
        ("t5", False), ("gemma2", False), ("falcon", False), ("bloom", False),
    ],
)  # fmt: skip
def test_attention_keeps_no_maps_where_it_is_fused(engine, family, is_fused):
    """Fused attention saves no attention maps for backward, and `row_bytes` counts maps only for the others."""
    kept = []
    with engine._models.lease(family, device="cpu", dtype="float32") as loaded:
        split_model = SplitModel(loaded.model)
        for length in (50, 100):
            sizes, given = {}, torch.zeros((1, length, 32), requires_grad=True)
            with torch.autograd.graph.saved_tensors_hooks(
                lambda x, sizes=sizes: sizes.update({x.untyped_storage().data_ptr(): x.numel()}) or x, lambda x: x
            ):
                held = split_model.states(*[given] * (1 + split_model.is_encoder_decoder))
            kept.append(max(sizes.values()))
            del held
        reckoned = [batch_sizes.row_bytes(split_model, length, with_graph=True) for length in (50, 100)]
    # The size of a map is quadratic in the length: 4 times for twice the length.
    assert (kept[1] < 3 * kept[0]) == is_fused
    assert (reckoned[1] < 2.6 * reckoned[0]) == is_fused


@pytest.mark.parametrize("model", [LOOKUP, PHRASEBOOK])
@pytest.mark.parametrize("method", METHODS)
def test_inseqs_loop_is_inseq(engine, model, method):
    """Our loop equals Inseq called directly, although it skips unused computations; also with a contrastive score."""
    text, target, contrast = {
        LOOKUP: (PROMPT, PROMPT + " milk. Ben", PROMPT + " tea. Ben"),
        PHRASEBOOK: ("the red cat sees a dog", "il gatto rosso vede un cane", "il gatto nero vede un cane"),
    }[model]
    arguments = {"integrated_gradients": {"n_steps": 3}, "gradient_shap": {"n_samples": 2}}.get(method, {})
    body = {"step_scores": ["probability", "contrast_prob"], "step_scores_args": {"contrast_targets": contrast}}
    ours = run(
        engine, "inseq", model=model, method=method, input_text=text, generated_text=target, seed=2,
        attribution_args=arguments, output_step_attributions=True, **body,
    )  # fmt: skip
    theirs = reference.attribute(
        BUNDLED / model, text, method, seed=2, generated_texts=target, attribution_args=dict(arguments),
        output_step_attributions=True, **body,
    )  # fmt: skip
    for mine, other in zip(ours.sequence_attributions, theirs.sequence_attributions, strict=True):
        reference.assert_same_sequence(mine, other)


CONTRAST = {"contrast_targets": PROMPT + " tea. Ben"}


@pytest.mark.parametrize("more", [
    {"attributed_fn": "contrast_prob_diff", "attributed_fn_args": CONTRAST},
    {"attributed_fn": "contrast_logits_diff", "attributed_fn_args": CONTRAST, "output_step_attributions": True},
    {"attributed_fn": "pcxmi", "attributed_fn_args": CONTRAST},
    {"attributed_fn": "probability", "attributed_fn_args": {"logprob": True}},
    {"step_scores": ["contrast_prob", "kl_divergence", "in_context_pvi"], "step_scores_args": CONTRAST},
    {"step_scores": ["top_p_size"], "step_scores_args": {"top_p": 0.7}},
])  # fmt: skip
@pytest.mark.parametrize("method", METHODS[:-1])
def test_functions(engine, method, more):
    """The single pass equals Inseq's loop for contrastive attributed functions and for step scores with arguments.

    In float64, since in float32 the divergence of two nearly equal distributions is only rounding; `test_exactness`
    tests these functions in float32.
    """
    small = {"integrated_gradients": {"n_steps": 3}, "gradient_shap": {"n_samples": 2}}.get(method, {})
    body = {"model": LOOKUP, "method": method, "input_text": PROMPT, "generated_text": PROMPT + " milk. Ben",
            "attribution_args": small, **more}  # fmt: skip
    with Float64Throughout():
        ours, theirs = (run(engine, way, dtype="float64", **body) for way in ("single_pass", "inseq"))
    if more.get("attributed_fn") == "pcxmi":
        # The score is 0 if the contrast has the same token; then rounding decides whether completeness is warned of.
        for each in (ours, theirs):
            each.info.pop("warnings")
    assert_same(ours, theirs, rtol=IN_FLOAT64)


# Gradient SHAP draws from the same generator in another order, so its dropout scores are other samples.
@pytest.mark.parametrize("method", [method for method in METHODS if method != "gradient_shap"])
def test_dropout_scores(engine, method):
    """Uses a model with dropout, as the score is divided by the standard deviation of samples, which is 0 without."""
    body = {"model": "gpt2", "method": method, "input_text": "12345", "generated_text": "12345678",
            "attribution_args": {"n_steps": 3} if method == "integrated_gradients" else {},
            "step_scores": ["mc_dropout_prob_avg", "probability"], "step_scores_args": {"n_mcd_steps": 2}}  # fmt: skip
    ours, theirs = (run(engine, way, **body) for way in ("single_pass", "inseq"))
    assert bool(ours[0].step_scores["mc_dropout_prob_avg"].isfinite().all())
    assert_same(ours, theirs)


@pytest.mark.parametrize("model", [LOOKUP, PHRASEBOOK, "gpt2", "bart"])
@pytest.mark.parametrize("window", [
    {"sliding_window_shapes": (2,)},
    {"sliding_window_shapes": (3,), "strides": 2},
    {"sliding_window_shapes": (3,), "strides": (1, 5)},
])  # fmt: skip
def test_occlusion_windows(engine, model, window):
    """Windows of several tokens, which overlap or extend beyond the text."""
    text = "a b c d e f"
    with engine._models.lease(model, device="cpu", dtype="float32") as loaded:
        width = loaded.model.get_embedding_layer().embedding_dim
        is_encoder_decoder = loaded.model.is_encoder_decoder
    arguments = window | {"sliding_window_shapes": (*window["sliding_window_shapes"], width)}
    body = {"model": model, "method": "occlusion", "input_text": text, "attribution_args": arguments,
            "generated_text": "g h i" if is_encoder_decoder else f"{text} g h i"}  # fmt: skip
    assert_same(run(engine, "single_pass", **body), run(engine, "inseq", **body))


def test_a_window_over_a_part_of_the_embedding_goes_inseqs_way(engine):
    body = {"model": "gpt2", "method": "occlusion", "input_text": "12", "generated_text": "123",
            "attribution_args": {"sliding_window_shapes": [9, 32]}}  # fmt: skip
    with pytest.raises(UnsupportedByModel, match="A window must"):
        run(engine, "single_pass", **body)


def test_several_inputs_free_generation_and_seeds(engine):
    body = {"model": LOOKUP, "method": "gradient_shap", "input_text": [PROMPT, "Clara likes soup. Emma likes rice. Emma likes"], "seed": 5,
            "attribution_args": {"n_samples": 2, "stdevs": 0.1}, "generation_args": {"max_new_tokens": 4},
            "step_scores": ["probability"]}  # fmt: skip
    ours = run(engine, "single_pass", **body)
    assert len(ours.sequence_attributions) == 2
    assert_same(ours, run(engine, "inseq", **body))


@pytest.mark.parametrize(("more", "reason"), [
    ({"method": "lime"}, "lime has no single pass"),
    ({"method": "attention"}, "attention has no single pass"),
    # A model with dropout, since this function is divided by the standard deviation of samples.
    ({"model": "gpt2", "method": "saliency", "input_text": "1234", "generated_text": "123456",
      "attributed_fn": "mc_dropout_prob_avg"}, "more than the logits of one step"),
    ({"method": "saliency", "attributed_fn": "contrast_prob_diff",
      "attributed_fn_args": CONTRAST | {"contrast_force_inputs": True}}, "on other inputs"),
    ({"method": "deeplift", "attribution_args": {"return_convergence_delta": True}}, "return_convergence_delta"),
    ({"method": "saliency", "corrections": False}, "Inseq's own loop"),
])  # fmt: skip
def test_what_has_no_single_pass_is_refused_or_left_to_inseq(engine, more, reason):
    body = {"model": LOOKUP, "input_text": PROMPT, "generated_text": PROMPT + " milk. Ben", **more}
    with pytest.raises(InvalidRequest) as refused:
        run(engine, "single_pass", **body)
    assert reason in refused.value.detail
    assert refused.value.errors[0].pointer == "/engine"
    if more["method"] != "lime":
        info = run(engine, "auto", **body).info
        assert info["engine"] == "inseq"
        assert reason in info["engine_check"]["reason"]


class Forgetful(torch.nn.Module):
    """A layer that is not causal: adds the mean over all positions to each position."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + hidden.mean(1, keepdim=True)


def test_a_model_that_looks_ahead_is_not_trusted(engine):
    """If the probe finds a difference, `auto` uses Inseq's loop, and `single_pass` fails with the reason."""
    body = {"model": "opt", "method": "saliency", "input_text": "1234", "generated_text": "1234567"}
    with engine._models.lease("opt", device="cpu", dtype="float32") as loaded:
        verdicts = dict(loaded.verdicts)
        loaded.verdicts.clear()
        norm, ahead = loaded.network.model.decoder.final_layer_norm, Forgetful()
        handle = norm.register_forward_hook(lambda _module, _arguments, output: ahead(output))
    try:
        ours = run(engine, "auto", **body)
        assert ours.info["engine"] == "inseq"
        assert ours.info["engine_check"]["largest_difference"] > 1e-2
        assert "other numbers" in ours.info["engine_check"]["reason"]
        assert_same(ours, run(engine, "inseq", **body))
        with pytest.raises(UnsupportedByModel, match="other numbers"):
            run(engine, "single_pass", **body)
    finally:
        handle.remove()
        loaded.verdicts.clear()
        loaded.verdicts.update(verdicts)
    assert run(engine, "auto", **body).info["engine"] == "single_pass"


def test_a_share_of_jobs_is_checked_again(engine, tmp_path, monkeypatch):
    """If a recheck finds a difference, the job and later ones on the model have Inseq's numbers."""
    careful = AttributionEngine(Settings(data_dir=tmp_path, recheck_share=1))
    body = {"model": LOOKUP, "method": "input_x_gradient", "input_text": PROMPT, "generated_text": PROMPT + " milk."}
    right = run(careful, "auto", **body)
    assert right.info["engine"] == "single_pass"
    assert right.info["engine_check"]["rechecked_difference"] < 1e-5
    monkeypatch.setattr(
        method_dispatch, "input_x_gradient", lambda part, **_: method_dispatch.saliency(part, absolute=True)
    )
    wrong = run(careful, "auto", **body)
    assert wrong.info["engine"] == "inseq"
    assert "checked again" in wrong.info["engine_check"]["reason"]
    assert wrong.info["engine_check"]["rechecked_difference"] > 1e-2
    for each in (wrong, run(careful, "auto", **body)):
        reference.assert_same_sequence(each.sequence_attributions[0], right.sequence_attributions[0])


@pytest.mark.parametrize("method", ["saliency", "integrated_gradients", "occlusion"])
def test_cancelled_between_the_pieces(engine, monkeypatch, method):
    """A job can be cancelled between two passes, forward or backward; the next job is not affected."""
    monkeypatch.setattr(batch_sizes, "_CPU_POSITIONS", 1)
    body = {"model": LOOKUP, "method": method, "input_text": PROMPT, "generated_text": PROMPT + " milk. Ben likes",
            "attribution_args": {"n_steps": 6} if method == "integrated_gradients" else {}}  # fmt: skip
    asked, clean = [], run(engine, "single_pass", **body)

    def counted():
        asked.append(1)
        return False

    run(engine, "single_pass", should_cancel=counted, **body)
    total = len(asked)
    assert total >= 5
    for stop in (2, total // 2, total - 1):
        left = iter(range(stop))
        with pytest.raises(Cancelled):
            run(engine, "single_pass", should_cancel=lambda left=left: next(left, None) is None, **body)
    assert_same(run(engine, "single_pass", **body), clean, rtol=0)


def test_progress_is_told_within(engine, monkeypatch):
    monkeypatch.setattr(batch_sizes, "_CPU_POSITIONS", 1)
    told = []
    body = {"model": LOOKUP, "method": "occlusion", "input_text": PROMPT, "generated_text": PROMPT + " milk. Ben likes"}
    run(engine, "single_pass", report=told.append, **body)
    fractions = [each.fraction for each in told if each.stage == "attributing"]
    assert fractions == sorted(fractions)
    assert len(set(fractions)) > 2
    assert math.isclose(fractions[-1], 1)
