"""`FeatureAttributionOutput` <-> stored form -> views.

The stored form keeps what Inseq's own file loses (`_num_dimensions`, step attributions), and is safetensors compressed
with zstd. Views are made from it on demand; only the default JSON view is stored beside it. Knows nothing of HTTP.
"""

from __future__ import annotations

import copy
import gzip
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise, repeat
from typing import Any, Literal

import inseq.data.attribution as inseq_classes
import orjson
import torch
import zstandard
from inseq.data import FeatureAttributionOutput
from inseq.data.aggregation_functions import DEFAULT_ATTRIBUTION_AGGREGATE_DICT
from inseq.data.attribution import (
    FeatureAttributionSequenceOutput,
    FeatureAttributionStepOutput,
    GranularFeatureAttributionSequenceOutput,
)
from inseq.utils.serialization import json_advanced_dumps
from inseq.utils.typing import TokenWithId
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from attribution.catalogue import inseq_catalogue
from attribution.text.readable_tokens import Note, merge_notes
from problems import InvalidRequest

NOTES = "tokens"  # where `info` keeps what is known of tokens, see `attribution.text.readable_tokens`
RAW_CODEC = "safetensors+zstd"
JSON_CODEC = "json+gzip"

_TENSOR_FIELDS = ("source_attributions", "target_attributions")
_TENSOR_DICTS = ("step_scores", "sequence_scores")
_TOKEN_FIELDS = ("source", "target", "prefix")
# Inseq writes into this process-wide table whenever an output is made, so that one method's default would become
# another's. Every aggregation here starts from this copy instead, taken before any output exists.
_AGGREGATE_FUNCTIONS = copy.deepcopy(DEFAULT_ATTRIBUTION_AGGREGATE_DICT)
# Marks that tokenizers put on the pieces of words, for the `subwords` aggregator: byte-level BPE's and SentencePiece's
# start a word, WordPiece's continues one.
_MARKS = ("special_chars", "is_suffix_symbol")
_WORD_STARTS, _WORD_REST = ("Ġ", "Ċ", "▁"), "##"


# Stored form


def encode(output: FeatureAttributionOutput) -> bytes:
    """The whole output as bytes: tensors as they are, the rest as JSON in the safetensors header."""
    tensors: dict[str, torch.Tensor] = {}
    header = {
        "info": output.info,
        "sequences": [_pack(each, f"sequence.{i}", tensors) for i, each in enumerate(output.sequence_attributions)],
        "steps": None
        if output.step_attributions is None
        else [_pack(each, f"step.{i}", tensors) for i, each in enumerate(output.step_attributions)],
    }
    raw = save_tensors(tensors, metadata={"output": json.dumps(header)})
    tensors.clear()  # a long text's scores are gigabytes
    return zstandard.ZstdCompressor(level=3).compress(raw)


def decode(content: bytes) -> FeatureAttributionOutput:
    """The output that `encode` was given."""
    raw = zstandard.ZstdDecompressor().decompress(content)
    tensors = load_tensors(raw)
    header_size = int.from_bytes(raw[:8], "little")
    header = json.loads(json.loads(raw[8 : 8 + header_size])["__metadata__"]["output"])
    steps = header["steps"]
    return FeatureAttributionOutput(
        sequence_attributions=[_unpack(each, tensors) for each in header["sequences"]],
        step_attributions=None if steps is None else [_unpack(each, tensors) for each in steps],
        info=header["info"],
    )


def _pack(
    part: FeatureAttributionSequenceOutput | FeatureAttributionStepOutput,
    prefix: str,
    tensors: dict[str, torch.Tensor],
) -> dict[str, Any]:
    entry: dict[str, Any] = {"class": type(part).__name__, "num_dimensions": part._num_dimensions, "tensors": {}}  # noqa: SLF001

    def keep(name: str, tensor: torch.Tensor) -> str:
        key, plain = f"{prefix}.{name}", tensor.detach().cpu().contiguous()
        # A copy of what is a part of another tensor: safetensors refuses views that share memory.
        is_whole = plain.untyped_storage().nbytes() == plain.nbytes
        is_shared = any(plain.data_ptr() == each.data_ptr() for each in tensors.values())
        tensors[key] = plain if is_whole and not is_shared else plain.clone()
        return key

    for name in _TENSOR_FIELDS:
        if (tensor := getattr(part, name)) is not None:
            entry["tensors"][name] = keep(name, tensor)
    for name in _TENSOR_DICTS:
        entry[name] = {score: keep(f"{name}.{score}", tensor) for score, tensor in (getattr(part, name) or {}).items()}
    for name in _TOKEN_FIELDS:
        if hasattr(part, name):
            entry[name] = _plain_tokens(getattr(part, name))
    for name in ("attr_pos_start", "attr_pos_end"):
        if hasattr(part, name):
            entry[name] = getattr(part, name)
    return entry


