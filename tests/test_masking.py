"""Methods that mask parts of the input, against plain Transformers forwards on the texts that the masks stand for."""

from __future__ import annotations

import copy
import random
from itertools import combinations
from math import factorial

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from demo_models.tasks import lookup_example
from tests import chat_models, families
from tests.conftest import BUNDLED, LOOKUP, PHRASEBOOK, PROMPT, SENTENCE
from tests.first_principles import Plain

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "The quick brown fox"}]
LONG = "Anna likes tea. Ben likes milk. Carla likes bread. Anna likes"


DIGITS = 5e-6  # half of the sixth digit of a number in `info`, relative to it


class Masked:
    """One text in plain Transformers, with some of its input's tokens replaced by the unknown token. In float64; how far
    float32 is off on these texts is measured beside it, in `rounding`.
    """

    def __init__(self, plain):
        self.plain = plain
        self.exact = copy.deepcopy(plain.network).double()
        self.rounding = 0.0
        tokenizer = plain.tokenizer
        self.unknown = tokenizer.pad_token_id if plain.unknown is None else plain.unknown  # as Inseq takes it
        ids = plain.source[0] if plain.is_encoder_decoder else plain.target[0, : plain.first]
        self.features = [at for at, each in enumerate(ids.tolist()) if each not in tokenizer.all_special_ids]

    def values(self, masked):
        """The log-probability of each generated token, with the tokens at these positions of the input masked."""
        plain, target = self.plain, self.plain.target
        if plain.is_encoder_decoder:
            source = plain.source.clone()
            source[0, list(masked)] = self.unknown
            inputs = {"input_ids": source, "decoder_input_ids": target[:, :-1]}
        else:
            ids = target.clone()
            ids[0, list(masked)] = self.unknown
            inputs = {"input_ids": ids[:, :-1]}
        with torch.no_grad():
            exact, single = (network(**inputs).logits[0, plain.first - 1 :] for network in (self.exact, plain.network))
        values = [each.log_softmax(-1).gather(1, target[0, plain.first :, None])[:, 0] for each in (exact, single)]
        # At least one rounding of the largest logit.
        least = float(exact.abs().max()) * torch.finfo(torch.float32).eps
        self.rounding = max(self.rounding, least, float((values[0] - values[1]).abs().max()))
        return values[0].numpy()

    def off(self, forwards=2):
        """How far a sum of the values of so many forwards may be off. Ours round in another order than the plain ones (rows
        in a batch, embeddings for ids), with the same bound for each operation: four times as much is allowed.
        """
        return 4 * forwards * self.rounding


def case(name, model_dir):
    """A model's request, and its text in plain Transformers."""
    if name == "lookup":
        return {"model": LOOKUP, "input_text": PROMPT, "generated_text": f"{PROMPT} tea."}, Plain(
            BUNDLED / LOOKUP, PROMPT, f"{PROMPT} tea."
        )
    if name == "phrasebook":
        body = {"model": PHRASEBOOK, "input_text": SENTENCE, "generated_text": "il gatto rosso vede un cane"}
        return body, Plain(BUNDLED / PHRASEBOOK, SENTENCE, body["generated_text"])
    folder = model_dir / name
    build = chat_models.build if name.startswith("chat") else families.build
    folder = folder if folder.exists() else build(name, folder)
    if name == "llama":
        text = "The quick brown fox"
        return {"model": name, "input_text": text, "generated_text": f"{text} jumps over"}, Plain(
            folder, text, f"{text} jumps over"
        )
    plain = Plain(folder, "x", "x")
    prompt = plain.tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    plain.target = torch.tensor([prompt + plain.tokenizer(" jumps over", add_special_tokens=False).input_ids])
    plain.first = len(prompt)
    plain.steps = range(plain.first, plain.target.shape[1])
    return {"model": name, "messages": MESSAGES, "generated_text": " jumps over"}, plain


CASES = ["lookup", "llama", "phrasebook", "chat-qwen2"]


def sides(plain):
    return "source" if plain.is_encoder_decoder else "target"


def scores_of(result, plain, sequence=0):
    """[attributed tokens of the input, generated tokens]."""
    found = result["sequence_attributions"][sequence][f"{sides(plain)}_attributions"]
    length = plain.source.shape[1] if plain.is_encoder_decoder else plain.first
    return np.array(found[:length], dtype=float)


def assert_equal(ours, theirs, masked, forwards=2):
    """Equal up to float32's rounding of the forwards that a score is made of, and the digits that it is written with."""
    np.testing.assert_allclose(ours, theirs, rtol=DIGITS, atol=masked.off(forwards))


