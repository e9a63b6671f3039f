"""Inseq's sequences as plain arrays, as `attribution_reading` takes them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from inseq.data import FeatureAttributionOutput
from inseq.data.attribution import FeatureAttributionSequenceOutput
from inseq.utils.typing import TokenWithId

from attribution.results.inseq_fields import token_id, token_notes
from attribution.text.readable_tokens import Note
from attribution_reading.read_sequence import ReadSequence, ReadToken
from attribution_reading.scored_sequence import SIDES, ScoredSequence, Scores, Tokens


def scored_sequences(output: FeatureAttributionOutput, *, with_text: bool) -> list[ScoredSequence]:
    """Return the sequences of an output; `with_text` adds each token's decoded text."""
    return [
        scored_sequence(sequence, notes, with_text=with_text)
        for sequence, notes in zip(output.sequence_attributions, token_notes(output), strict=True)
    ]


def scored_sequence(
    sequence: FeatureAttributionSequenceOutput, notes: dict[str, list[Note]] | None = None, *, with_text: bool = False
) -> ScoredSequence:
    """Return one sequence with float32 scores; `notes` are those of its tokens, by side."""
    found = {side: getattr(sequence, f"{side}_attributions") for side in SIDES}
    return ScoredSequence(
        tokens={
            side: _tokens(getattr(sequence, side), (notes or {}).get(side, []), with_text=with_text) for side in SIDES
        },
        scores={side: numbers(tensor) for side, tensor in found.items() if tensor is not None},
        step_scores={name: numbers(tensor) for name, tensor in (sequence.step_scores or {}).items()},
        start=sequence.attr_pos_start,
        dimensions={
            side: _dimension_names(sequence, side, tensor.ndim) for side, tensor in found.items() if tensor is not None
        },
    )


def read_sequence(sequence: FeatureAttributionSequenceOutput, notes: dict[str, list[Note]]) -> ReadSequence:
    """Return one sequence as a reader sees it; `notes` are those of its tokens, by side."""
    found = {side: getattr(sequence, f"{side}_attributions") for side in SIDES}
    tokens = {side: (getattr(sequence, side), notes.get(side) or [{}] * len(getattr(sequence, side))) for side in SIDES}
    return ReadSequence(
        tokens={side: [_read_token(*each) for each in zip(*pair, strict=True)] for side, pair in tokens.items()},
        scores={side: numbers(tensor) for side, tensor in found.items() if tensor is not None},
        start=sequence.attr_pos_start,
        end=sequence.attr_pos_end,
    )


def _read_token(token: TokenWithId, note: Note) -> ReadToken:
    return ReadToken(
        text=str(note.get("text", token.token)),
        continues="continues" in note,
        contrast=note.get("contrast"),
        is_template=bool(note.get("template") or note.get("special")),
        is_prompt="prompt" in note,
        is_span="span" in note,
        turn=note.get("turn"),
        role=note.get("role"),
    )


def numbers(tensor: torch.Tensor) -> Scores:
    """Return a tensor's values as a float32 array of the same shape."""
    return tensor.detach().float().numpy()


def _tokens(tokens: Sequence[TokenWithId], notes: Sequence[Note], *, with_text: bool) -> Tokens:
    return Tokens(
        tokens=[each.token for each in tokens],
        ids=[token_id(each) for each in tokens],
        texts=([note.get("text") for note in notes] or [None] * len(tokens)) if with_text else None,
    )


def _dimension_names(sequence: FeatureAttributionSequenceOutput, side: str, ndim: int) -> list[str]:
    """Return Inseq's names of a granular tensor's further dimensions: `embedding_dimension`, `attention_layer`, ..."""
    names = (sequence._attribution_dim_names or {}).get(f"{side}_attributions", {})  # noqa: SLF001
    return [names.get(axis, f"dimension {axis}").lower().replace(" ", "_") for axis in range(2, ndim)]
