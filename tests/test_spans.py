"""Spans of the target as wholes: their scores are those of the sum of their tokens' log-probabilities.

Compared with autograd on plain Transformers, token by token from prefixes, and with the scores of the single tokens.
"""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from attribution.engine import AttributionEngine
from attribution.results import stored_form
from attribution.run.rounding import SAME, Float64Throughout
from models import AttributionRequest
from problems import InvalidRequest
from settings import Settings
from tests.conftest import BUNDLED, LOOKUP, PHRASEBOOK
from tests.exact_columns import DIGITS, exact_columns
from tests.families import FAMILIES, build
from tests.first_principles import Plain

TEXT = "Anna likes tea. Ben likes milk. Anna likes"
WHOLE = f"{TEXT} tea. Ben likes milk."
LOGPROB = {"attributed_fn": "probability", "attributed_fn_args": {"logprob": True}}
LINEAR = {
    "input_x_gradient": {},
    "layer_gradient_x_activation": {},
    "integrated_gradients": {"n_steps": 8},
    "discretized_integrated_gradients": {"n_steps": 8},
    "sequential_integrated_gradients": {"n_steps": 4},
    "deeplift": {},
}


@pytest.fixture(scope="module")
def engine(tmp_path_factory, model_dir):
    for name in ("gpt2", "llama", "t5"):
        if not (model_dir / name).exists():
            build(name, model_dir / name)
    return AttributionEngine(Settings(data_dir=tmp_path_factory.mktemp("data"), model_dirs=(str(model_dir),)))


def run(attribution_engine, *, model=LOOKUP, dtype="float64", **body):
    """A request by the engine. In float64, which requests cannot ask for, nothing but the storage of scores rounds."""
    request = attribution_engine.check(AttributionRequest(model=model, **body)).model_copy(update={"dtype": dtype})
    with Float64Throughout() if dtype == "float64" else nullcontext():
        parts = attribution_engine.run(request, device="cpu", report=lambda _: None, should_cancel=lambda: False)
    return stored_form.decode(parts[0].content)


def exact(text, target):
    """The lookup model in plain Transformers, in float64."""
    return Plain(BUNDLED / LOOKUP, text, target, dtype=torch.float64)


def scores(output):
    """[attributed, columns(, width)], NaN as zero: of the source where there is one."""
    (sequence,) = output.sequence_attributions
    found = sequence.target_attributions if sequence.source_attributions is None else sequence.source_attributions
    return found.nan_to_num().double()


# Exactness


def log_probability(plain):
    return lambda logits, step: logits.log_softmax(-1)[:, plain.target[0, step]]


def gradient(plain, step):
    return plain.gradient(plain.embedded(step), step, log_probability(plain))[0]


def riemann(plain, step):
    x, b = plain.embedded(step), plain.embedded(step, baseline=True)
    alphas = torch.tensor([0.125, 0.375, 0.625, 0.875], dtype=x.dtype)[:, None, None]
    return plain.gradient(b + alphas * (x - b), step, log_probability(plain)).mean(0) * (x - b)[0]


def left_out(plain, step):
    x, b = plain.embedded(step), plain.embedded(step, baseline=True)
    rows = x.repeat(x.shape[1], 1, 1)
    for position in range(x.shape[1]):
        rows[position, position] = b[0, position]
    value = log_probability(plain)
    with torch.no_grad():
        return (value(plain.logits(step, x), step) - value(plain.logits(step, rows), step))[:, None]


CASES = {
    "saliency": ({}, gradient, torch.abs),
    "input_x_gradient": ({}, lambda plain, step: gradient(plain, step) * plain.embedded(step)[0], lambda each: each),
    "integrated_gradients": ({"n_steps": 4, "method": "riemann_middle"}, riemann, lambda each: each),
    "occlusion": ({}, left_out, torch.abs),
}


