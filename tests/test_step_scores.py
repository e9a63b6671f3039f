"""Step scores equal Inseq's, and reuse the logits of other forward passes if possible."""

from __future__ import annotations

import pytest
import torch
from inseq.utils import filter_logits
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers import GenerationMixin

from attribution.engine import AttributionEngine
from attribution.results import stored_form
from models import AttributionRequest, Stage
from problems import Cancelled
from settings import Settings
from tests import reference
from tests.conftest import BUNDLED, LOOKUP, PHRASEBOOK, PROMPT, SENTENCE
from tests.families import build
from tests.first_principles import Plain

TEXT = {LOOKUP: PROMPT, PHRASEBOOK: SENTENCE}
TARGET = {LOOKUP: f"{PROMPT} tea. Ben", PHRASEBOOK: "il cane vede"}
OTHER = {LOOKUP: f"{PROMPT} milk. Ben", PHRASEBOOK: "il gatto vede"}
# These methods run the model on the unchanged text at each step, so step scores need no forward pass.
OWN = {
    "saliency": {},
    "input_x_gradient": {},
    "integrated_gradients": {"n_steps": 3},
    "gradient_shap": {"n_samples": 2},
    "discretized_integrated_gradients": {"n_steps": 3},
    "deeplift": {},
    "layer_integrated_gradients": {"n_steps": 3},
    "layer_deeplift": {},
    "layer_gradient_x_activation": {},
    "occlusion": {},
}
# These do not, or have one step for the whole text.
OTHERS = {
    "lime": {"n_samples": 4},
    "sequential_integrated_gradients": {"n_steps": 2},
    "attention": {},
    "value_zeroing": {},
}
# Those without a single pass take the same way with both engines: once in `make test`, both in `make test-slow`.
LOOPED = {"discretized_integrated_gradients", *OTHERS}
METHODS_AND_WAYS = [
    pytest.param(method, way, marks=pytest.mark.slow if method in LOOPED and way == "inseq" else ())
    for method in OWN | OTHERS
    for way in ("inseq", "auto")
]
SCORES = ["probability", "crossentropy", "entropy", "top_p_size", "contrast_prob_diff", "kl_divergence"]


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    build("gpt2", root / "gpt2")  # a model with dropout
    return AttributionEngine(Settings(data_dir=tmp_path_factory.mktemp("data"), model_dirs=(str(root),)))


@pytest.fixture
def forwards():
    """Counts the forward passes of all models."""
    counted = [0]

    def count(module, _inputs):
        counted[0] += isinstance(module, GenerationMixin)

    handle = register_module_forward_pre_hook(count)
    yield counted
    handle.remove()


def request(engine, model, method, /, **body):
    body = {"input_text": TEXT.get(model), "generated_text": TARGET.get(model)} | body
    arguments = (OWN | OTHERS).get(method, {})
    return engine.check(AttributionRequest(model=model, method=method, attribution_args=arguments, **body))


def run(engine, model, method, /, **body):
    asked = request(engine, model, method, **body)
    parts = engine.run(asked, device="cpu", report=lambda _: None, should_cancel=lambda: False)
    return stored_form.decode(next(part.content for part in parts if part.kind == "raw"))


@pytest.fixture(scope="module", params=[LOOKUP, pytest.param(PHRASEBOOK, marks=pytest.mark.slow)])
def model(request):
    return request.param


@pytest.fixture(scope="module")
def expected(model):
    """Inseq's step scores, which do not depend on the method."""
    arguments = {"contrast_targets": OTHER[model], "top_p": 0.8}
    # One fails in Inseq, the other is NaN with `top_p`.
    names = [name for name in SCORES if name not in {"crossentropy", "kl_divergence"}]
    found = reference.attribute(
        BUNDLED / model, TEXT[model], "dummy", generated_texts=TARGET[model], step_scores=names,
        step_scores_args=arguments,
    )  # fmt: skip
    scores = found[0].step_scores
    plain, other = (Plain(BUNDLED / model, TEXT[model], each[model]) for each in (TARGET, OTHER))
    divergences = []
    with torch.no_grad():
        for step in plain.steps:
            both = filter_logits(plain.logits(step), other.logits(step), top_p=0.8)
            p, q = (each[each > -torch.inf].log_softmax(-1) for each in both)
            divergences.append((p.exp() * (p - q)).sum())
    return scores | {"crossentropy": -scores["probability"].log(), "kl_divergence": torch.stack(divergences)}


@pytest.mark.parametrize(("method", "way"), METHODS_AND_WAYS)
def test_they_are_inseqs(engine, model, expected, method, way):
    arguments = {"contrast_targets": OTHER[model], "top_p": 0.8}
    output = run(engine, model, method, engine=way, step_scores=SCORES, step_scores_args=arguments)
    found = output[0].step_scores
    assert set(found) == set(SCORES)
    for name, scores in found.items():
        reference.assert_close(scores, expected[name], name)
    assert len(set(found["probability"].tolist())) == len(found["probability"]) > 2
    # Step scores do not change the attributions.
    plain = run(engine, model, method, engine=way)
    reference.assert_close(output[0].target_attributions, plain[0].target_attributions, "target")
    reference.assert_close(output[0].source_attributions, plain[0].source_attributions, "source")


