"""Inseq's loop over the steps of a text: positions, padding, and the scores of methods that have one step only."""

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
    reason="On encoder-decoder models attr_pos_end attributes one step more and shifts the labels by one.",
    remedy="The target is attributed up to attr_pos_end, and labelled as it is.",
    proof="test_corrections.py::test_attr_pos_end_of_an_encoder_decoder",
)
PAD_INSIDE = declare(
    "pad_tokens_inside_text",
    reason="A pad token inside the text (the end-of-text token of GPT-2) is dropped, and the rows behind it are "
    "mislabelled.",
    remedy="Every token of the text keeps its row and column.",
    proof="test_corrections.py::test_pad_token_inside_the_text",
)
FINAL_STEP_SCORES = declare(
    "final_step_step_scores",
    reason="attention and value_zeroing refuse step scores: they see the sequence once.",
    remedy="A second run without attribution brings the scores of the same steps.",
    proof="test_corrections.py::test_step_scores_of_final_step_methods",
)
GENERATED_IDS = declare(
    "generated_ids",
    reason="Generated ids are decoded to text and encoded again: other tokens than were generated, or, with tokenizers "
    "that prepend BOS, a failure.",
    remedy="The generated ids are attributed.",
    proof="test_corrections.py::test_generated_ids_are_attributed_as_they_are",
)
CONTRAST_POSITIONS = declare(
    "contrast_positions",
    reason="Before attr_pos_end, a contrast is aligned from its right end although the attribution stops earlier.",
    remedy="Tokens of equal position are compared.",
    proof="test_corrections.py::test_contrast_before_attr_pos_end",
)

TWO_CONTRASTS = declare(
    "contrast_of_step_scores",
    reason="Where both the attributed function and step scores have a contrast, the scores get the other's alignment.",
    remedy="The scores have a run of their own.",
    proof="test_corrections.py::test_step_scores_keep_their_own_contrast",
)
DECODER_SCORES = declare(
    "decoder_scores_from_the_start",
    reason="With attr_pos_start, the decoder's own attention or value zeroing is cut to its first positions, whatever "
    "was attributed.",
    remedy="All positions are kept.",
    proof="test_corrections.py::test_decoder_attention_with_attr_pos_start",
)

# Equal to no token, since no tokenizer has an empty one.
_NO_PADDING = ""


def cut(encoding: BatchEncoding, end: int) -> BatchEncoding:
    """The first `end` tokens of a target."""
    return BatchEncoding(
        input_ids=encoding.input_ids[:, :end],
        attention_mask=encoding.attention_mask[:, :end],
        input_tokens=[tokens[:end] for tokens in encoding.input_tokens],
        baseline_ids=None if encoding.baseline_ids is None else encoding.baseline_ids[:, :end],
    )


def restore_tail(output: FeatureAttributionOutput, tail: list[TokenWithId]) -> None:
    """Put back the tokens that `cut` took away: without rows, as Inseq has it on decoder-only models."""
    for sequence in output.sequence_attributions:
        sequence.target = [*sequence.target, *tail]


def restore_decoder_scores(output: FeatureAttributionOutput, step: Any, ledger: Ledger) -> None:
    """Put the decoder's own scores back as the only step of a final-step method had them: [prefix, prefix, ...]."""
    (sequence,) = output.sequence_attributions
    for name, scores in (step.sequence_scores or {}).items():
        if name.startswith("decoder") and ledger.apply(DECODER_SCORES):
            sequence.sequence_scores[name] = scores[0]


def name_tokens(output: FeatureAttributionOutput) -> None:
    """Give every token a string: ids behind the tokenizer's last have none, and cleaning nests a lone `▁` in itself."""

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
    """Whether Inseq would drop a token of the text. At the ends it is right: a start token stays, a last EOS goes."""
    sources = source.input_tokens[0] if model.is_encoder_decoder else []
    return model.pad_token in sources or model.pad_token in target.input_tokens[0][1:-1]


@contextmanager
def nothing_is_padding(model: HuggingfaceModel) -> Iterator[None]:
    """One text at a time needs no padding: no token is taken for it."""
    pad, model.pad_token = model.pad_token, _NO_PADDING
    try:
        yield
    finally:
        model.pad_token = pad


def merge_step_scores(output: FeatureAttributionOutput, scores: FeatureAttributionOutput) -> None:
    """Take the step scores of a second run over the same steps."""
    for attribution, scored in zip(output.sequence_attributions, scores.sequence_attributions, strict=True):
        attribution.step_scores = scored.step_scores
    for step, scored_step in zip(output.step_attributions or [], scores.step_attributions or [], strict=True):
        step.step_scores = scored_step.step_scores