@pytest.mark.parametrize("method", CASES)
@pytest.mark.parametrize("family", ["gpt2", "llama", "t5"])
def test_a_span_has_the_scores_of_the_sum_of_its_log_probabilities(engine, model_dir, monkeypatch, family, method):
    text, target = "The quick brown", "fox jumps over the lazy dog"
    target = target if FAMILIES[family].is_encoder_decoder else f"{text} {target}"
    arguments, of_step, whole = CASES[method]
    with Float64Throughout():
        plain = Plain(model_dir / family, text, target, dtype=torch.float64)
        if plain.unknown is None:
            plain.unknown = plain.tokenizer.pad_token_id
        spans = [(plain.first, plain.first + 3), (plain.first + 2, plain.target.shape[1])]
        request = engine.check(
            AttributionRequest(
                model=family, method=method, input_text=text, generated_text=target, attribution_args=arguments,
                spans=[{"start": start, "end": end} for start, end in spans], engine="single_pass",
            )
        )  # fmt: skip
        columns = exact_columns(engine, request, monkeypatch)[-2:]
        for (start, end), column in zip(spans, columns, strict=True):
            theirs = torch.zeros(column.shape if column.ndim > 1 else (*column.shape, 1), dtype=torch.float64)
            for step in range(start, end):
                one = of_step(plain, step)
                theirs[: len(one)] += one
            theirs = whole(theirs).reshape(column.shape)
            assert column.dtype == torch.float64
            assert float((column - theirs).abs().max()) <= DIGITS * float(theirs.abs().max())


@pytest.mark.parametrize("method", LINEAR)
@pytest.mark.parametrize("way", ["single_pass", "inseq"])
def test_a_span_is_the_sum_of_its_tokens(engine, method, way):
    """To the rounding of its tokens: a sum is off by no more than its parts together are (from their float64 values)."""
    body = {"method": method, "attribution_args": LINEAR[method], "input_text": TEXT, "generated_text": WHOLE}
    tokens, exact = (
        scores(run(engine, engine="single_pass", dtype=dtype, **body, **LOGPROB)) for dtype in ("float32", "float64")
    )
    off = (tokens - exact).abs().flatten(2).amax((0, 2)) if tokens.ndim > 2 else (tokens - exact).abs().amax(0)
    both = scores(run(engine, engine=way, dtype="float32", **body, spans=[{}, {"text": "milk."}]))[: len(tokens)]
    for column, chosen in ((0, slice(None)), (1, slice(4, 6))):
        summed = exact[:, chosen].sum(1)
        most = max(float(off[chosen].sum()), 1e-6 * float(exact[:, chosen].abs().sum(1).max()))
        assert float((both[:, column] - summed).abs().max()) <= 2 * most


@pytest.mark.parametrize("method", [*LINEAR, "saliency", "occlusion", "gradient_shap"])
@pytest.mark.parametrize(("model", "text", "target"), [(LOOKUP, TEXT, WHOLE), (PHRASEBOOK, "the red cat", None)])
def test_both_engines_agree(engine, method, model, text, target):
    body = {
        "method": method, "input_text": text, "generated_text": target, "step_scores": ["entropy"],
        "spans": [{}, {"text": " rosso" if model == PHRASEBOOK else " likes milk"}],
        "attribution_args": LINEAR.get(method, {}),
    }  # fmt: skip
    ours, theirs = (run(engine, model=model, engine=way, **body) for way in ("auto", "inseq"))
    assert theirs.info["engine"] == "inseq"
    a, b = scores(ours), scores(theirs)
    assert a.shape == b.shape
    assert float((a - b).abs().max()) <= SAME * float(b.abs().max())
    mine, other = (each.sequence_attributions[0] for each in (ours, theirs))
    assert [str(each) for each in mine.target] == [str(each) for each in other.target]
    assert torch.allclose(mine.step_scores["entropy"], other.step_scores["entropy"], rtol=SAME)
    assert ours.info["spans"][0][1]["log_probability"] == pytest.approx(
        theirs.info["spans"][0][1]["log_probability"], rel=SAME
    )


