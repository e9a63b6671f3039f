"""A result as JSON: the default view, and the file that Inseq loads."""

from __future__ import annotations

import copy
import json
from itertools import repeat
from typing import Any

import orjson
import torch
from inseq.data import FeatureAttributionOutput
from inseq.data.attribution import FeatureAttributionSequenceOutput, FeatureAttributionStepOutput
from inseq.utils.serialization import json_advanced_dumps
from inseq.utils.typing import TokenWithId

from attribution.results.aggregation import aggregate
from attribution.results.candidate_steps import StepCandidates, unmerged_candidates, without_texts
from attribution.results.inseq_fields import (
    SIDES,
    TENSOR_DICTS,
    TENSOR_FIELDS,
    TOKEN_FIELDS,
    token_id,
    token_notes,
    without_notes,
)
from attribution.text.readable_tokens import Note
from attribution_schema.view_options import ViewOptions


def json_view(output: FeatureAttributionOutput, options: ViewOptions) -> bytes:
    """Return the JSON view: scores as nested lists, `[attributed, generated]`, deeper with `granular`.

    NaN (the score of a position that was not generated yet) is `null`. Raises `InvalidRequest`, as `aggregate` does.
    """
    return aggregated_json(output, aggregate(output, options), with_text=options.decode_tokens)


def aggregated_json(raw: FeatureAttributionOutput, output: FeatureAttributionOutput, *, with_text: bool) -> bytes:
    """Return the JSON view of an output whose scores are aggregated; `with_text` adds each token's decoded text.

    `raw` is the output before its aggregation, whose steps the candidates belong to.
    """
    steps = output.step_attributions
    sequences = zip(output.sequence_attributions, token_notes(output), unmerged_candidates(raw, output), strict=True)
    return orjson.dumps(
        {
            "sequence_attributions": [
                _sequence_json(sequence, notes, candidates, with_text=with_text)
                for sequence, notes, candidates in sequences
            ],
            "step_attributions": None if steps is None else [_step_json(each) for each in steps],
            "info": without_notes(output.info),
        },
        option=orjson.OPT_SERIALIZE_NUMPY,
    )


def inseq_view(output: FeatureAttributionOutput, options: ViewOptions) -> bytes:
    """Return a file that `inseq.FeatureAttributionOutput.load` reads back as an equal output.

    Scores are raw unless the options name an aggregator. Step attributions are left out: Inseq cannot load its own.
    Raises `InvalidRequest`, as `aggregate` does.
    """
    if options.aggregators:
        output = aggregate(output, options)
    copied = FeatureAttributionOutput(copy.deepcopy(output.sequence_attributions), None, output.info)
    dimensions = [each._num_dimensions for each in copied.sequence_attributions]  # noqa: SLF001
    for each in copied.sequence_attributions:
        each._convert_to_safetensors()  # noqa: SLF001 - as Inseq's own `save`
    document = json.loads(json_advanced_dumps(copied, use_primitives=False, ndarray_compact=True))
    # Inseq's own file drops this number; without it, a loaded attention or value zeroing output is aggregated wrongly.
    for entry, dimension in zip(document["attributes"]["sequence_attributions"], dimensions, strict=True):
        entry["attributes"]["_num_dimensions"] = dimension
    return orjson.dumps(document)


def _sequence_json(
    sequence: FeatureAttributionSequenceOutput,
    notes: dict[str, list[Note]],
    candidates: StepCandidates | None,
    *,
    with_text: bool,
) -> dict[str, Any]:
    written = {"special", "span", "template", "turn", "role", "segment"} | (
        {"text", "prompt", "continues", "contrast"} if with_text else set()
    )
    tokens = {
        side: [
            entry | {name: value for name, value in note.items() if name in written}
            for entry, note in zip(_tokens_json(getattr(sequence, side)), notes.get(side) or repeat({}), strict=False)
        ]
        for side in SIDES
    }
    return {
        **tokens,
        "source_attributions": _array(sequence.source_attributions),
        "target_attributions": _array(sequence.target_attributions),
        "step_scores": {name: _array(scores) for name, scores in (sequence.step_scores or {}).items()},
        "sequence_scores": {name: _array(scores) for name, scores in (sequence.sequence_scores or {}).items()},
        "candidates": candidates if with_text else without_texts(candidates),
        "attr_pos_start": sequence.attr_pos_start,
        "attr_pos_end": sequence.attr_pos_end,
    }


def _step_json(step: FeatureAttributionStepOutput) -> dict[str, Any]:
    return {
        **{name: _tokens_json(getattr(step, name)) for name in TOKEN_FIELDS},
        **{name: _array(getattr(step, name)) for name in TENSOR_FIELDS},
        **{name: {k: _array(v) for k, v in (getattr(step, name) or {}).items()} for name in TENSOR_DICTS},
    }


def _tokens_json(tokens: Any) -> Any:
    if isinstance(tokens, TokenWithId):
        return {"token": tokens.token, "token_id": token_id(tokens)}
    return None if tokens is None else [_tokens_json(each) for each in tokens]


def _array(tensor: torch.Tensor | None) -> Any:
    """Return the tensor as a float32 array, which orjson writes as nested lists with NaN as null."""
    return None if tensor is None else tensor.detach().float().contiguous().numpy()
