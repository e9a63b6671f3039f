"""How far stored results agree, each two of them: computed from the default views, which are stored as JSON.

What is compared are runs: a job with one method is one, a comparison has one for each of its methods.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from attribution_reading.agreement import TOP, absolute_scores, kendall, spearman, top_overlap
from attribution_reading.scored_sequence import SIDES, ScoredSequence, Scores
from models import JobAgreement
from problems import InvalidRequest

MOST_JOBS = 8
_MOST_RUNS = 16  # each two are compared


@dataclass(frozen=True)
class _Run:
    job_id: str
    method: str
    sequences: Sequence[Mapping[str, Any]]


def job_agreements(summaries: Mapping[str, bytes], methods: Mapping[str, Sequence[str]]) -> list[JobAgreement]:
    """Return the agreement of each two runs on each of their texts, as far as both have one.

    summaries: the default view of each job, as gzipped JSON, by id. methods: the names of its methods. Raises
    `InvalidRequest` if there are too many methods in all.
    """
    if (count := sum(len(each) for each in methods.values())) > _MOST_RUNS:
        raise InvalidRequest(f"These jobs have {count} methods in all; at most {_MOST_RUNS} are compared.")
    runs = [run for job_id, summary in summaries.items() for run in _runs(job_id, methods[job_id], summary)]
    return [
        JobAgreement(jobs=(a.job_id, b.job_id), methods=(a.method, b.method), sequence=index, **_agreement(one, other))
        for a, b in combinations(runs, 2)
        for index, (one, other) in enumerate(zip(a.sequences, b.sequences, strict=False))
    ]


def _runs(job_id: str, methods: Sequence[str], summary: bytes) -> Iterator[_Run]:
    result = json.loads(gzip.decompress(summary))
    for each in result.get("comparison", [result]):
        yield _Run(job_id, each.get("method", methods[0]), each["sequence_attributions"])


def _agreement(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return the measures of two sequences; None where their tokens differ, or one has no scores of pairs of tokens."""
    same = _tokens(one) == _tokens(other)
    a, b = (_scores(each) if same else None for each in (one, other))
    measures = {"spearman": spearman, "kendall": kendall, "top_overlap": top_overlap}
    found = {name: None if a is None or b is None else measure(a, b) for name, measure in measures.items()}
    return found | {"k": TOP, "same_tokens": same}


def _tokens(sequence: Mapping[str, Any]) -> tuple[Any, ...]:
    sides = [[(token["token"], token["token_id"]) for token in sequence[side]] for side in SIDES]
    return *sides, sequence["attr_pos_start"], sequence["attr_pos_end"]


def _scores(sequence: Mapping[str, Any]) -> Scores | None:
    given = {side: sequence[f"{side}_attributions"] for side in SIDES}
    scores = {side: np.array(rows, np.float32) for side, rows in given.items() if rows}  # null is NaN
    return absolute_scores(ScoredSequence({}, scores, {}, sequence["attr_pos_start"]))