def test_a_span_of_one_token_is_that_token_bit_for_bit(engine):
    body = {"method": "input_x_gradient", "input_text": TEXT, "generated_text": WHOLE}
    token = run(engine, **body, **LOGPROB, attr_pos_start=14, attr_pos_end=15).sequence_attributions[0]
    span = run(engine, **body, spans=[{"text": " milk", "occurrence": 0}]).sequence_attributions[0]
    assert torch.equal(span.target_attributions[:14, 0], token.target_attributions[:14, 0])
    assert span.target_attributions[14:].isnan().all()


def test_the_target_prefix_of_an_encoder_decoder_is_attributed_too(engine):
    body = {"model": PHRASEBOOK, "method": "input_x_gradient", "input_text": "the red cat sees a dog"}
    body |= {"generated_text": "il gatto rosso vede un cane", "attribute_target": True}
    tokens = run(engine, **body, **LOGPROB).sequence_attributions[0]
    span = run(engine, **body, spans=[{"text": "gatto rosso vede"}]).sequence_attributions[0]
    for side, rows in (("source", 7), ("target", 4)):
        ours, each = (getattr(one, f"{side}_attributions") for one in (span, tokens))
        expected = each[:rows, 1:4].nan_to_num().sum(1)
        assert float((ours[:rows, 0] - expected).abs().max()) <= SAME * float(each.nan_to_num().abs().sum(1).max())
    assert span.target_attributions[4:].isnan().all()


@pytest.mark.parametrize("length", [8, 128, 512])
def test_a_span_takes_one_backward_pass(engine, model_dir, length):
    """However long it is; for integrated gradients, one for all of its points, which are rows of one batch."""
    ids = [1, *(2 + 7 * index % 300 for index in range(530))]
    body = {"model": "long-gpt2", "input_text": "The", "method": "saliency", "dtype": "float32"}
    folder = model_dir / "long-gpt2"
    if not folder.exists():
        build("gpt2", folder)
        plain = GPT2LMHeadModel(GPT2Config.from_pretrained(folder, n_positions=600))
        plain.save_pretrained(folder)
        AutoTokenizer.from_pretrained(folder, model_max_length=600).save_pretrained(folder)
    with engine._models.in_use("long-gpt2", device="cpu", dtype="float32") as loaded:
        prompt = loaded.model.tokenizer("The").input_ids
        body["generated_ids"] = [prompt + ids]
        first, passes = len(prompt), []
        run(engine, **body, spans=[{"start": first, "end": first + 2}])  # with a probe of the model
        handle = loaded.network.transformer.h[0].register_full_backward_hook(lambda *_: passes.append(1))
        try:
            run(engine, **body, spans=[{"start": first, "end": first + length}])
            assert len(passes) == 1
        finally:
            handle.remove()


def test_integrated_gradients_of_a_span_add_up(engine):
    output = run(engine, method="integrated_gradients", input_text=TEXT, generated_text=WHOLE, spans=[{}], n_steps=300)
    plain = exact(TEXT, WHOLE)
    ids = plain.target[:, :-1]
    with torch.no_grad():
        embed = plain.network.get_input_embeddings()
        baseline = torch.where(ids == plain.network.config.eos_token_id, ids, plain.unknown)
        logits = [plain.network(inputs_embeds=embed(each)).logits[0] for each in (ids, baseline)]
    steps = torch.tensor(plain.steps)
    at_input, at_baseline = (float(each.log_softmax(-1)[steps - 1, plain.target[0, steps]].sum()) for each in logits)
    (found,) = output.info["convergence"]
    assert found["at_input"] == [pytest.approx(at_input, rel=SAME)]
    assert found["at_baseline"] == [pytest.approx(at_baseline, rel=SAME)]
    assert float(scores(output).sum()) == pytest.approx(
        at_input - at_baseline + found["delta"][0], abs=SAME * float(scores(output).abs().sum())
    )
    assert abs(found["delta"][0]) < 0.01 * abs(at_input - at_baseline)


# Choices and contrasts


def margin_gradient(plain_of, choices):
    """The gradient of log p(first) - log p(other) with respect to the prompt's embeddings: [prompt, width]."""
    found = []
    for choice in choices:
        plain = plain_of(choice)
        total = torch.zeros_like(plain.embedded(plain.first)[0])
        for step in plain.steps:
            total += gradient(plain, step)[: plain.first]
        found.append(total)
    return found[0] - found[1]


