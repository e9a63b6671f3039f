"""The fields of Inseq's output classes, and the aggregation functions of one sequence."""

from __future__ import annotations

import copy
from typing import Any

from inseq.data import FeatureAttributionOutput
from inseq.data.aggregation_functions import DEFAULT_ATTRIBUTION_AGGREGATE_DICT
from inseq.data.attribution import FeatureAttributionSequenceOutput, GranularFeatureAttributionSequenceOutput
from inseq.utils.typing import TokenWithId

# The key of `info` whose value is the notes of each sequence's tokens, see `attribution.text.readable_tokens`.
NOTES = "tokens"
# The key of `info` whose value is the next-token candidates of each sequence's steps, see `SequenceCandidates`.
CANDIDATES = "candidates"
# The key of `info` whose value is the segments of each text, see `attribution.text.segments.InputParts`.
SEGMENTS = "segments"
SIDES = ("source", "target")
TENSOR_FIELDS = ("source_attributions", "target_attributions")
TENSOR_DICTS = ("step_scores", "sequence_scores")
TOKEN_FIELDS = ("source", "target", "prefix")
# Making an output writes that method's default aggregation function into a table that Inseq shares between all
# outputs of the process, so that it would become the default of other methods too. This copy is taken before any
# output exists, and each sequence gets its own copy of it.
_AGGREGATE_FUNCTIONS = copy.deepcopy(DEFAULT_ATTRIBUTION_AGGREGATE_DICT)


def token_id(token: TokenWithId) -> int:
    """Return a token's id, or -1 for one without a number: a merged token, or the pair of a contrastive step."""
    return token.id if isinstance(token.id, int) else -1


def token_notes(output: FeatureAttributionOutput) -> list[dict[str, list[dict[str, Any]]]]:
    """Return the notes of each sequence's tokens, by side; empty dictionaries where the output has none."""
    return output.info.get(NOTES) or [{}] * len(output.sequence_attributions)


def candidates(output: FeatureAttributionOutput) -> list[list[list[dict[str, Any]]] | None]:
    """Return the candidates of each sequence's steps; None where the output has none."""
    return output.info.get(CANDIDATES) or [None] * len(output.sequence_attributions)


def without_notes(info: dict[str, Any]) -> dict[str, Any]:
    """Return `info` without the notes of tokens and the candidates, which views write beside the tokens themselves."""
    return {name: value for name, value in info.items() if name not in {NOTES, CANDIDATES}}


def with_own_functions(output: FeatureAttributionOutput) -> FeatureAttributionOutput:
    """Give each sequence of a new output its own aggregation functions, and return the output."""
    for sequence in output.sequence_attributions:
        set_own_functions(sequence)
    return output


def set_own_functions(sequence: FeatureAttributionSequenceOutput) -> None:
    """Give a sequence its own table of aggregation functions, with the values that a new process would have."""
    functions: dict[str, Any] = copy.deepcopy(_AGGREGATE_FUNCTIONS)
    if isinstance(sequence, GranularFeatureAttributionSequenceOutput):
        for name in TENSOR_FIELDS:
            functions[name]["scores"] = "vnorm"
        functions["step_scores"]["spans"]["deltas"] = "absmax"
    sequence._dict_aggregate_fn = functions  # noqa: SLF001
