"""One text, attributed by the engine that was chosen for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from attribution.catalogue import masked_methods, next_token
from attribution.catalogue.inseq_catalogue import Method
from attribution.estimates import passes
from attribution.inseq_loop.engine_calls import (
    Attributed,
    by_kept_states,
    by_loop,
    by_loop_with_shared_scores,
    by_masking,
    by_single_pass,
    can_share_scores,
)
from attribution.inseq_loop.text_attribution import TextAttribution, joined
from attribution.inseq_loop.text_setup import MethodOnText
from attribution.isolation import RANDOM_DRAWS, RandomState, held
from attribution.run.engine_choice import EngineChoice
from attribution.single_pass import span_output
from attribution.single_pass.kept_states import kept_states
from models import AttributionRequest
from problems import UnsupportedByModel


def choose_engines(request: AttributionRequest, method: Method, choice: EngineChoice) -> None:
    """Decide what a request's texts will run by, so that probes of the model run before the first text.

    Raises `UnsupportedByModel` if the request requires the single pass and it is not trusted.
    """
    if masked_methods.is_masked(request):
        choice.require_causal()
    elif not choice.takes_single_pass(method) and passes.shares_scores(request):
        choice.scores_at_once(next_token.scored_names(request))


def attribute(
    attribution: TextAttribution,
    choice: EngineChoice,
    random_state: RandomState | None,
    should_cancel: Callable[[], bool] = lambda: False,
) -> Attributed:
    """A text's attribution, its step scores, and each step's completeness where the method promises it.

    A share of the texts that the single pass attributed runs by Inseq's loop too; if the two differ, the loop's result
    is returned. The draws of a random method begin at `random_state`. Raises `UnsupportedByModel` if the request
    requires the single pass and it is not trusted or fails for this text, and `Cancelled` where `should_cancel` returns
    True while other jobs draw.
    """
    is_masked = masked_methods.is_masked(attribution.request)
    with _drawing_from(random_state, should_cancel):
        by_span = attribution.text.spans and not is_masked
        ours = _of_spans(attribution, choice) if by_span else joined(_runs(attribution, choice))
    if is_masked or attribution.text.trace is not None or not choice.is_to_be_rechecked(attribution.method):
        return ours
    with _drawing_from(random_state, should_cancel):
        if attribution.text.spans:
            theirs = _by_loop_over_spans(attribution, choice)
        else:
            theirs = joined([attribution.run(work, by_loop) for work in attribution.runs()])
    return ours if choice.is_confirmed(attribution.method, ours[0], theirs[0]) else theirs


def _of_spans(attribution: TextAttribution, choice: EngineChoice) -> Attributed:
    """The spans of a text by the single pass, or else each by Inseq's loop."""
    if choice.takes_single_pass(attribution.method):
        try:
            return attribution.run(attribution.runs()[0], by_single_pass)
        except UnsupportedByModel as error:
            choice.give_up(attribution.method, error.detail)
    if attribution.text.trace is not None:
        reason = choice.describe(attribution.method).get("engine_check", {}).get("reason", "")
        raise UnsupportedByModel(
            f"A trace by spans needs the single pass, which cannot be had here: {reason} Use an exact trace."
        )
    return _by_loop_over_spans(attribution, choice)


def _by_loop_over_spans(attribution: TextAttribution, choice: EngineChoice) -> Attributed:
    """Each span as the last step of a text of its own, and the step scores of its tokens."""
    found = [attribution.run(work, by_loop) for work in attribution.runs_by_span()]
    request, text = attribution.request, attribution.text
    outputs, identity = [output for output, _ in found], [step for _, steps in found for step in steps]
    joint = span_output.of_single_steps(outputs, text, attribution.model, clean=request.clean_special_chars)
    (sequence,) = joint.sequence_attributions
    sequence.step_scores = {}
    if attribution.scored:
        scored, _ = _by_chosen_engine(attribution, attribution.run_of_scores(), choice)
        scores = scored.sequence_attributions[0].step_scores
        sequence.step_scores = span_output.scores_of_spans(scores, text, request.step_scores_args)
    return joint, identity


def _runs(attribution: TextAttribution, choice: EngineChoice) -> list[Attributed]:
    """Each of the attribution's runs. `attention` runs the model on the whole text: a second run for the step scores
    takes the states of that forward, where the single pass of `dummy` is trusted.
    """
    first, *others = attribution.runs()
    if not others or not first.method.traits.reads_attention or not attribution.request.corrections:
        return [_by_chosen_engine(attribution, work, choice) for work in (first, *others)]
    with kept_states(attribution.network) as kept:
        found = [_by_chosen_engine(attribution, first, choice)]
    for work in others:
        if choice.scores_at_once(work.step_scores):
            try:
                found.append(attribution.run(work, partial(by_kept_states, kept=kept)))
                continue
            except UnsupportedByModel:
                pass  # the scores then have a forward of their own
        found.append(_by_chosen_engine(attribution, work, choice))
    return found


def _by_chosen_engine(attribution: TextAttribution, work: MethodOnText, choice: EngineChoice) -> Attributed:
    """Run by masking what has features, and by the single pass if `choice` trusts it; by Inseq's loop otherwise, or if
    the single pass refuses the text.

    In the loop, step scores come from one forward over the whole text if the single pass of `dummy` is trusted.
    """
    if work.features is not None:
        return attribution.run(work, by_masking)
    if work.is_for_scores_only:
        if choice.scores_at_once(work.step_scores):
            try:
                return attribution.run(work, by_single_pass)
            except UnsupportedByModel as error:
                choice.give_up_scores_at_once(error.detail)
        return attribution.run(work, by_loop)
    if choice.takes_single_pass(work.method):
        try:
            return attribution.run(work, by_single_pass)
        except UnsupportedByModel as error:
            choice.give_up(work.method, error.detail)
    if can_share_scores(attribution.request, work) and choice.scores_at_once(work.step_scores):
        try:
            return attribution.run(work, by_loop_with_shared_scores)
        except UnsupportedByModel as error:
            choice.give_up_scores_at_once(error.detail)
    return attribution.run(work, by_loop)


@contextmanager
def _drawing_from(state: RandomState | None, should_cancel: Callable[[], bool]) -> Iterator[None]:
    """Within the block, no other job draws, and the random generators begin at `state`; None for no draws."""
    if state is None:
        yield
        return
    with held(RANDOM_DRAWS, should_cancel):
        state.resume()
        yield
