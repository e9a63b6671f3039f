"""The JSON view of a comparison: each method's result, and how far each two agree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any

import orjson
from inseq.data import FeatureAttributionOutput

from attribution.results.aggregation import aggregate
from attribution.results.json_views import aggregated_json
from attribution.results.scored_sequences import scored_sequence
from attribution_reading.agreement import TOP, absolute_scores, kendall, spearman, top_overlap
from attribution_reading.scored_sequence import Scores
from attribution_schema.view_options import ViewOptions


def json_view(outputs: Mapping[str, FeatureAttributionOutput], options: ViewOptions) -> bytes:
    """Return all methods' results, and how far each two agree, as JSON. Raises `InvalidRequest`, as `aggregate` does.

    `outputs` is by method. Granular scores have no ranks, and so no agreement.
    """
    aggregated = {name: aggregate(output, options) for name, output in outputs.items()}
    return orjson.dumps(
        {
            "comparison": [_with_method(name, outputs[name], output, options) for name, output in aggregated.items()],
            "agreement": [] if options.granular else list(_agreements(aggregated)),
        }
    )


def _with_method(
    name: str, raw: FeatureAttributionOutput, output: FeatureAttributionOutput, options: ViewOptions
) -> orjson.Fragment:
    """Return one method's result with the method's name in front, without parsing the result's JSON again.

    `output` is the aggregated `raw`.
    """
    result = aggregated_json(raw, output, with_text=options.decode_tokens)
    return orjson.Fragment(b'{"method":' + orjson.dumps(name) + b"," + result[1:])


def _agreements(outputs: Mapping[str, FeatureAttributionOutput]) -> Iterator[dict[str, Any]]:
    """Yield the agreement of each two methods on each sequence, as an `attribution_schema.result.Agreement`."""
    scores = {
        name: [absolute_scores(scored_sequence(each)) for each in output.sequence_attributions]
        for name, output in outputs.items()
    }
    for one, other in combinations(outputs, 2):
        for index, (a, b) in enumerate(zip(scores[one], scores[other], strict=False)):
            yield {"methods": [one, other], "sequence": index, **_agreement(a, b)}


def _agreement(a: Scores | None, b: Scores | None) -> dict[str, float | None]:
    """Return the agreement of two methods; None where a method has no scores for pairs of tokens."""
    measures = {"spearman": spearman, "kendall": kendall, "top_overlap": top_overlap}
    found = {name: None if a is None or b is None else measure(a, b) for name, measure in measures.items()}
    return found | {"k": TOP}