@pytest.mark.parametrize(("method", "way"), METHODS_AND_WAYS)
def test_forwards(engine, model, forwards, method, way):
    """Compares the numbers of forward passes of a job with and without step scores."""
    counts = []
    scores, contrast = ["probability", "entropy"], {"contrast_targets": OTHER[model]}
    plain = {"engine": way, "candidates": 0}
    more = plain | {"step_scores_args": contrast}
    run(engine, model, method, step_scores=scores, **plain)  # the first run also probes the model
    for names in ([], scores, [*scores, "pcxmi", "contrast_prob"]):
        forwards[0] = 0
        output = run(engine, model, method, step_scores=names, **more if "pcxmi" in names else plain)
        counts.append(forwards[0])
    steps = output[0].attr_pos_end - output[0].attr_pos_start
    # With `auto`, methods without a single pass need one forward pass over the whole text.
    for_all = 0 if method in OWN else steps if way == "inseq" else 1
    if way == "auto" and method in {"integrated_gradients", "gradient_shap", "occlusion"}:
        for_all = counts[1] - counts[0]  # checked in `test_estimates`
    if way == "auto" and method in {"attention", "sequential_integrated_gradients"}:
        for_all = 0  # their own forward of the whole text gives the scores
    assert counts[1] - counts[0] == for_all
    assert counts[2] - counts[1] == steps  # both contrastive functions share one for each step


@pytest.mark.parametrize(("method", "way"), METHODS_AND_WAYS)
def test_forwards_of_candidates(engine, model, forwards, method, way):
    """They cost at most one forward over the text, also beside Inseq's loop, and none where step scores are asked for."""
    counts = {}
    for names in ([], ["probability"]):
        for most in (5, 0):
            run(engine, model, method, engine=way, step_scores=names, candidates=most)  # probes the model if need be
            forwards[0] = 0
            run(engine, model, method, engine=way, step_scores=names, candidates=most)
            counts[bool(names), most] = forwards[0]
    assert counts[True, 5] == counts[True, 0]
    extra = counts[False, 5] - counts[False, 0]
    own = method in OWN or method == "attention"
    assert extra == 0 if own and not (way == "auto" and method in {"gradient_shap", "occlusion"}) else 0 <= extra <= 1


def test_padding_inside_a_text_costs_no_forward(engine, forwards):
    """A model that pads with its end of turn reads padding in every chat: it is tried once for each kind of text."""
    counts = []
    for pad in ("", "", "<|endoftext|>", "<|endoftext|>"):  # the first time, the engines are compared
        for text in (f"The big{pad} dog", f"The quick brown{pad} fox"):  # of one kind
            forwards[0] = 0
            run(engine, "gpt2", "saliency", input_text=text, generated_text=f"{text} jumps")
            counts.append(forwards[0])
    assert counts[2:] == [1, 1, 3, 1, 1, 1]


@pytest.mark.parametrize(
    ("method", "function"),
    [
        pytest.param("lime", "mc_dropout_prob_avg", marks=pytest.mark.slow), ("lime", "contrast_prob"),
        ("lime", "top_p_size"),
        pytest.param("sequential_integrated_gradients", "mc_dropout_prob_avg", marks=pytest.mark.slow),
        ("sequential_integrated_gradients", "contrast_prob"),
        ("integrated_gradients", "mc_dropout_prob_avg"),
    ],
)  # fmt: skip
def test_what_is_attributed_is_left_alone(engine, method, function):
    """Computing step scores does not call the attributed function, which may draw random numbers."""
    arguments = {"mc_dropout_prob_avg": {"n_mcd_steps": 3}, "top_p_size": {"top_p": 0.8}}.get(
        function, {"contrast_targets": "The quick brown jumps fox over"}
    )
    body = {
        "input_text": "The quick brown", "generated_text": "The quick brown fox jumps over", "seed": 3,
        "attributed_fn": function, "attributed_fn_args": arguments,
    }  # fmt: skip
    plain = run(engine, "gpt2", method, engine="inseq", **body)
    found = [run(engine, "gpt2", method, engine=way, step_scores=["probability"], **body) for way in ("inseq", "auto")]
    assert float(plain[0].target_attributions.nan_to_num().abs().max()) > 0
    for each in found:
        reference.assert_close(each[0].target_attributions, plain[0].target_attributions, "target")
    reference.assert_close(found[1][0].step_scores["probability"], found[0][0].step_scores["probability"], "scores")


def test_what_is_done_has_its_scores(engine):
    """A partial result has step scores of its steps only, although they are computed for the whole text first."""
    offered, done = [], 0
    asked = request(engine, LOOKUP, "lime", step_scores=["probability"])

    def report(progress):
        nonlocal done
        done = progress.steps_done if progress.stage is Stage.ATTRIBUTING else 0

    with pytest.raises(Cancelled):
        engine.run(asked, device="cpu", report=report, should_cancel=lambda: done >= 2, offer_partial=offered.append)
    (partial,) = [stored_form.decode(part.content) for part in offered[0]() if part.kind == "raw"]
    whole = run(engine, LOOKUP, "lime", step_scores=["probability"], engine="inseq")
    assert len(partial[0].step_scores["probability"]) == 2
    reference.assert_close(
        partial[0].step_scores["probability"], whole[0].step_scores["probability"][:2], "probability"
    )
