"""Notes on the tokens of a text and of its result: their readable text, and which of them a chat template added."""

from __future__ import annotations

from collections.abc import Sequence

from inseq.data import BatchEncoding
from inseq.data.attribution import FeatureAttributionSequenceOutput
from inseq.models import HuggingfaceModel
from inseq.utils.typing import TokenWithId

from attribution.single_pass import span_output
from attribution.text import readable_tokens
from attribution.text.encoding import Text
from attribution.text.readable_tokens import Note
from attribution.text.spans import TokenSpan
from attribution.text.step_labels import labels

SideNotes = dict[str, list[Note]]  # for "source" and "target": one note for each token, see `readable_tokens.annotate`


def of_text(model: HuggingfaceModel, text: Text) -> SideNotes:
    """The notes of a text's tokens. A decoder-only model's source is the beginning of its target: the same notes."""
    prompt = (text.prompt.from_template, text.prompt.turns)
    if model.is_encoder_decoder:
        source = readable_tokens.annotate(model.tokenizer, _tokens(text.source), *prompt)
        return {"source": source, "target": readable_tokens.annotate(model.tokenizer, _tokens(text.target))}
    target = readable_tokens.annotate(model.tokenizer, _tokens(text.target), *prompt)
    for note in target[: text.source.input_ids.shape[1]]:
        note["prompt"] = True
    return {"source": target, "target": target}


def with_spans(known: SideNotes, spans: Sequence[TokenSpan]) -> SideNotes:
    """The notes of a text, and of its spans behind them."""
    of_spans: list[Note] = [{"text": each.name, "label": True, "span": True} for each in spans]
    return known | {"target": [*known["target"], *of_spans]}


def of_result(
    model: HuggingfaceModel, text: Text, known: SideNotes, sequence: FeatureAttributionSequenceOutput
) -> SideNotes:
    """The notes of a result's tokens: those `known` of its text, where the tokens are the text's."""
    target = text.target.input_ids[0].tolist() + [span_output.NO_ID] * len(text.spans)
    source = text.source.input_ids[0].tolist() if model.is_encoder_decoder else target
    notes = {}
    for side, ids in {"source": source, "target": target}.items():
        shown = getattr(sequence, side)
        places = _places_of(shown, ids)
        if places is None:
            notes[side] = readable_tokens.annotate(model.tokenizer, shown)
            continue
        notes[side] = [known[side][place] for place in places]
        labelled = [at for at, each in enumerate(shown) if not readable_tokens.is_id(each.id)]
        found = readable_tokens.annotate(model.tokenizer, [shown[at] for at in labelled])
        for at, label in zip(labelled, found, strict=True):
            if "span" not in notes[side][at]:  # a contrast's, in the place of the text's own token
                notes[side][at] = notes[side][at] | {
                    name: label[name] for name in ("label", "contrast") if name in label
                }
    return notes


def _places_of(shown: Sequence[TokenWithId], ids: Sequence[int]) -> list[int] | None:
    """The positions in a text, whose tokens are `ids`, of a result's tokens; None if they are not the text's.

    A label without an id stands for any token, and without corrections Inseq may have dropped tokens of the prompt.
    """
    places, place = [], 0
    for each in shown:
        while readable_tokens.is_id(each.id) and place < len(ids) and ids[place] != each.id:
            place += 1
        if place == len(ids):
            return None
        places.append(place)
        place += 1
    return places


def of_partial_result(known: SideNotes, sequence: FeatureAttributionSequenceOutput) -> SideNotes:
    """The notes of a partial result's tokens. Needs no tokenizer, which another thread may be using."""
    return {side: _of_labels(notes, getattr(sequence, side)) for side, notes in known.items()}


def _of_labels(notes: list[Note], tokens: list[TokenWithId]) -> list[Note]:
    """The notes of these tokens; a contrast's "that → this" has no id."""
    return [
        note if readable_tokens.is_id(token.id) else note | {"label": True} | _contrast_of(token.token)
        for note, token in zip(notes, tokens, strict=False)
    ]


def _contrast_of(label: str) -> Note:
    contrast, found, _ = label.partition(readable_tokens.CONTRAST)
    return {"contrast": readable_tokens.without_marks(contrast)} if found else {}


def _tokens(encoding: BatchEncoding) -> list[TokenWithId]:
    return labels(encoding.input_tokens[0], encoding.input_ids[0].tolist())
