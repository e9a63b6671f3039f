"""A result's scores as arrays. Needs NumPy alone, so that a terminal shows them without pandas."""

from __future__ import annotations

import numpy as np

from attribution_client.labels import token_text
from attribution_reading.read_sequence import ReadSequence, ReadToken
from attribution_reading.scored_sequence import SIDES, ScoredSequence, Scores, Tokens
from attribution_schema.result import AttributionResult, SequenceAttribution, Token


def scores_of(sequence: SequenceAttribution, side: str) -> Scores:
    """Return the scores of one side, `[attributed, generated]`, with NaN for null; `[0, 0]` for a side without scores.

    Raises `ValueError` for granular scores, which have further dimensions.
    """
    found = getattr(sequence, f"{side}_attributions") or []
    if any(isinstance(each, list) for row in found[:1] for each in row):
        raise ValueError("These scores are granular: ask for the result without it, or for client.to_frame.")
    return np.array(found, np.float32).reshape(len(found), -1 if found else 0)


def scored_sequence(
    sequence: SequenceAttribution, *, with_scores: bool = True, with_text: bool = False
) -> ScoredSequence:
    """Return a sequence as plain arrays; without `with_scores`, its tokens and step scores only.

    `with_text` adds each token's decoded text. Raises `ValueError` for granular scores.
    """
    sides = SIDES if with_scores else ()
    return ScoredSequence(
        tokens={side: _tokens(getattr(sequence, side), with_text=with_text) for side in SIDES},
        scores={side: scores for side in sides if (scores := scores_of(sequence, side)).size},
        step_scores={name: np.array(values, np.float32) for name, values in sequence.step_scores.items()},
        start=sequence.attr_pos_start,
    )


def read_sequence(sequence: SequenceAttribution) -> ReadSequence:
    """Return a sequence as a reader sees it. Raises `ValueError` for granular scores."""
    return ReadSequence(
        tokens={side: [_read_token(each) for each in getattr(sequence, side)] for side in SIDES},
        scores={side: scores for side in SIDES if (scores := scores_of(sequence, side)).size},
        start=sequence.attr_pos_start,
        end=sequence.attr_pos_end,
    )


def _read_token(token: Token) -> ReadToken:
    return ReadToken(
        text=token_text(token),
        continues=bool(token.continues),
        contrast=token.contrast,
        is_template=bool(token.template or token.special),
        is_prompt=bool(token.prompt),
        is_span=bool(token.span),
        turn=token.turn,
        role=token.role,
    )


def has_text(result: AttributionResult) -> bool:
    """Return whether the result was asked for with `decode_tokens`."""
    return any(
        token.text is not None
        for sequence in result.sequence_attributions
        for token in (*sequence.source, *sequence.target)
    )


def _tokens(tokens: list[Token], *, with_text: bool) -> Tokens:
    return Tokens(
        tokens=[each.token for each in tokens],
        ids=[each.token_id for each in tokens],
        texts=[each.text for each in tokens] if with_text else None,
    )