@pytest.mark.parametrize("name", CASES)
def test_each_score_is_the_difference_of_two_plain_forwards(server, model_dir, name):
    body, plain = case(name, model_dir)
    masked = Masked(plain)
    result = server.result(server.run(**body, method="leave_one_out", step_scores=["probability"]), decode_tokens=True)
    written = masked.features
    if name.startswith("chat"):  # the words of the two messages, and nothing of the template
        tokens = result["sequence_attributions"][0]["target"][: plain.first]
        written = [at for at, each in enumerate(tokens) if not each["template"] and not each.get("special")]
        assert "".join(tokens[at]["text"] for at in written) == "Be brief.The quick brown fox"
    told = result["info"]["masking"][0]
    assert (told["features"], told["positions"], told["rows"]) == ("tokens", written, len(written) + 1)
    whole = masked.values([])
    expected = np.zeros((len(scores_of(result, plain)), len(whole)))
    expected[written] = [whole - masked.values([at]) for at in written]
    shown = scores_of(result, plain)
    assert_equal(shown, expected[:, : shown.shape[1]], masked)
    assert_equal(told["at_all"], whole[: shown.shape[1]], masked, forwards=1)
    probability = result["sequence_attributions"][0]["step_scores"]["probability"]
    np.testing.assert_allclose(np.log(probability), whole[: shown.shape[1]], rtol=0, atol=masked.off(1))
    if not plain.is_encoder_decoder:  # an earlier generated token is no feature; a later one is not there yet
        rest = result["sequence_attributions"][0]["target_attributions"][plain.first :]
        for row, each in enumerate(rest):
            assert each == [None if column <= row else 0.0 for column in range(shown.shape[1])]


@pytest.mark.parametrize("name", ["lookup", "phrasebook"])
def test_values_of_segments_are_those_of_all_subsets(server, model_dir, name):
    body, plain = case(name, model_dir)
    masked = Masked(plain)
    segments, tokens = (
        (
            [{"text": "Anna likes tea.", "name": "a"}, {"text": " Ben likes milk."}, {"start": 9, "end": 10}],
            [range(4), range(4, 8), [9]],
        )
        if name == "lookup"
        else (
            [{"text": "the red cat"}, {"text": "sees"}, {"text": "a dog", "name": "dog"}],
            [range(3), [3], range(4, 6)],
        )
    )
    every = set(range(3))
    value = {
        kept: masked.values([at for each in every - set(kept) for at in tokens[each]])
        for size in range(4) for kept in combinations(range(3), size)
    }  # fmt: skip

    def gains(feature):
        for kept, found in value.items():
            if feature not in kept:
                yield len(kept), value[tuple(sorted({*kept, feature}))] - found

    expected = {
        "shapley": [sum(factorial(k) * factorial(2 - k) / 6 * gain for k, gain in gains(j)) for j in range(3)],
        "banzhaf": [sum(gain for _, gain in gains(j)) / 4 for j in range(3)],
        "leave_one_out": [value[0, 1, 2] - value[tuple(sorted(every - {j}))] for j in range(3)],
    }
    job = server.run(**body, methods=list(expected), segments=segments)
    for method, by_segment in expected.items():
        result = server.result(job, method=method)
        scores, (told,) = scores_of(result, plain), result["info"]["masking"]
        generated = scores.shape[1]
        for positions, theirs, ours in zip(tokens, by_segment, told["scores"], strict=True):
            assert_equal(
                scores[list(positions)],
                np.tile(theirs[:generated] / len(positions), (len(positions), 1)),
                masked,
            )
            assert_equal(ours, theirs[:generated], masked)  # a mean of gains, each of two forwards
        rest = [at for at in range(len(scores)) if not any(at in each for each in tokens)]
        assert (scores[rest] == 0).all()
        merged = server.result(job, method=method, aggregator="segments")["sequence_attributions"][0]
        rows = dict(
            zip([each["token"] for each in merged[sides(plain)]], merged[f"{sides(plain)}_attributions"], strict=False)
        )
        for segment, theirs in zip(result["info"]["segments"][0], by_segment, strict=True):
            assert_equal(rows[segment["name"]], theirs[:generated], masked)


