"""Aggregation of a result's scores by Inseq's aggregators and by units of text, and the checks of a view's options.

Inseq's `subwords` aggregator leaves out the last piece of a text's last word; here it runs as `spans` over whole words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from inseq.data import FeatureAttributionOutput
from inseq.data.attribution import FeatureAttributionSequenceOutput

from attribution.catalogue import inseq_catalogue
from attribution.catalogue.text_units import UNITS
from attribution.results import inseq_fields
from attribution.results.span_aggregation import aggregate_spans
from attribution.results.unit_aggregation import label_segments, merge_units
from attribution.text.readable_tokens import Note, merge_notes
from attribution_reading.text_units import SEGMENTS
from attribution_schema.view_options import ViewOptions
from problems import InvalidRequest

# Marks that tokenizers put on the pieces of words, for the `subwords` aggregator: byte-level BPE and SentencePiece mark
# the start of a word, WordPiece marks the pieces after it.
_MARKS = ("special_chars", "is_suffix_symbol")
_WORD_STARTS, _WORD_REST = ("Ġ", "Ċ", "▁"), "##"


def check_options(options: ViewOptions) -> None:
    """Raise `InvalidRequest` for a name or argument that Inseq does not know, or options that exclude each other."""
    functions = inseq_catalogue.aggregation_functions()
    known = [*inseq_catalogue.aggregators(), *UNITS, *functions]
    for name in options.aggregators:
        if name not in known:
            raise InvalidRequest(f"There is no aggregator {name!r}. There are: {', '.join(known)}.")
    for function in options.aggregate_fn:
        if function is not None and function not in functions:
            raise InvalidRequest(f"There is no aggregation function {function!r}. There are: {', '.join(functions)}.")
    if any(name in UNITS for name in options.aggregators[:-1]):
        raise InvalidRequest(f"Put one of {', '.join(UNITS)} last, and only one: they merge what the others give.")
    if options.aggregate_fn and len(options.aggregate_fn) != len(options.aggregators):
        raise InvalidRequest("aggregate_fn needs one function for each aggregator, in order.")
    if options.granular and (options.aggregators or options.normalize is not None):
        raise InvalidRequest("granular=true returns the scores as they are: leave out aggregator and normalize.")
    parsed_arguments(options)


def parsed_arguments(options: ViewOptions) -> dict[str, Any]:
    """Return `aggregator_args` with the types that the aggregators declare. Raises `InvalidRequest`."""
    accepted = {
        name: parameter
        for each in options.aggregators
        if each in inseq_catalogue.aggregators()
        for name, parameter in inseq_catalogue.aggregators()[each].parameters.items()
    }
    parsed = {}
    for name, value in options.aggregator_args.items():
        if name not in accepted:
            asked = ", ".join(options.aggregators) or "no aggregator"
            raise InvalidRequest(
                f"aggregator_args: {name!r} is not an argument of {asked}. Accepted: {', '.join(accepted) or 'none'}."
            )
        try:
            parsed[name] = accepted[name].parse(value)
        except ValueError as error:
            raise InvalidRequest(f"aggregator_args.{name}: {error}") from None
    return parsed


def aggregate(output: FeatureAttributionOutput, options: ViewOptions) -> FeatureAttributionOutput:
    """Return the output with aggregated scores; the output itself with `granular`.

    The options have passed `check_options`. Raises `InvalidRequest` where the scores cannot be aggregated this way.
    """
    if options.granular:
        return output
    if "subwords" in options.aggregators and output.info.get("arguments", {}).get("clean_special_chars"):
        raise InvalidRequest(
            "This job's clean_special_chars removed the marks that show where words start, so that subwords cannot be "
            "aggregated. Submit it without clean_special_chars, and ask for decode_tokens."
        )
    arguments = parsed_arguments(options)
    pairs = [
        _aggregate_sequence(sequence, notes, options, arguments)
        for sequence, notes in zip(output.sequence_attributions, inseq_fields.token_notes(output), strict=True)
    ]
    info = output.info | {inseq_fields.NOTES: [merged for _, merged in pairs]}
    return FeatureAttributionOutput([sequence for sequence, _ in pairs], output.step_attributions, info)


def _aggregate_sequence(
    sequence: FeatureAttributionSequenceOutput,
    notes: dict[str, list[Note]],
    options: ViewOptions,
    arguments: dict[str, Any],
) -> tuple[FeatureAttributionSequenceOutput, dict[str, list[Note]]]:
    """Return the aggregated sequence, and the notes of its merged tokens by side."""
    if options.normalize is not None:
        arguments = arguments | {"normalize": options.normalize}
    # One stage at a time: between two stages, Inseq's own pipeline reads the table that the whole process shares.
    for name, function in _stages(sequence, options):
        before = sequence
        if name in UNITS:
            sequence = merge_units(sequence, notes, name, function)
        else:
            sequence = _aggregate_once(sequence, name, function, arguments)
        notes = {
            side: merge_notes(entries, getattr(before, side), getattr(sequence, side))
            for side, entries in notes.items()
        }
        if name == SEGMENTS:
            label_segments(sequence, notes)
    return sequence, notes


def _stages(sequence: FeatureAttributionSequenceOutput, options: ViewOptions) -> Iterable[tuple[str, str | None]]:
    """Return the aggregators in order, each with its function; `None` for the aggregator's own.

    A unit of text alone comes behind the method's own aggregators.
    """
    asked = list(zip(options.aggregators, options.aggregate_fn or (None,) * len(options.aggregators), strict=True))
    if any(name not in UNITS for name in options.aggregators):
        return asked
    default = sequence._aggregator  # noqa: SLF001 - Inseq's own default for the class
    return [*((each, None) for each in ([default] if isinstance(default, str) else default or [])), *asked]


def _aggregate_once(
    sequence: FeatureAttributionSequenceOutput, name: str, function: str | None, arguments: dict[str, Any]
) -> FeatureAttributionSequenceOutput:
    """Return the sequence after one aggregator. Raises `InvalidRequest` where Inseq cannot apply it."""
    inseq_name, own = name, dict(arguments)
    if name == "subwords":
        inseq_name, own = "spans", _word_spans(sequence, own)
    if name == "split" and isinstance(own.get("split_pattern"), str):
        # Escaped, because a regular expression from a client could run for ever.
        own["split_pattern"] = re.escape(own["split_pattern"])
    try:
        own |= {"aggregate_fn": function, "do_post_aggregation_checks": False}
        if inseq_name == "spans":
            aggregated = aggregate_spans(sequence, **own)
        else:
            aggregated = sequence.aggregate(inseq_name, **own)
    except (AssertionError, IndexError, RuntimeError, ValueError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InvalidRequest(f"These scores cannot be aggregated by {name!r}: {reason}") from error
    inseq_fields.set_own_functions(aggregated)
    return aggregated


def _word_spans(sequence: FeatureAttributionSequenceOutput, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of `spans` that merge the pieces of each word, the last word of a text included.

    Raises `InvalidRequest` where no token is marked as a part of a word.
    """
    marks = _word_marks(sequence) | {name: arguments.pop(name) for name in _MARKS if name in arguments}
    if not marks:
        raise InvalidRequest(
            "No token is marked as the start or rest of a word, so that subwords cannot be found. Name the mark with "
            "aggregator_args.special_chars."
        )
    chars, is_suffix = marks["special_chars"], marks.get("is_suffix_symbol", False)
    for side in inseq_fields.SIDES:
        if arguments.pop(f"aggregate_{side}", True):
            tokens = [each.token for each in getattr(sequence, side)]
            starts = [i for i, token in enumerate(tokens) if not i or token.startswith(chars) != is_suffix]
            words = pairwise([*starts, len(tokens)])
            arguments[f"{side}_spans"] = [(first, end) for first, end in words if end - first > 1]
    return arguments


def _word_marks(sequence: FeatureAttributionSequenceOutput) -> dict[str, Any]:
    """Return the word marks that this tokenizer uses; Inseq always assumes SentencePiece's."""
    tokens = [each.token for each in (*sequence.source, *sequence.target)]
    if any(token.startswith(_WORD_REST) for token in tokens):
        return {"special_chars": _WORD_REST, "is_suffix_symbol": True}
    marks = tuple(mark for mark in _WORD_STARTS if any(mark in token for token in tokens))
    return {"special_chars": marks} if marks else {}
