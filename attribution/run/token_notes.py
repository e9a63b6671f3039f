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
        target = readable_tokens.annotate(model.tokenizer, _tokens(text.target))
        _add_contrasts(model, text, target)
        return {"source": source, "target": target}
    target = readable_tokens.annotate(model.tokenizer, _tokens(text.target), *prompt)
    for note in target[: text.source.input_ids.shape[1]]:
        note["prompt"] = True
    _add_contrasts(model, text, target)
    return {"source": target, "target": target}


def _add_contrasts(model: HuggingfaceModel, text: Text, notes: list[Note]) -> None:
    """Add the text of its `contrast` to the note of each target token that has another one."""
    ids = text.target.input_ids[0].tolist()
    others = {position: index for position, index in text.contrast_ids.items() if ids[position] != index}
    texts = {index: readable_tokens.readable_texts(model.tokenizer, [index])[0][0] for index in set(others.values())}
    for position, index in others.items():
        notes[position]["contrast"] = texts[index]


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
        else:
            notes[side] = _of_labels([known[side][place] for place in places], shown)
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
    """The notes of these tokens; a contrast's "that → this" has no id. Needs no tokenizer."""
    return [_of_label(*each) for each in zip(notes, tokens, strict=False)]


def _of_label(note: Note, token: TokenWithId) -> Note:
    if "span" in note:
        return note
    if readable_tokens.is_id(token.id):
        return {name: value for name, value in note.items() if name != "contrast"}
    return _contrast_of(token.token) | note | {"label": True}


def _contrast_of(label: str) -> Note:
    """The contrast's text as its label has it: for a position that the request pairs with none, so that Inseq did."""
    contrast, found, _ = label.partition(readable_tokens.CONTRAST)
    return {"contrast": readable_tokens.without_marks(contrast)} if found else {}


def _tokens(encoding: BatchEncoding) -> list[TokenWithId]:
    return labels(encoding.input_tokens[0], encoding.input_ids[0].tolist())
