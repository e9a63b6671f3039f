"""The segments of an input on its tokens, and what a perturbation method masks: its features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count, pairwise
from typing import Any, Literal

from inseq.models import HuggingfaceModel

from attribution.catalogue import masked_methods
from attribution.text import readable_tokens
from attribution.text.encoding import Prompt
from attribution.text.readable_tokens import Note
from attribution.text.spans import SelectableText, shortened
from attribution.text.step_labels import labels
from attribution_reading.text_units import unit_spans
from attribution_schema.spans import MAX_SEGMENTS, Segment
from models import AttributionRequest
from problems import InputRejected

REST = ""  # the segment, in its note, of a token of the input that belongs to none


@dataclass(frozen=True)
class InputSegment:
    """A part of the input that is one feature: its tokens [start, end)."""

    name: str
    start: int
    end: int
    text: str
    is_pinned: bool = False  # never masked

    def describe(self, side: str) -> dict[str, Any]:
        """For a result's `info`; `side` is that of the input's tokens."""
        return {"name": self.name, "side": side, "start": self.start, "end": self.end, "pinned": self.is_pinned}


@dataclass(frozen=True)
class Features:
    """What a perturbation method masks."""

    kind: Literal["tokens", "segments"]
    positions: list[list[int]]  # the tokens of each feature
    names: list[str] | None = None  # of segments


@dataclass(frozen=True)
class InputParts:
    """The parts of an input that a request names, and those that its method masks."""

    segments: list[InputSegment] | None = None
    features: Features | None = None  # None where no method of the request masks parts

    def describe(self, *, is_source: bool) -> list[dict[str, Any]]:
        """The segments for a result's `info`. `is_source`: the input is a side of its own, of an encoder-decoder."""
        return [each.describe("source" if is_source else "target") for each in self.segments or []]


def parts_of(request: AttributionRequest, prompt: Prompt, notes: Sequence[Note], warnings: list[str]) -> InputParts:
    """The parts of an input, whose tokens' `notes` are marked with their segments. Adds to `warnings`.

    Raises `InputRejected` as `segments_of` and `features_of` do.
    """
    segments = segments_of(request, prompt, notes, warnings)
    if segments is not None:
        mark_tokens(notes, prompt.encoding.input_ids.shape[1], segments)
    masks = masked_methods.masks_any(request)
    return InputParts(segments, features_of(prompt, notes, segments) if masks else None)


def prompt_notes(model: HuggingfaceModel, prompt: Prompt) -> list[Note]:
    """The notes of a prompt's tokens, see `readable_tokens.annotate`."""
    encoding = prompt.encoding
    tokens = labels(encoding.input_tokens[0], encoding.input_ids[0].tolist())
    return readable_tokens.annotate(model.tokenizer, tokens, prompt.from_template, prompt.turns)


def segments_of(
    request: AttributionRequest, prompt: Prompt, notes: Sequence[Note], warnings: list[str]
) -> list[InputSegment] | None:
    """The request's segments of an input, in the order of the text; None where it asks for none. Adds to `warnings`.

    `notes` begin with those of the prompt's tokens. Raises `InputRejected` for a selection that finds nothing, for
    segments that overlap, and for more than `MAX_SEGMENTS`.
    """
    if request.segments is None:
        return None
    of_prompt = notes[: prompt.encoding.input_ids.shape[1]]
    if isinstance(request.segments, str):
        return _with_own_names(_units(of_prompt, request.segments))
    text = SelectableText(of_prompt, 0, len(of_prompt), "the input", origin=_origin(of_prompt, prompt))
    found = []
    for index, each in enumerate(request.segments):
        found.append((_found(text, each, f"segments[{index}]", warnings), index))
    found.sort(key=lambda pair: (pair[0].start, pair[1]))
    for (before, one), (after, other) in pairwise(found):
        if after.start < before.end:
            raise InputRejected(
                f"segments[{one}] ({before.name!r}) and segments[{other}] ({after.name!r}) overlap: both have the "
                f"token at position {after.start}. A token belongs to one segment."
            )
    return _with_own_names([each for each, _ in found])


def features_of(prompt: Prompt, notes: Sequence[Note], segments: list[InputSegment] | None) -> Features:
    """What is masked: the segments that are not pinned, or else the tokens of the input.

    Special tokens and those of a chat template are never masked, unless a segment has no others. Raises
    `InputRejected` where nothing is left.
    """
    if segments is not None:
        kept = [each for each in segments if not each.is_pinned]
        features = Features("segments", [_masked(each, notes) for each in kept], [each.name for each in kept])
    else:
        own = enumerate(notes[: prompt.encoding.input_ids.shape[1]])
        features = Features("tokens", [[at] for at, note in own if _is_written(note)])
    if not features.positions:
        raise InputRejected(
            "Nothing of the input can be masked: "
            + ("every segment is pinned." if segments else "it has special tokens only, and those of a template.")
        )
    return features


def mark_tokens(notes: Sequence[Note], prompt_length: int, segments: list[InputSegment]) -> None:
    """Note in each token of the input the name of its segment, `REST` for none."""
    for note in notes[:prompt_length]:
        note["segment"] = REST
    for each in segments:
        for note in notes[each.start : each.end]:
            note["segment"] = each.name


def _masked(segment: InputSegment, notes: Sequence[Note]) -> list[int]:
    tokens = list(range(segment.start, segment.end))
    return [at for at in tokens if _is_written(notes[at])] or tokens


def _found(text: SelectableText, segment: Segment, where: str, warnings: list[str]) -> InputSegment:
    span = text.find(segment, where, warnings, without_blanks=True)
    return InputSegment(span.name, span.start, span.end, span.text, segment.pinned)


def _units(notes: Sequence[Note], unit: str) -> list[InputSegment]:
    """The units of the input that have words; special tokens and those of a template belong to none."""
    found = []
    for start, end in unit_spans(notes, unit):
        text = "".join(str(each["text"]) for each in notes[start:end] if "continues" not in each)
        if text.strip() and all(_is_written(each) for each in notes[start:end]):
            first = notes[start]
            is_message = unit == "messages" and "role" in first
            name = f"{first['role']} {first['turn']}" if is_message else shortened(text.strip())
            found.append(InputSegment(name, start, end, text))
    if not found:
        raise InputRejected(f"The input has no {unit}.")
    if len(found) > MAX_SEGMENTS:
        raise InputRejected(f"The input has {len(found)} {unit}, and at most {MAX_SEGMENTS} can be segments.")
    return found


def _with_own_names(segments: list[InputSegment]) -> list[InputSegment]:
    """The segments with a number behind a name that an earlier one has: a text may occur twice."""
    taken: set[str] = set()
    found = []
    for each in segments:
        names = (each.name if number == 1 else f"{each.name} ({number})" for number in count(1))
        name = next(name for name in names if name not in taken)
        taken.add(name)
        found.append(replace(each, name=name))
    return found


def _is_written(note: Note) -> bool:
    """Whether a token is of the words that somebody wrote."""
    return not note.get("special") and not note.get("template")


def _origin(notes: Sequence[Note], prompt: Prompt) -> int:
    """The offset in the tokens' text of the first character of the input: behind special tokens that the tokenizer puts
    before it, and the space that SentencePiece does. Those of a conversation are of its rendered text.
    """
    text = "".join(str(each["text"]) for each in notes if "continues" not in each)
    return max(0, text.find(prompt.text))