def test_the_template_within_a_segment_is_not_masked(server, model_dir):
    """A segment that reaches from one message into the next has the words of both, and the marks between them."""
    body, plain = case("chat-qwen2", model_dir)
    masked = Masked(plain)
    segments = [{"between": ["Be ", "quick"], "name": "across"}, {"after": "quick"}]
    job = server.run(**body, method="leave_one_out", segments=segments)
    result, merged = server.result(job, decode_tokens=True), server.result(job, aggregator="segments")
    tokens = result["sequence_attributions"][0]["target"]
    whole, shown = masked.values([]), scores_of(result, plain)
    for number, each in enumerate(result["info"]["segments"][0]):
        every = range(each["start"], each["end"])
        written = [at for at in every if not tokens[at]["template"] and not tokens[at].get("special")]
        assert 0 < len(written) < len(every)
        expected = (whole - masked.values(written))[: shown.shape[1]]
        assert_equal(shown[written], np.tile(expected / len(written), (len(written), 1)), masked)
        assert (shown[[at for at in every if at not in written]] == 0).all()
        assert_equal(result["info"]["masking"][0]["scores"][number], expected, masked)
        rows = dict(
            zip(
                [token["token"] for token in merged["sequence_attributions"][0]["target"]],
                merged["sequence_attributions"][0]["target_attributions"],
                strict=False,
            )
        )
        assert_equal(rows[each["name"]], expected, masked)


def test_occlusion_of_segments_masks_all_their_tokens_at_once(server, model_dir):
    body, plain = case("lookup", model_dir)
    masked = Masked(plain)
    segments = [{"text": "Anna likes tea."}, {"text": "Ben likes milk."}, {"start": 8, "end": 10, "pinned": True}]
    result = server.result(server.run(**body, method="occlusion", segments=segments))
    whole = np.exp(masked.values([]))
    expected = np.zeros((10, len(whole)))
    for tokens in (range(4), range(4, 8)):
        expected[list(tokens)] = np.abs(whole - np.exp(masked.values(tokens))) / 4
    assert_equal(scores_of(result, plain), expected, masked)  # a probability is off by less than its logarithm
    assert result["info"]["engine"] == "masking"
    assert result["info"]["masking"][0]["rows"] == 3
    assert [each["pinned"] for each in result["info"]["segments"][0]] == [False, False, True]


def test_lime_of_segments_is_a_ridge_regression_on_their_masks(server, model_dir):
    body, plain = case("lookup", model_dir)
    masked, tokens = Masked(plain), [range(4), range(4, 8), range(8, 10)]
    arguments = {"n_samples": 30, "mask_prob": 0.4}
    result = server.result(server.run(**body, method="lime", segments="sentences", attribution_args=arguments, seed=7))
    kept = np.random.default_rng(7).random((30, 3)) >= 0.4
    values = [np.exp(masked.values([at for j in range(3) if not row[j] for at in tokens[j]])) for row in kept]
    width, generated = plain.network.config.hidden_size, plain.target.shape[1] - plain.first
    length = plain.target.shape[1] - 1
    unmasked = [width * (length - sum(len(tokens[j]) for j in range(3) if not row[j])) for row in kept]
    ridge = Ridge().fit(kept.astype(float), np.array(values), sample_weight=unmasked)
    # The scores are linear in the values: each is a sum of them with these factors.
    factors = Ridge().fit(kept.astype(float), np.eye(len(kept)), sample_weight=unmasked).coef_
    told = result["info"]["masking"][0]
    assert_equal(told["scores"], ridge.coef_.T[:, :generated], masked, forwards=np.abs(factors).sum(0).max())
    assert told["is_exact"] is False
    assert told["standard_errors"] is None