def test_the_margin_of_a_choice_is_attributed(engine):
    choices = [" tea", " milk. Ben likes", " juice"]
    output = run(engine, method="input_x_gradient", input_text=TEXT, choices=choices)
    plains = [exact(TEXT, TEXT + choice) for choice in choices]
    (told,) = output.info["choices"]
    expected = [float(plain.log_probabilities().sum()) for plain in plains]
    assert [each["text"] for each in told] == choices
    assert [each["tokens"] for each in told] == [1, 4, 1]
    assert [each["log_probability"] for each in told] == pytest.approx(expected, rel=SAME)
    assert [each["log_probability_per_token"] for each in told] == pytest.approx(
        [each / count for each, count in zip(expected, (1, 4, 1), strict=True)], rel=SAME
    )
    share = np.exp(expected) / np.exp(expected).sum()
    assert [each["probability_among_choices"] for each in told] == pytest.approx(share.tolist(), rel=SAME)
    (sequence,) = output.sequence_attributions
    assert [each.token for each in sequence.target[-2:]] == ["milk. Ben likes → tea", "juice → tea"]
    prompt = plains[0].first
    for column, other in enumerate(choices[1:]):
        theirs = margin_gradient(lambda choice: exact(TEXT, TEXT + choice), (choices[0], other))
        theirs = theirs * plains[0].embedded(plains[0].first)[0]
        ours = sequence.target_attributions[:prompt, column]
        assert float((ours - theirs).abs().max()) <= SAME * float(theirs.abs().max())
    assert sequence.target_attributions[prompt:].isnan().all()
    assert output.info["warnings"] == []


@pytest.mark.parametrize("way", ["auto", "inseq"])
@pytest.mark.parametrize("method", ["occlusion", "saliency"])
def test_a_margin_without_sign_is_that_of_the_difference(engine, method, way):
    """And not the difference of two absolute values."""
    output = run(engine, method=method, input_text=TEXT, choices=[" tea", " milk. Ben"], engine=way)
    plains = [exact(TEXT, TEXT + choice) for choice in (" tea", " milk. Ben")]
    prompt = plains[0].first
    of_step = left_out if method == "occlusion" else gradient
    sums = [sum(of_step(plain, step)[:prompt] for step in plain.steps) for plain in plains]
    theirs = (sums[0] - sums[1]).abs()
    ours = output.sequence_attributions[0].target_attributions[:prompt, 0].reshape(theirs.shape)
    assert float((ours - theirs).abs().max()) <= SAME * float(theirs.abs().max())


def test_a_span_has_a_contrast_of_another_length(engine):
    body = {"method": "input_x_gradient", "input_text": TEXT, "generated_text": WHOLE}
    spans = [{"name": "drink", "text": " milk.", "contrast": " tea. Anna likes juice."}, {"text": " Ben"}]
    output = run(engine, **body, spans=spans)
    (sequence,) = output.sequence_attributions
    assert [each.token for each in sequence.target[-2:]] == ["tea. Anna likes juice. → drink", "Ben"]
    (told,) = output.info["spans"]
    assert (told[0]["start"], told[0]["end"], told[0]["text"]) == (14, 16, " milk.")
    other = exact(TEXT, WHOLE[: WHOLE.rindex(" milk.")] + " tea. Anna likes juice.")
    assert told[0]["contrast"]["token_ids"] == other.target[0, 14:].tolist()
    plain = exact(TEXT, WHOLE)
    theirs = sum(gradient(plain, step)[:14] for step in (14, 15))
    theirs -= sum(gradient(other, step)[:14] for step in range(14, other.target.shape[1]))
    theirs = theirs * plain.embedded(14)[0]
    ours = sequence.target_attributions[:14, 0]
    assert float((ours - theirs).abs().max()) <= SAME * float(theirs.abs().max())
    alone = run(engine, **body, spans=[spans[1]]).sequence_attributions[0]
    assert torch.allclose(
        sequence.target_attributions[:11, 1],
        alone.target_attributions[:11, 0],
        rtol=0,
        atol=SAME * float(alone.target_attributions[:11].abs().max()),
    )


