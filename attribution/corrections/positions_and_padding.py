"""Corrections of Inseq's loop over steps: positions, padding, contrasts, and step scores of one-step methods."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from inseq.data import BatchEncoding, FeatureAttributionOutput
from inseq.models import HuggingfaceModel
from inseq.utils.typing import TokenWithId

from attribution.corrections.registry import Ledger, declare

ATTR_POS_END = declare(
    "attr_pos_end_encoder_decoder",
    reason="On encoder-decoder models attr_pos_end attributes one step too many and shifts the labels by one.",
    remedy="The target is attributed up to attr_pos_end, with its own labels.",
    proof="test_corrections.py::test_attr_pos_end_of_an_encoder_decoder",
)
PAD_INSIDE = declare(
    "pad_tokens_inside_text",
    reason="A pad token inside the text (GPT-2's end-of-text token) is dropped, and the rows after it are mislabelled.",
    remedy="Every token of the text keeps its row and column.",
    proof="test_corrections.py::test_pad_token_inside_the_text",
)
FINAL_STEP_SCORES = declare(
    "final_step_step_scores",
    reason="attention and value_zeroing refuse step scores, because they process the whole sequence in one step.",
    remedy="A second run without attribution computes the scores of the same steps.",
    proof="test_corrections.py::test_step_scores_of_final_step_methods",
)
GENERATED_IDS = declare(
    "generated_ids",
    reason="Generated ids are decoded to text and encoded again: the attributed tokens may differ from the generated "
    "ones, and with tokenizers that prepend BOS the call fails.",
    remedy="The generated ids are attributed.",
    proof="test_corrections.py::test_generated_ids_are_attributed_as_they_are",
)
CONTRAST_POSITIONS = declare(
    "contrast_positions",
    reason="With attr_pos_end, a contrast is aligned from its right end although the attribution stops earlier.",
    remedy="Tokens at equal positions are compared.",
    proof="test_corrections.py::test_contrast_before_attr_pos_end",
)

TWO_CONTRASTS = declare(
    "contrast_of_step_scores",
    reason="If both the attributed function and the step scores have a contrast, the step scores are computed with the "
    "alignment of the attributed function's contrast.",
    remedy="The step scores are computed in a separate run.",
    proof="test_corrections.py::test_step_scores_keep_their_own_contrast",
)
DECODER_SCORES = declare(
    "decoder_scores_from_the_start",
    reason="With attr_pos_start, the scores of the decoder's self-attention (attention, value_zeroing) are cut to its "
    "first positions, although later ones were attributed.",
    remedy="All positions are kept.",
    proof="test_corrections.py::test_decoder_attention_with_attr_pos_start",
)

# Equals no token: no tokenizer has an empty one.
_NO_PADDING = ""


def truncate(encoding: BatchEncoding, end: int) -> BatchEncoding:
    """The first `end` tokens of an encoded target."""
    return BatchEncoding(
        input_ids=encoding.input_ids[:, :end],
        attention_mask=encoding.attention_mask[:, :end],
        input_tokens=[tokens[:end] for tokens in encoding.input_tokens],
        baseline_ids=None if encoding.baseline_ids is None else encoding.baseline_ids[:, :end],
    )


def restore_tail(output: FeatureAttributionOutput, tail: list[TokenWithId]) -> None:
    """Append the tokens that `truncate` removed, as labels without rows, as Inseq's decoder-only outputs have them."""
    for sequence in output.sequence_attributions:
        sequence.target = [*sequence.target, *tail]


def restore_decoder_scores(output: FeatureAttributionOutput, step: Any, ledger: Ledger) -> None:
    """Replace the decoder's self-attention scores by those of the method's only step: [prefix, prefix, ...]."""
    (sequence,) = output.sequence_attributions
    for name, scores in (step.sequence_scores or {}).items():
        if name.startswith("decoder") and ledger.apply(DECODER_SCORES):
            sequence.sequence_scores[name] = scores[0]


def name_tokens(output: FeatureAttributionOutput) -> None:
    """Give every token a string: ids beyond the tokenizer's last have None, and cleaning nests a lone `▁` in itself."""

    def named(tokens: Any) -> Any:
        if isinstance(tokens, TokenWithId):
            token = tokens.token
            while isinstance(token, TokenWithId):
                token = token.token
            return TokenWithId(f"<{tokens.id}>" if token is None else token, tokens.id)
        return None if tokens is None else [named(each) for each in tokens]

    for each in (*output.sequence_attributions, *(output.step_attributions or [])):
        for name in ("source", "target", "prefix"):
            if hasattr(each, name):
                setattr(each, name, named(getattr(each, name)))


def has_pad_inside(model: HuggingfaceModel, source: BatchEncoding, target: BatchEncoding) -> bool:
    """Whether Inseq would drop a token inside the text; at its ends Inseq is right (it drops a final EOS)."""
    sources = source.input_tokens[0] if model.is_encoder_decoder else []
    return model.pad_token in sources or model.pad_token in target.input_tokens[0][1:-1]


def begins_with_pad(model: HuggingfaceModel, target: BatchEncoding) -> bool:
    """Whether a decoder-only model's text begins with its pad token, which Inseq keeps.

    A decoder's start token is looked at when the model is loaded.
    """
    return not model.is_encoder_decoder and bool(target.input_tokens[0][0] == model.pad_token)


@contextmanager
def nothing_is_padding(model: HuggingfaceModel) -> Iterator[None]:
    """Set a pad token that equals no token within the block: a single text needs no padding."""
    pad, model.pad_token = model.pad_token, _NO_PADDING
    try:
        yield
    finally:
        model.pad_token = pad


def merge_step_scores(output: FeatureAttributionOutput, scores: FeatureAttributionOutput) -> None:
    """Copy the step scores of a second run over the same steps into `output`."""
    for attribution, scored in zip(output.sequence_attributions, scores.sequence_attributions, strict=True):
        attribution.step_scores = scored.step_scores
    for step, scored_step in zip(output.step_attributions or [], scores.step_attributions or [], strict=True):
        step.step_scores = scored_step.step_scores
