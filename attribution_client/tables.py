"""Tables about results: the tokens with the largest scores, and how far methods agree."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import combinations

import numpy as np
import pandas as pd

from attribution_client.frames import to_frame
from attribution_client.scores import has_text, scored_sequence
from attribution_reading.agreement import TOP, absolute_scores, spearman, top_overlap
from attribution_reading.scored_sequence import Scores
from attribution_schema.result import AttributionResult, ComparisonResult, SequenceAttribution

Results = Mapping[str, AttributionResult] | Sequence[AttributionResult] | ComparisonResult


def top_tokens(
    result: AttributionResult, k: int = 5, *, generated: int | None = None, sequence: int = 0
) -> pd.DataFrame:
    """Return the `k` attributed tokens with the largest absolute scores, for each generated token.

    With `generated`, for the generated token of this index only.

    Columns: generated_position, generated_text, rank (1 is the first), side, attributed_position, attributed_text,
    score. Texts are the decoded tokens, or raw tokens in a result that was read with `decode_tokens=False`. Of equal
    scores the earlier token comes first.
    """
    frame = to_frame(result)
    if not has_text(result):
        frame = frame.assign(generated_text=frame["generated_token"], attributed_text=frame["attributed_token"])
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
        "generated_text",
        "rank",
        "side",
        "attributed_position",
        "attributed_text",
        "score",
    ]
    return top[names].reset_index(drop=True)


def named(results: Results) -> dict[str, AttributionResult]:
    """Return results by the names given to them, or else by method. Raises `ValueError` for two of one method."""
    if isinstance(results, ComparisonResult):
        return {each.method: each for each in results.comparison}
    if isinstance(results, Mapping):
        return dict(results)
    found = {str(each.info.get("attribution_method", f"result {i + 1}")): each for i, each in enumerate(results)}
    if len(found) != len(results):
        raise ValueError('Two results are of the same method: give them names, as in {"IG, 20 steps": result, ...}.')
    return found


def same_tokens(results: Mapping[str, AttributionResult], sequence: int) -> list[SequenceAttribution]:
    """Return the sequence of each result. Raises `ValueError` unless all have the same tokens."""
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
    """Return Spearman's rank correlation of absolute scores for each pair of results, `[results, results]`.

    Each is over the attributed tokens of a generated token, then the mean over generated tokens; NaN where it is
    defined for none, because a method gives all tokens the same score. Raises `ValueError` for results of other tokens.
    """
    return _pairwise(named(results), sequence, spearman)


def top_token_overlap(results: Results, k: int = TOP, sequence: int = 0) -> pd.DataFrame:
    """Return the share of the `k` largest absolute scores that each pair of results shares, `[results, results]`.

    Each is a mean over the generated tokens with more than `k` attributed tokens; NaN where there are none. Raises
    `ValueError` for results of other tokens.
    """
    return _pairwise(named(results), sequence, partial(top_overlap, k=k))


def _pairwise(
    results: dict[str, AttributionResult], sequence: int, measure: Callable[[Scores, Scores], float | None]
) -> pd.DataFrame:
    """Return a measure of each pair of results, with ones on the diagonal and NaN where it is None."""
    matrices = [_absolute_scores(each) for each in same_tokens(results, sequence)]
    found = pd.DataFrame(np.eye(len(results)), index=list(results), columns=list(results))
    for (i, a), (j, b) in combinations(enumerate(matrices), 2):
        value = measure(a, b)
        found.iloc[i, j] = found.iloc[j, i] = np.nan if value is None else value
    return found


def _absolute_scores(sequence: SequenceAttribution) -> Scores:
    found = absolute_scores(scored_sequence(sequence))
    if found is None:
        raise ValueError("This result has no scores, only step scores.")
    return found
