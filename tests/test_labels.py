"""Token labels equal Inseq's, and are made in linear time (Inseq's are quadratic)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inseq.attr.feat import attribution_utils, join_token_ids
from inseq.models import HuggingfaceModel

from attribution.engine import AttributionEngine
from attribution.results import stored_form
from attribution.text.step_labels import labels
from models import AttributionRequest
from settings import Settings
from tests import reference
from tests.conftest import BUNDLED, LOOKUP, PHRASEBOOK, PROMPT, SENTENCE

TEXT = {LOOKUP: PROMPT, PHRASEBOOK: SENTENCE}
TARGET = {LOOKUP: f"{PROMPT} tea. Ben likes milk.", PHRASEBOOK: "il gatto rosso vede un cane"}
OTHER = {LOOKUP: f"{PROMPT} milk. Ben likes tea.", PHRASEBOOK: "il cane rosso vede un gatto"}


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return AttributionEngine(Settings(data_dir=tmp_path_factory.mktemp("data")))


def run(engine, model, method="saliency", **body):
    body = {"engine": "inseq", "input_text": TEXT[model], "generated_text": TARGET[model]} | body
    request = engine.check(AttributionRequest(model=model, method=method, **body))
    parts = engine.run(request, device="cpu", report=lambda _: None, should_cancel=lambda: False)
    return stored_form.decode(next(part.content for part in parts if part.kind == "raw"))


@given(data=st.data())
def test_labels_are_inseqs(data):
    tokens, contrast = (data.draw(st.lists(st.sampled_from("abc"), min_size=1, max_size=8)) for _ in range(2))
    position = st.integers(0, len(contrast) - 1)
    pairs = data.draw(st.lists(st.tuples(st.integers(0, len(tokens) - 1), position)))
    pairs += [] if pairs or len(contrast) >= len(tokens) else [(0, 0)]
    ids = list(range(len(tokens)))
    assert labels(tokens, ids) == join_token_ids([tokens], [ids])[0]
    assert labels(tokens, ids, contrast, pairs) == join_token_ids([tokens], [ids], [contrast], [pairs])[0]


OPTIONS = [
    {},
    {"clean_special_chars": True},
    {"attributed_fn": "contrast_prob_diff"},
    {"attributed_fn": "contrast_prob_diff", "clean_special_chars": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "plain")
@pytest.mark.parametrize("model", [LOOKUP, PHRASEBOOK])
def test_the_steps_are_labelled_as_inseq_labels_them(engine, model, options):
    arguments = {"contrast_targets": OTHER[model]} if "attributed_fn" in options else {}
    ours = run(engine, model, output_step_attributions=True, **options, attributed_fn_args=arguments)
    theirs = reference.attribute(
        BUNDLED / model, TEXT[model], "saliency", generated_texts=TARGET[model], output_step_attributions=True,
        **options, attributed_fn_args=dict(arguments),
    )  # fmt: skip
    assert len(ours.step_attributions) == len(theirs.step_attributions) > 4
    for mine, other in zip(ours.step_attributions, theirs.step_attributions, strict=True):
        for name in ("source", "prefix", "target"):
            assert plain(getattr(mine, name)) == plain(getattr(other, name))
    reference.assert_same_sequence(ours[0], theirs[0])


def plain(tokens):
    """(string, id) of each token; -1 for a contrast's id, which in Inseq is a token instead of a number."""
    if tokens is None:
        return None
    return [[(str(token.token), token.id if isinstance(token.id, int) else -1) for token in each] for each in tokens]


@pytest.fixture
def counted(monkeypatch):
    """Counts Inseq's lookups of aligned tokens and its conversions of tokens to strings."""
    found = {"pairs": 0, "strings": 0}
    look_up, to_string = attribution_utils.get_aligned_idx, HuggingfaceModel.convert_tokens_to_string

    def counted_look_up(*arguments):
        found["pairs"] += 1
        return look_up(*arguments)

    def counted_to_string(*arguments, **more):
        found["strings"] += 1
        return to_string(*arguments, **more)

    monkeypatch.setattr(attribution_utils, "get_aligned_idx", counted_look_up)
    monkeypatch.setattr(HuggingfaceModel, "convert_tokens_to_string", counted_to_string)
    return found


def test_the_work_grows_with_the_text_and_not_with_its_square(engine, counted):
    """With twice as many tokens, the lookups double and conversions hardly grow; Inseq's lookups would quadruple."""
    names, calls = ["Anna", "Ben", "Clara", "David"], []
    for repeats in (2, 4):
        text = " ".join(f"{name} likes tea." for name in names * repeats)
        counted |= {"pairs": 0, "strings": 0}
        output = run(
            engine, LOOKUP, "dummy", input_text=text, generated_text=f"{text} {text}", clean_special_chars=True
        )
        steps = output[0].attr_pos_end - output[0].attr_pos_start
        calls.append((steps, *counted.values()))
    (few, *first), (many, *second) = calls
    assert many > 1.9 * few > 30
    # One lookup for each step, and one conversion for each distinct token.
    assert first[0] <= few + 2
    assert second[0] <= many + 2
    assert second[1] <= first[1] + 2 < few
