"""The next-token candidates of a result's steps, beside scores whose tokens an aggregator may have merged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from inseq.data import FeatureAttributionOutput

from attribution.results import inseq_fields

# For each generated token its candidates, see `attribution_schema.result.Candidate`; None for a merged token.
StepCandidates = list[list[dict[str, Any]] | None]


def unmerged_candidates(
    raw: FeatureAttributionOutput, output: FeatureAttributionOutput
) -> Iterator[StepCandidates | None]:
    """Yield the candidates of each sequence's steps after an aggregation; None for a sequence without.

    A token that no aggregator merged is the same object in both outputs.
    """
    pairs = zip(raw.sequence_attributions, output.sequence_attributions, inseq_fields.candidates(raw), strict=True)
    for before, after, candidates in pairs:
        if candidates is None:
            yield None
            continue
        steps = {id(token): step for step, token in enumerate(before.target[before.attr_pos_start :])}
        places = (steps.get(id(token)) for token in after.target[after.attr_pos_start : after.attr_pos_end])
        yield [None if place is None else candidates[place] for place in places]


def without_texts(candidates: StepCandidates | None) -> StepCandidates | None:
    """Return the candidates without their decoded texts."""
    if candidates is None:
        return None
    return [
        step and [{name: value for name, value in each.items() if name != "text"} for each in step]
        for step in candidates
    ]
