"""The JSON view of a comparison: each method's result, and how far each two agree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any

import numpy as np
import orjson
from inseq.data import FeatureAttributionOutput
from inseq.data.attribution import FeatureAttributionSequenceOutput
from numpy.typing import NDArray
from scipy.stats import kendalltau, spearmanr

from attribution.results.aggregation import aggregate
from attribution.results.json_views import aggregated_json
from attribution_schema.view_options import ViewOptions

TOP = 3  # tokens whose overlap is told


def json_view(outputs: Mapping[str, FeatureAttributionOutput], options: ViewOptions) -> bytes:
    """All methods' results and how well they agree, as JSON."""
    aggregated = {name: aggregate(output, options) for name, output in outputs.items()}
    return orjson.dumps(
        {
            "comparison": [
                # A JSON object as bytes, with a name put in front.
                orjson.Fragment(
                    b'{"method":'
                    + orjson.dumps(name)
                    + b","
                    + aggregated_json(output, with_text=options.decode_tokens)[1:]
                )
                for name, output in aggregated.items()
            ],
            "agreement": [] if options.granular else list(_agreement(aggregated)),
        }
    )


def _agreement(outputs: Mapping[str, FeatureAttributionOutput]) -> Iterator[dict[str, Any]]:
    for one, other in combinations(outputs, 2):
        pairs = zip(outputs[one].sequence_attributions, outputs[other].sequence_attributions, strict=False)
        for index, (a, b) in enumerate(pairs):
            yield {"methods": [one, other], "sequence": index, **agreement(a, b)}


def agreement(a: FeatureAttributionSequenceOutput, b: FeatureAttributionSequenceOutput) -> dict[str, float | None]:
    """Mean rank correlations (Spearman's rho, Kendall's tau-b) and overlap of the largest scores of two methods.

    For each generated token, over the absolute scores of the tokens that both have a number for; a mean over the
    generated tokens where it is defined, None where it is nowhere (methods of other shapes, constant scores).
    """
    ours, theirs = _scores(a), _scores(b)
    found: dict[str, list[float]] = {"spearman": [], "kendall": [], "top_overlap": []}
    if ours is not None and theirs is not None and ours.shape == theirs.shape:
        for x, y in zip(ours.T, theirs.T, strict=True):
            both = np.isfinite(x) & np.isfinite(y)
            _compare(x[both], y[both], found)
    return {name: float(np.mean(values)) if values else None for name, values in found.items()} | {"k": TOP}


def _compare(x: NDArray[Any], y: NDArray[Any], found: dict[str, list[float]]) -> None:
    if len(x) < 2:  # noqa: PLR2004 - one token has no rank
        return
    if np.ptp(x) > 0 and np.ptp(y) > 0:
        found["spearman"].append(float(spearmanr(x, y).statistic))
        found["kendall"].append(float(kendalltau(x, y).statistic))
    if len(x) > TOP:
        first, second = (set(np.argsort(-each, kind="stable")[:TOP].tolist()) for each in (x, y))
        found["top_overlap"].append(len(first & second) / TOP)


def _scores(sequence: FeatureAttributionSequenceOutput) -> NDArray[Any] | None:
    """Absolute scores, [attributed, generated], the source's above the target's; None where they are deeper."""
    sides = [each for each in (sequence.source_attributions, sequence.target_attributions) if each is not None]
    if not sides or any(each.ndim != 2 for each in sides):  # noqa: PLR2004 - a matrix
        return None
    return np.concatenate([each.detach().float().abs().numpy() for each in sides])
