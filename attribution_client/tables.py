"""Numbers about results: the tokens that matter most, and how far methods agree. Draws nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from attribution_client.frames import Scores, scores_of, to_frame
from attribution_schema.result import AttributionResult, ComparisonResult, SequenceAttribution

Results = Mapping[str, AttributionResult] | Sequence[AttributionResult] | ComparisonResult


def top_tokens(
    result: AttributionResult, k: int = 5, *, generated: int | None = None, sequence: int = 0
) -> pd.DataFrame:
    """The `k` attributed tokens with the largest absolute scores, for each generated token or the one of this index.

    Columns: generated_position, generated_token, rank (1 is the first), side, attributed_position, attributed_token,
    score. Of equal scores the earlier token comes first.
    """
    frame = to_frame(result)
    chosen = result.sequence_attributions[sequence]
    frame = frame[(frame["sequence"] == sequence) & frame["score"].notna()]
    if generated is not None:
        positions = range(chosen.attr_pos_start, chosen.attr_pos_end)
        frame = frame[frame["generated_position"] == positions[generated]]
    size = frame["score"].abs()
    order = frame.assign(size=size).sort_values(["generated_position", "size"], ascending=[True, False], kind="stable")
    top = order.groupby("generated_position", sort=False).head(k)
    top = top.assign(rank=top.groupby("generated_position").cumcount() + 1)
    names = [
        "generated_position",
        "generated_token",
        "rank",
        "side",
        "attributed_position",
        "attributed_token",
        "score",
    ]
    return top[names].reset_index(drop=True)


def named(results: Results) -> dict[str, AttributionResult]:
    """Results by the name of their method, or by the names that they have."""
    if isinstance(results, ComparisonResult):
        return {each.method: each for each in results.comparison}
    if isinstance(results, Mapping):
        return dict(results)
    found = {str(each.info.get("attribution_method", f"result {i + 1}")): each for i, each in enumerate(results)}
    if len(found) != len(results):
        raise ValueError('Two results are of the same method: give them names, as in {"IG, 20 steps": result, ...}.')
    return found


def same_tokens(results: Mapping[str, AttributionResult], sequence: int) -> list[SequenceAttribution]:
    """The sequence of each result. Raises `ValueError` unless all are of the same tokens."""
    chosen = [each.sequence_attributions[sequence] for each in results.values()]
    if len(chosen) < 2:  # noqa: PLR2004
        raise ValueError("There is nothing to compare: give two results or more.")

    def tokens(each: SequenceAttribution) -> tuple[object, ...]:
        ids = [[token.token for token in side] for side in (each.source, each.target)]
        return (*ids, each.attr_pos_start, each.attr_pos_end)

    for name, each in zip(results, chosen, strict=True):
        if tokens(each) != tokens(chosen[0]):
            raise ValueError(
                f"{name!r} is of other tokens than {next(iter(results))!r}. Give each job the same generated_text, and "
                "ask for the results with the same aggregators."
            )
    return chosen


def rank_correlation(results: Results, sequence: int = 0) -> pd.DataFrame:
    """Spearman's correlation of absolute scores for each pair of results: over the attributed tokens of a generated
    token, then the mean over generated tokens. NaN where a method's scores are all equal.
    """
    return _pairwise(named(results), sequence, _spearman)


def top_token_overlap(results: Results, k: int = 3, sequence: int = 0) -> pd.DataFrame:
    """How many of the `k` tokens with the largest absolute scores two results share: a share, the mean over generated
    tokens.
    """

    def overlap(a: Scores, b: Scores) -> float:
        size = min(k, len(a))
        tops = [set(np.argsort(-each, kind="stable")[:size]) for each in (a, b)]
        return len(tops[0] & tops[1]) / size

    return _pairwise(named(results), sequence, overlap)


def _pairwise(results: dict[str, AttributionResult], sequence: int, measure: object) -> pd.DataFrame:
    assert callable(measure)
    matrices = [absolute_scores(each) for each in same_tokens(results, sequence)]
    found = pd.DataFrame(np.eye(len(results)), index=list(results), columns=list(results))
    for (i, a), (j, b) in combinations(enumerate(matrices), 2):
        values = []
        for one, other in zip(a.T, b.T, strict=True):
            both = ~np.isnan(one) & ~np.isnan(other)
            if both.any():
                values.append(measure(one[both], other[both]))
        known = [value for value in values if not np.isnan(value)]
        found.iloc[i, j] = found.iloc[j, i] = float(np.mean(known)) if known else np.nan
    return found


def absolute_scores(sequence: SequenceAttribution) -> Scores:
    """Absolute scores of both sides, [attributed, generated]: the source's rows before the target's."""
    sides = [scores_of(sequence, side) for side in ("source", "target")]
    present = [np.abs(each) for each in sides if each.size]
    if not present:
        raise ValueError("This result has no scores, only step scores.")
    return np.concatenate(present)


def _spearman(a: Scores, b: Scores) -> float:
    ranks = [pd.Series(each).rank().to_numpy() for each in (a, b)]
    deviations = [each - each.mean() for each in ranks]
    scale = float(np.sqrt((deviations[0] ** 2).sum() * (deviations[1] ** 2).sum()))
    return float((deviations[0] * deviations[1]).sum()) / scale if scale else np.nan