# Requests


@pytest.mark.parametrize(
    ("body", "pointer", "reason"),
    [
        ({"method": "attention"}, "/method", "attention attributes no function of the output"),
        ({"method": "value_zeroing"}, "/method", "Use one of"),
        ({"attr_pos_start": 12}, "/attr_pos_start", "leave out attr_pos_start"),
        ({"output_step_attributions": True}, "/output_step_attributions", "without steps"),
        ({"corrections": False}, "/corrections", "leave out corrections"),
        (
            {"attributed_fn": "contrast_prob_diff", "attributed_fn_args": {"contrast_targets": WHOLE}},
            "/attributed_fn",
            "a span may have a contrast",
        ),
        ({"method": "lime", "spans": [{"text": " tea", "contrast": " milk"}]}, "/method", "draws anew"),
    ],
)
def test_what_does_not_go_together_is_refused(engine, body, pointer, reason):
    with pytest.raises(InvalidRequest) as refused:
        engine.check(
            AttributionRequest(
                **{"model": LOOKUP, "method": "saliency", "input_text": TEXT, "generated_text": WHOLE, "spans": [{}]}
                | body
            )
        )
    assert any(each.pointer == pointer and reason in each.detail for each in refused.value.errors)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"choices": [" tea"], "generated_text": WHOLE}, "give either generated_text or choices"),
        ({"choices": [" tea"], "spans": [{}]}, "choices are attributed as wholes"),
        ({"spans": []}, "at least 1 item"),
        ({"spans": [{"txt": "tea"}]}, "Extra inputs"),
    ],
)
def test_a_body_that_contradicts_itself_is_refused(body, reason):
    with pytest.raises(ValueError, match=reason):
        AttributionRequest(model=LOOKUP, method="saliency", input_text=TEXT, **body)


# Spans by masking


@pytest.mark.parametrize(
    ("method", "more"),
    [("leave_one_out", {}), ("shapley", {"segments": "sentences"}), ("occlusion", {"segments": "words"})],
)
def test_masking_a_part_shows_its_effect_on_a_span(engine, method, more):
    """The value of a mask is the sum of the span's log-probabilities, on a plain forward of the masked text."""
    body = {"method": method, "input_text": TEXT, "generated_text": WHOLE, **more}
    tokens = scores(run(engine, **body, attributed_fn="probability", attributed_fn_args={"logprob": True}))
    spans = run(engine, **body, spans=[{}, {"text": " milk"}])
    found = scores(spans)[: len(tokens)]
    size = float(tokens.abs().sum(1).max())
    if method != "occlusion":  # whose scores have no sign
        assert float((found[:, 0] - tokens.sum(1)).abs().max()) <= SAME * size
    assert float((found[:, 1] - tokens[:, 4]).abs().max()) <= SAME * size
    (told,) = spans.info["masking"]
    assert told["at_all"] == pytest.approx(
        [each["log_probability"] for each in spans.info["spans"][0]], rel=1e-5
    )  # six digits


def test_the_margin_of_choices_by_masking(engine):
    choices = [" tea", " milk. Ben"]
    found = {
        method: run(engine, method=method, input_text=TEXT, choices=choices, **more).sequence_attributions[0]
        for method, more in (("leave_one_out", {}), ("occlusion", {"segments": "words"}))
    }
    plains = [exact(TEXT, TEXT + choice) for choice in choices]
    first = plains[0].first
    sums = [sum(left_out(plain, step)[:first, 0] for step in plain.steps) for plain in plains]
    theirs = (sums[0] - sums[1]).double()
    ours = found["leave_one_out"].target_attributions[:first, 0].double()
    assert float((ours - theirs).abs().max()) <= SAME * float(theirs.abs().max())
    words = found["occlusion"].target_attributions[:first, 0].double()
    assert float((words - theirs.abs()).abs().max()) <= SAME * float(theirs.abs().max())  # a word is a token here