@pytest.mark.parametrize(("method", "n_samples"), [("shapley", 40), ("banzhaf", 400)])
def test_sampled_scores_are_near_those_of_all_subsets(server, method, n_samples):
    """Of eleven tokens, one more than are computed exactly; the others of the input are in no segment."""
    plain, count = Plain(BUNDLED / LOOKUP, LONG, f"{LONG} tea"), 11
    kept = np.array([[number >> at & 1 for at in range(count)] for number in range(2**count)], bool)
    ids = plain.target.repeat(len(kept), 1)
    ids[:, :count] = torch.where(torch.from_numpy(kept), ids[:, :count], plain.unknown)
    masked = Masked(plain)
    with torch.no_grad():
        logits = torch.cat([masked.exact(part[:, :-1]).logits[:, -1] for part in ids.split(256)])
    values = logits.log_softmax(-1)[:, plain.target[0, -1]].numpy()
    ends = np.array([masked.values(range(count)), masked.values([])])[:, 0]
    np.testing.assert_allclose(values[[0, -1]], ends, atol=1e-12)
    sizes, numbers, exact = kept.sum(1), np.arange(len(kept)), []
    for at in range(count):
        without = ~kept[:, at]
        weight = {
            "shapley": [factorial(k) * factorial(count - k - 1) / factorial(count) for k in range(count)],
            "banzhaf": [1 / 2 ** (count - 1)] * count,
        }[method]
        gains = values[numbers[without] | 1 << at] - values[without]
        exact.append(np.array(weight)[sizes[without]] @ gains)

    body = {"model": LOOKUP, "input_text": LONG, "generated_text": f"{LONG} tea", "method": method}
    body |= {
        "segments": [{"start": at, "end": at + 1} for at in range(count)],
        "attribution_args": {"n_samples": n_samples},
    }
    results = [server.result(server.run(**body, seed=seed)) for seed in (3, 3, 4)]
    ours, same, other = (each["sequence_attributions"] for each in results)
    assert ours == same
    assert ours != other
    told = results[0]["info"]["masking"][0]
    scores = np.array(ours[0]["target_attributions"][:count], float)
    np.testing.assert_allclose(told["scores"], scores, rtol=DIGITS)
    assert told["is_exact"] is False
    assert (np.array(told["standard_errors"]) > 0).all()
    assert (np.abs(scores[:, 0] - exact) <= 4 * np.array(told["standard_errors"])[:, 0]).all()
    if method == "shapley":
        # Each order of the tokens adds up exactly; the scores are then float32, and the two values have six digits.
        written = np.abs(scores[:, 0]).sum() * torch.finfo(torch.float32).eps
        digits = DIGITS * (abs(told["at_all"][0]) + abs(told["at_none"][0]))
        assert sum(scores[:, 0]) == pytest.approx(told["at_all"][0] - told["at_none"][0], abs=written + digits)
        assert sum(scores[:, 0]) == pytest.approx(values[-1] - values[0], abs=written + masked.off())


def test_a_function_of_the_logits_is_attributed_where_the_request_names_one(server, model_dir):
    body, plain = case("lookup", model_dir)
    masked = Masked(plain)
    result = server.result(server.run(**body, method="leave_one_out", attributed_fn="probability"))
    whole = np.exp(masked.values([]))
    expected = [whole - np.exp(masked.values([at])) for at in range(10)]
    assert_equal(scores_of(result, plain), expected, masked)
    assert result["info"]["arguments"]["attributed_fn_args"] == {"logprob": False}
    contrast = {"attributed_fn": "contrast_logits_diff", "attributed_fn_args": {"contrast_targets": f"{PROMPT} milk."}}
    ours = server.result(server.run(**body, **contrast, method="leave_one_out"))
    theirs = server.result(server.run(**body, **contrast, method="occlusion"))
    one, other = (scores_of(each, plain) for each in (ours, theirs))
    assert_equal(np.abs(one), other, masked, forwards=4)  # of two logits each


def test_equal_masks_share_a_row(server):
    """Two segments of the input have four subsets, which 40 orders or samples ask many times."""
    text = {"model": LOOKUP, "input_text": PROMPT, "generated_text": f"{PROMPT} tea."}
    job = server.run(
        **text, methods=["lime", "shapley"], segments="sentences", attribution_args={"lime": {"n_samples": 60}}
    )
    for method in ("lime", "shapley"):
        assert server.result(job, method=method)["info"]["masking"][0]["rows"] <= 8


@pytest.mark.parametrize(
    ("method", "least"), [("leave_one_out", 38), ("shapley", 39), ("banzhaf", 39), ("occlusion", 38), ("lime", 34)]
)
def test_the_fact_that_answers_is_found(server, method, least):
    """Of 40 prompts with two to four facts, of which one answers the question behind them."""
    rng = random.Random(5)
    examples = [lookup_example(rng) for _ in range(40)]
    body = {"model": LOOKUP, "input_text": [each.prompt for each in examples], "segments": "sentences"}
    target = [each.prompt + each.completion for each in examples]
    result = server.result(server.run(**body, generated_text=target, method=method))
    right = 0
    for example, told, segments in zip(examples, result["info"]["masking"], result["info"]["segments"], strict=True):
        facts = [row[0] for row, each in zip(told["scores"], segments, strict=True) if each["name"].endswith(".")]
        best = max(range(len(facts)), key=facts.__getitem__)
        right += segments[best]["name"] == f"{example.prompt.split()[-2]} likes{example.answer}."
    assert right >= least
