"""Merges the tokens of a result into units of text, as the server does it. Needs the extra `plots`."""

from __future__ import annotations

from typing import Any

from attribution_client.scores import scores_of
from attribution_reading.scored_sequence import SIDES, not_yet_generated
from attribution_reading.text_units import SEGMENTS, UNITS, Span, segment_label, unit_spans
from attribution_reading.unit_scores import by_blocks
from attribution_schema.result import SequenceAttribution, Token


def merged(sequence: SequenceAttribution, unit: str) -> SequenceAttribution:
    """Return the sequence with one token for each `unit`: words, lines, sentences, paragraphs, messages or segments.

    The score of two units is the sum over their tokens. Step scores are left out: ask the server for
    `aggregator="words"` to have them. Raises `ValueError` for another unit, for granular scores, for a result
    without readable texts, and for segments of a job without any.
    """
    if unit not in {*UNITS, SEGMENTS}:
        raise ValueError(f"There is no unit {unit!r}. There are: {', '.join((*UNITS, SEGMENTS))}.")
    if unit == SEGMENTS and all(token.segment is None for token in (*sequence.source, *sequence.target)):
        raise ValueError("This job has no segments: submit it with segments.")
    if any(token.text is None for token in (*sequence.source, *sequence.target)):
        raise ValueError("This result is without readable texts: ask for it with decode_tokens=True.")
    start, end = sequence.attr_pos_start, sequence.attr_pos_end
    spans = {
        "source": unit_spans([_note(each) for each in sequence.source], unit),
        "target": unit_spans([_note(each) for each in sequence.target], unit, borders=(start, end)),
    }
    columns = [(first - start, last - start) for first, last in spans["target"] if start <= first < end]
    first = sum(1 for span in spans["target"] if span[0] < start)
    changes: dict[str, Any] = {
        side: [_joined(getattr(sequence, side)[slice(*span)], unit) for span in spans[side]] for side in SIDES
    }
    for side in SIDES:
        if (scores := scores_of(sequence, side)).size:
            rows: list[Span] = [each for each in spans[side] if each[1] <= len(scores)]
            later = not_yet_generated(scores, side, start)
            changes[f"{side}_attributions"] = by_blocks(scores, later, rows, columns, "sum").tolist()
    changes |= {"step_scores": {}, "attr_pos_start": first, "attr_pos_end": first + len(columns)}
    return sequence.model_copy(update=changes)


def _note(token: Token) -> dict[str, Any]:
    is_label = token.span or token.contrast is not None  # no token of the vocabulary
    return token.model_dump(exclude_none=True) | ({"label": True} if is_label else {})


def _joined(tokens: list[Token], unit: str) -> Token:
    text = "".join(each.text or "" for each in tokens if not each.continues)
    if unit == SEGMENTS and (name := tokens[0].segment):
        changes = {"token": name, "text": segment_label(name, text)}
    elif len(tokens) == 1:
        return tokens[0]
    else:
        changes = {"token": "".join(each.token for each in tokens), "text": text}
    return tokens[0].model_copy(update={"token_id": -1, "continues": None, **changes})
