"""A trace by spans: each hop is one backward pass of a weighted sum, and the shares add up."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from attribution.engine import AttributionEngine
from attribution.results import stored_form
from models import AttributionRequest
from problems import InputRejected, InvalidRequest
from settings import Settings
from tests.conftest import PHRASEBOOK, TWO_STEP

PROMPT = "Oslo sells milk. Ben went to Oslo. Anna went to Rome. Rome sells tea. Ben went to"
WHOLE = f"{PROMPT} Oslo and bought milk"
BODY = {
    "model": TWO_STEP, "method": "input_x_gradient", "input_text": PROMPT, "generated_text": WHOLE,
    "spans": [{"name": "answer", "text": " milk"}, {"name": "chain", "text": " Oslo and bought"}],
    "trace": {"from": "answer", "through": "chain", "mode": "span"},
}  # fmt: skip
# Scores are stored as float32: each single one is off by half an eps, a hop's sum of them by as much of their sizes, and
# the weights, shares of such sums, by a few eps more with each of the four hops.
STORED = 16 * float(np.finfo(np.float32).eps)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return AttributionEngine(Settings(data_dir=tmp_path_factory.mktemp("data")))


def run(attribution_engine, *, dtype="float32", **body):
    # Requests cannot ask for float64, in which a log-probability near 0 has digits enough.
    request = attribution_engine.check(AttributionRequest(**body)).model_copy(update={"dtype": dtype})
    parts = attribution_engine.run(request, device="cpu", report=lambda _: None, should_cancel=lambda: False)
    return stored_form.decode(parts[0].content)


def test_each_hop_is_the_weighted_sum_of_its_tokens(engine):
    """Weights are the shares that the hop before gave the chain: computed here from the scores of single tokens."""
    tokens = run(
        engine,
        **{**BODY, "spans": None, "trace": None},
        attributed_fn="probability",
        attributed_fn_args={"logprob": True},
        dtype="float64",
    ).sequence_attributions[0]
    single = tokens.target_attributions.nan_to_num().double()  # [attributed, generated, width]
    output = run(engine, **BODY, dtype="float64")
    (sequence,), (told,) = output.sequence_attributions, output.info["trace"]
    prompt = tokens.attr_pos_start
    assert [each.token for each in sequence.target[sequence.attr_pos_start :]] == ["hop 0", "hop 1", "hop 2", "hop 3"]
    assert (told["from"], told["through"]) == (
        {"start": prompt + 3, "end": prompt + 4},
        {"start": prompt, "end": prompt + 3},
    )
    weights, mass = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64), 1.0
    for hop, one in enumerate(told["hops"]):
        column = (single * weights[None, :, None]).sum(1)
        ours = sequence.target_attributions[: len(column), hop].nan_to_num().double()
        assert float((ours - column).abs().max()) <= STORED * float(
            (single * weights[None, :, None]).abs().sum(1).max()
        )
        sizes = column.norm(dim=-1)
        shares = sizes / sizes.sum() * mass
        assert one["scores"] == pytest.approx(shares[:prompt].tolist(), rel=STORED, abs=STORED)
        assert one["reasoning"] == pytest.approx(float(shares[prompt : prompt + 3].sum()), rel=STORED, abs=STORED)
        mass = float(shares[prompt : prompt + 3].sum())
        weights = torch.cat([shares[prompt : prompt + 3] / max(mass, 1e-300), torch.zeros(1)])
    assert int(np.argmax(told["hops"][0]["scores"])) == PROMPT.replace(".", " .").split().index("milk")
    assert int(np.argmax(told["hops"][1]["scores"])) == 7  # "Ben went to Oslo": what the chain's word was copied from


@pytest.mark.parametrize("hops", [0, 1, 2, "all"])
@pytest.mark.parametrize("method", ["input_x_gradient", "saliency", "occlusion", "integrated_gradients"])
def test_the_shares_add_up(engine, method, hops):
    (told,) = run(engine, **{**BODY, "method": method, "trace": BODY["trace"] | {"hops": hops}}).info["trace"]
    total = sum(told["scores"]) + told["mass_left"] + told["elsewhere"]
    assert total == pytest.approx(1, abs=1e-9)
    assert min(told["scores"]) >= 0
    assert len(told["hops"]) == (4 if hops == "all" else hops + 1)
    if hops == "all":
        assert told["mass_left"] == 0
    assert np.sum([each["scores"] for each in told["hops"]], axis=0) == pytest.approx(told["scores"])


def test_without_a_span_between_all_that_was_generated_before_is_passed_through(engine):
    (told,) = run(engine, **{**BODY, "trace": {"from": "answer", "mode": "span"}}).info["trace"]
    (named,) = run(engine, **BODY).info["trace"]
    assert told == named
    (part,) = run(engine, **{**BODY, "spans": [BODY["spans"][0], {"name": "chain", "text": " Oslo"}]}).info["trace"]
    assert part["elsewhere"] > 0  # on " and bought", which passes nothing on


def test_a_hop_takes_one_backward_pass(engine):
    with engine._models.in_use(TWO_STEP, device="cpu", dtype="float32") as loaded:
        passes = []
        handle = loaded.network.transformer.h[0].register_full_backward_hook(lambda *_: passes.append(1))
        try:
            run(engine, **BODY)
        finally:
            handle.remove()
    assert len(passes) == 4


def test_an_encoder_decoder_is_traced_through_its_target(engine):
    body = {
        "model": PHRASEBOOK, "method": "input_x_gradient", "input_text": "the red cat sees a dog",
        "generated_text": "il gatto rosso vede un cane", "spans": [{"name": "end", "text": "cane"}],
        "trace": {"from": "end", "mode": "span", "hops": 2},
    }  # fmt: skip
    with pytest.raises(InputRejected, match="set attribute_target"):
        run(engine, **body)
    (told,) = run(engine, **body, attribute_target=True).info["trace"]
    assert len(told["scores"]) == 7 + 1  # the source, and the decoder's start token
    assert sum(told["scores"]) + told["mass_left"] + told["elsewhere"] == pytest.approx(1, abs=1e-9)
    assert int(np.argmax(told["hops"][0]["scores"])) == 5  # "dog"


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        ({"trace": {"from": "end", "mode": "span"}}, "/trace/from"),
        ({"trace": {"from": "answer", "through": "chian", "mode": "span"}}, "/trace/through"),
        ({"method": "lime"}, "/method"),
        ({"engine": "inseq"}, "/engine"),
        ({"step_scores": ["probability"]}, "/step_scores"),
        ({"spans": [{"name": "answer", "text": " milk", "contrast": " tea"}, {"name": "chain"}]}, "/spans"),
    ],
)
def test_what_cannot_be_traced_is_refused(engine, changes, pointer):
    with pytest.raises(InvalidRequest) as refused:
        engine.check(AttributionRequest(**BODY | changes))
    assert pointer in [each.pointer for each in refused.value.errors]


def test_the_reasoning_ends_before_the_answer(engine):
    spans = [{"name": "answer", "text": " and"}, {"name": "chain", "text": " Oslo and bought"}]
    with pytest.raises(InputRejected, match="must end before 'answer' begins"):
        run(engine, **BODY | {"spans": spans})
