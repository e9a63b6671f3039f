"""The job that asks why a model wrote one token rather than another: a contrast, made from a finished job's result."""

from __future__ import annotations

from attribution_schema.job import Job
from attribution_schema.request import AttributionRequest
from attribution_schema.result import AttributionResult, Candidate, SequenceAttribution


def contrast_request(
    job: Job,
    result: AttributionResult,
    position: int,
    candidate: Candidate | int,
    *,
    sequence: int = 0,
    attributed_fn: str = "contrast_prob_diff",
) -> AttributionRequest:
    """The request of a contrastive job: why the token at this target position rather than the candidate.

    position: of the token in `target` of the result's sequence, which has not been merged by an aggregator.
    candidate: one of the sequence's `candidates` at that token, or the id of any other token. The new job has the same
    text, token for token, and the tags and arguments of the old one, but not its name, notes and webhook; of a
    comparison, the arguments are those of the result's method. Its scores are those of `attributed_fn`: by default the
    difference of the two tokens' probabilities.

    Raises `ValueError` for a position that was not attributed, for the token that stands there itself, for a result
    whose tokens were merged or that has spans, and for a job whose request cannot be read.
    """
    if job.request is None:
        raise ValueError(f"The request of job {job.job_id} cannot be read: {job.error}")
    scored = result.sequence_attributions[sequence]
    if any(token.span for token in scored.target):
        raise ValueError("This job attributed spans as wholes: ask by `choices`, or by a span's `contrast`.")
    if not scored.attr_pos_start <= position < scored.attr_pos_end:
        raise ValueError(
            f"Position {position} was not attributed: the generated tokens are at {scored.attr_pos_start} to "
            f"{scored.attr_pos_end - 1}."
        )
    ids = _target_ids(scored)
    other = candidate.token_id if isinstance(candidate, Candidate) else candidate
    if other == ids[position]:
        raise ValueError(f"{scored.target[position].token!r} is the token that stands at position {position}.")
    request = job.request.of_method(str(result.info.get("attribution_method")))
    conversations = request.conversations
    return request.model_copy(
        update={
            "input_text": None if conversations is not None else request.inputs[sequence],
            "messages": None if conversations is None else conversations[sequence],
            "generated_text": None,
            "generated_ids": [ids],
            "generation_args": {},
            "step_scores": [],
            "step_scores_args": {},
            "attributed_fn": attributed_fn,
            "attributed_fn_args": {"contrast_ids": [[*ids[:position], other, *ids[position + 1 :]]]},
            "attr_pos_start": position,
            "attr_pos_end": position + 1,
            "name": None,
            "notes": None,
            "webhook": None,
            "webhook_events": None,
        }
    )


def _target_ids(sequence: SequenceAttribution) -> list[int]:
    """The ids of the whole target. The token of a contrast's own step has none, but its candidates do."""
    ids = [token.token_id for token in sequence.target]
    for step, candidates in enumerate(sequence.candidates or []):
        for each in candidates or []:
            if each.chosen:
                ids[sequence.attr_pos_start + step] = each.token_id
    if any(each < 0 for each in ids):
        raise ValueError("An aggregator merged tokens of this result, so they have no ids: get it without one.")
    return ids