def _unpack(entry: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Any:
    cls = getattr(inseq_classes, entry["class"])
    fields: dict[str, Any] = {name: tensors[key] for name, key in entry["tensors"].items()}
    for name in _TENSOR_DICTS:
        fields[name] = {score: tensors[key] for score, key in entry[name].items()}
    for name in _TOKEN_FIELDS:
        if name in entry:
            fields[name] = _rich_tokens(entry[name])
    for name in ("attr_pos_start", "attr_pos_end"):
        if name in entry:
            fields[name] = entry[name]
    part = cls(**fields, _num_dimensions=entry["num_dimensions"])
    if isinstance(part, FeatureAttributionSequenceOutput):
        _own_functions(part)
    return part


def _plain_tokens(tokens: Any) -> Any:
    if isinstance(tokens, TokenWithId):
        # A contrastive step's "id" is a token in Inseq; a result has numbers only.
        return [tokens.token, tokens.id if isinstance(tokens.id, int) else -1]
    return None if tokens is None else [_plain_tokens(each) for each in tokens]


def _rich_tokens(tokens: Any) -> Any:
    if tokens is None:
        return None
    if tokens and isinstance(tokens[0], str):
        return TokenWithId(*tokens)
    return [_rich_tokens(each) for each in tokens]


# Aggregation


@dataclass(frozen=True)
class ViewOptions:
    """How scores are aggregated: Inseq's aggregators in order, each with its function; empty means Inseq's default."""

    aggregators: tuple[str, ...] = ()
    aggregate_fn: tuple[str | None, ...] = ()
    aggregator_args: dict[str, Any] = field(default_factory=dict)
    normalize: bool | None = None
    granular: bool = False
    decode_tokens: bool = False  # each token as people read it, beside the raw one
    table: Literal["attributions", "step_scores"] = "attributions"  # of the csv and parquet views
    style: Literal["heatmap", "inseq"] = "heatmap"  # of the html view

    @property
    def is_default(self) -> bool:
        return self == ViewOptions()

    def check(self) -> None:
        """Raise `InvalidRequest` for names that Inseq does not know."""
        known = [*inseq_catalogue.aggregators(), *inseq_catalogue.aggregation_functions()]
        for name in self.aggregators:
            if name not in known:
                raise InvalidRequest(f"There is no aggregator {name!r}. There are: {', '.join(known)}.")
        for function in self.aggregate_fn:
            if function is not None and function not in inseq_catalogue.aggregation_functions():
                raise InvalidRequest(
                    f"There is no aggregation function {function!r}. There are: "
                    f"{', '.join(inseq_catalogue.aggregation_functions())}."
                )
        if self.aggregate_fn and len(self.aggregate_fn) != len(self.aggregators):
            raise InvalidRequest("aggregate_fn needs one function for each aggregator, in order.")
        if self.granular and (self.aggregators or self.normalize is not None):
            raise InvalidRequest("granular=true returns the scores as they are: leave out aggregator and normalize.")
        self.parsed_args()

    def parsed_args(self) -> dict[str, Any]:
        accepted = {
            name: parameter
            for each in self.aggregators
            if each in inseq_catalogue.aggregators()
            for name, parameter in inseq_catalogue.aggregators()[each].parameters.items()
        }
        parsed = {}
        for name, value in self.aggregator_args.items():
            if name not in accepted:
                asked = ", ".join(self.aggregators) or "no aggregator"
                raise InvalidRequest(
                    f"aggregator_args: {name!r} is not an argument of {asked}. "
                    f"Accepted: {', '.join(accepted) or 'none'}."
                )
            try:
                parsed[name] = accepted[name].parse(value)
            except ValueError as error:
                raise InvalidRequest(f"aggregator_args.{name}: {error}") from None
        return parsed


def aggregate(output: FeatureAttributionOutput, options: ViewOptions) -> FeatureAttributionOutput:
    """The output with its scores aggregated. Raises `InvalidRequest` where they cannot be in the way asked."""
    if options.granular:
        return output
    options.check()
    if "subwords" in options.aggregators and output.info.get("arguments", {}).get("clean_special_chars"):
        raise InvalidRequest(
            "This job's clean_special_chars took away the marks that tell the pieces of words: there are no subwords "
            "to aggregate. Submit it without, and ask for decode_tokens."
        )
    notes = output.info.get(NOTES) or [{}] * len(output.sequence_attributions)
    pairs = [_aggregate_sequence(*each, options) for each in zip(output.sequence_attributions, notes, strict=True)]
    info = output.info | {NOTES: [merged for _, merged in pairs]}
    return FeatureAttributionOutput([sequence for sequence, _ in pairs], output.step_attributions, info)


def _aggregate_sequence(
    sequence: FeatureAttributionSequenceOutput, notes: dict[str, list[Note]], options: ViewOptions
) -> tuple[FeatureAttributionSequenceOutput, dict[str, list[Note]]]:
    """The sequence aggregated, and the notes of its tokens as they apply then."""
    stages: Iterable[tuple[str, str | None]]
    if options.aggregators:
        functions = options.aggregate_fn or (None,) * len(options.aggregators)
        stages = zip(options.aggregators, functions, strict=True)
    else:
        default = sequence._aggregator  # noqa: SLF001 - Inseq's own default for the class
        stages = [(each, None) for each in ([default] if isinstance(default, str) else default or [])]
    arguments = options.parsed_args()
    if options.normalize is not None:
        arguments["normalize"] = options.normalize
    # One stage at a time: Inseq's own pipeline reads its process-wide table of functions between two of them.
    for name, function in stages:
        before, own, asked = sequence, dict(arguments), name
        if name == "subwords":
            name, own = "spans", _word_spans(sequence, own)  # noqa: PLW2901
        if name == "split" and isinstance(own.get("split_pattern"), str):
            # Taken literally: a client's regular expression could keep the server busy for ever.
            own["split_pattern"] = re.escape(own["split_pattern"])
        try:
            sequence = sequence.aggregate(name, aggregate_fn=function, do_post_aggregation_checks=False, **own)
        except (AssertionError, IndexError, RuntimeError, ValueError, TypeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InvalidRequest(f"These scores cannot be aggregated by {asked!r}: {reason}") from error
        _own_functions(sequence)
        notes = {
            side: merge_notes(entries, getattr(before, side), getattr(sequence, side))
            for side, entries in notes.items()
        }
    return sequence, notes


def with_own_functions(output: FeatureAttributionOutput) -> FeatureAttributionOutput:
    """An output fresh from Inseq, freed from the table of functions that all outputs share."""
    for sequence in output.sequence_attributions:
        _own_functions(sequence)
    return output


def _own_functions(sequence: FeatureAttributionSequenceOutput) -> None:
    """Give a sequence its own table of aggregation functions, as a fresh process would have it."""
    functions: dict[str, Any] = copy.deepcopy(_AGGREGATE_FUNCTIONS)
    if isinstance(sequence, GranularFeatureAttributionSequenceOutput):
        for name in _TENSOR_FIELDS:
            functions[name]["scores"] = "vnorm"
        functions["step_scores"]["spans"]["deltas"] = "absmax"
    sequence._dict_aggregate_fn = functions  # noqa: SLF001


def _word_spans(sequence: FeatureAttributionSequenceOutput, arguments: dict[str, Any]) -> dict[str, Any]:
    """What `spans` must be given to do what `subwords` says: Inseq's own forgets the last piece of a last word.

    Raises `InvalidRequest` where no token is marked as a part of a word.
    """
    marks = _word_marks(sequence) | {name: arguments.pop(name) for name in _MARKS if name in arguments}
    if not marks:
        raise InvalidRequest(
            "No token is marked as the start or rest of a word, so that subwords cannot be told. Name the mark with "
            "aggregator_args.special_chars."
        )
    chars, is_suffix = marks["special_chars"], marks.get("is_suffix_symbol", False)
    for side in ("source", "target"):
        if arguments.pop(f"aggregate_{side}", True):
            tokens = [each.token for each in getattr(sequence, side)]
            starts = [i for i, token in enumerate(tokens) if not i or token.startswith(chars) != is_suffix]
            words = pairwise([*starts, len(tokens)])
            arguments[f"{side}_spans"] = [(first, end) for first, end in words if end - first > 1]
    return arguments


def _word_marks(sequence: FeatureAttributionSequenceOutput) -> dict[str, Any]:
    """The marks of this tokenizer, so that `subwords` works without naming them; Inseq assumes SentencePiece's."""
    tokens = [each.token for each in (*sequence.source, *sequence.target)]
    if any(token.startswith(_WORD_REST) for token in tokens):
        return {"special_chars": _WORD_REST, "is_suffix_symbol": True}
    marks = tuple(mark for mark in _WORD_STARTS if any(mark in token for token in tokens))
    return {"special_chars": marks} if marks else {}


# Views


def json_view(output: FeatureAttributionOutput, options: ViewOptions) -> bytes:
    """The JSON view: nested lists of scores, `null` for NaN (positions that were not yet generated)."""
    aggregated = aggregate(output, options)
    notes = aggregated.info.get(NOTES) or [{}] * len(aggregated.sequence_attributions)
    return orjson.dumps(
        {
            "sequence_attributions": [
                _sequence_json(sequence, each, with_text=options.decode_tokens)
                for sequence, each in zip(aggregated.sequence_attributions, notes, strict=True)
            ],
            "step_attributions": None
            if output.step_attributions is None
            else [_step_json(each) for each in output.step_attributions],
            # Told with the tokens themselves.
            "info": {name: value for name, value in output.info.items() if name != NOTES},
        },
        option=orjson.OPT_SERIALIZE_NUMPY,
    )


def inseq_view(output: FeatureAttributionOutput, options: ViewOptions) -> bytes:
    """A file that `inseq.FeatureAttributionOutput.load` reads back, equal to the original.

    Raw scores unless an aggregator is asked for. Step attributions are left out: Inseq cannot load its own.
    """
    if options.aggregators:
        output = aggregate(output, options)
    copied = FeatureAttributionOutput(copy.deepcopy(output.sequence_attributions), None, output.info)
    dimensions = [each._num_dimensions for each in copied.sequence_attributions]  # noqa: SLF001
    for each in copied.sequence_attributions:
        each._convert_to_safetensors()  # noqa: SLF001 - what Inseq's own `save` does
    document = json.loads(json_advanced_dumps(copied, use_primitives=False, ndarray_compact=True))
    # Inseq's file drops this, and then aggregates a loaded attention or value zeroing output wrongly.
    for entry, dimension in zip(document["attributes"]["sequence_attributions"], dimensions, strict=True):
        entry["attributes"]["_num_dimensions"] = dimension
    return orjson.dumps(document)


def compress(content: bytes) -> bytes:
    """Gzip with a fixed time stamp, so that equal content has equal bytes."""
    return gzip.compress(content, compresslevel=6, mtime=0)


def _sequence_json(
    sequence: FeatureAttributionSequenceOutput, notes: dict[str, list[Note]], *, with_text: bool
) -> dict[str, Any]:
    told = {"template"} | ({"text"} if with_text else set())
    tokens = {
        side: [
            entry | {name: value for name, value in note.items() if name in told}
            for entry, note in zip(_tokens_json(getattr(sequence, side)), notes.get(side) or repeat({}), strict=False)
        ]
        for side in ("source", "target")
    }
    return {
        **tokens,
        "source_attributions": _array(sequence.source_attributions),
        "target_attributions": _array(sequence.target_attributions),
        "step_scores": {name: _array(scores) for name, scores in (sequence.step_scores or {}).items()},
        "sequence_scores": {name: _array(scores) for name, scores in (sequence.sequence_scores or {}).items()},
        "attr_pos_start": sequence.attr_pos_start,
        "attr_pos_end": sequence.attr_pos_end,
    }


def _step_json(step: FeatureAttributionStepOutput) -> dict[str, Any]:
    return {
        **{name: _tokens_json(getattr(step, name)) for name in _TOKEN_FIELDS},
        **{name: _array(getattr(step, name)) for name in _TENSOR_FIELDS},
        **{name: {k: _array(v) for k, v in (getattr(step, name) or {}).items()} for name in _TENSOR_DICTS},
    }


def _tokens_json(tokens: Any) -> Any:
    if isinstance(tokens, TokenWithId):
        return {"token": tokens.token, "token_id": tokens.id if isinstance(tokens.id, int) else -1}
    return None if tokens is None else [_tokens_json(each) for each in tokens]


def _array(tensor: torch.Tensor | None) -> Any:
    return None if tensor is None else tensor.detach().float().contiguous().numpy()
