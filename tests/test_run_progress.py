"""Progress of an attribution, without a model: one fraction that never decreases, in the method's unit, with an ETA."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attribution.run.method_progress import MethodProgress, Unit
from attribution.run.request_progress import RequestProgress
from models import Stage

GENERATING, CHECKING, ATTRIBUTING = (Stage.GENERATING, None), (Stage.CHECKING, "m"), (Stage.ATTRIBUTING, "m")


def counter(unit=Unit.STEP, plan=None):
    seen = []
    request = RequestProgress(seen.append)
    request.restart()
    request.expect(plan or {})
    return MethodProgress(request, "m", unit), seen


def told(seen, stage=Stage.ATTRIBUTING):
    return [each for each in seen if each.stage is stage]


def test_steps_of_several_texts():
    progress, seen = counter(plan={ATTRIBUTING: 10.0})
    progress.begin_attributing(5)
    progress.begin_text(2)
    progress.forward_begins()  # not counted: this method counts steps
    progress.steps_done(1)
    progress.steps_done(2)
    progress.begin_text(3)
    progress.steps_done(2)
    seen = told(seen)
    assert [(each.steps_done, each.steps_total) for each in seen] == [(0, 5), (1, 5), (2, 5), (2, 5), (4, 5)]
    assert [each.fraction for each in seen] == [0.0, 0.2, 0.4, 0.4, 0.8]
    assert [each.eta_seconds for each in seen] == [10.0, 8.0, 6.0, 6.0, 2.0]
    assert progress.request.latest is seen[-1]


def test_without_an_expectation_there_is_no_eta():
    progress, seen = counter()
    progress.begin_attributing(2)
    progress.begin_text(2)
    progress.steps_done(1)
    assert [each.eta_seconds for each in seen] == [None] * 3
    assert [each.steps_done for each in seen] == [0, 0, 1]


def test_generated_tokens_are_counted_over_all_texts():
    progress, seen = counter(plan={GENERATING: 6.0})
    progress.expect_generating([3, 3])
    progress.begin_generating()
    progress.forward_begins()
    progress.forward_begins()
    progress.begin_generating()  # the first text ended a token early
    progress.forward_begins()
    seen = told(seen, Stage.GENERATING)
    assert [(each.steps_done, each.steps_total) for each in seen] == [(0, 6), (1, 6), (2, 6), (2, 5), (3, 5)]
    # A token counts once the next one has begun.
    assert [each.fraction for each in seen] == pytest.approx([0, 0, 1 / 6, 1 / 6, 2 / 5])
    assert [each.eta_seconds for each in seen] == pytest.approx([6.0, 6.0, 5.0, 5.0, 3.6])


def test_the_first_forward_of_a_text_takes_as_long_as_its_prompt():
    progress, seen = counter(plan={GENERATING: 12.0})
    progress.expect_generating([3, 1], [7.0, 2.0])  # 7 + 1 + 1 and 2 times a token's forward
    progress.begin_generating()
    for _ in range(3):
        progress.forward_begins()
    progress.begin_generating()
    progress.forward_begins()
    assert [each.eta_seconds for each in told(seen, Stage.GENERATING)] == pytest.approx([
        12.0, 12.0,
        12 * 4 / 11, 12 * 3 / 11,  # of 11 tokens' time
        12 * 3 / 11, 12 * 2 / 11,
    ], abs=1e-3)  # fmt: skip


def test_forwards_of_a_method_with_one_step():
    progress, seen = counter(Unit.FORWARD, {ATTRIBUTING: 4.0})
    progress.begin_attributing(4)
    progress.begin_text(2)
    progress.steps_done(1)  # not counted: this method counts forward passes
    for _ in range(3):  # one more than expected
        progress.forward_begins()
    progress.begin_text(2)
    progress.forward_begins()
    assert [each.steps_done for each in told(seen)] == [0, 1, 2, 2, 3]
    assert [each.eta_seconds for each in told(seen)] == [4.0, 3.0, 2.0, 2.0, 1.0]


@pytest.mark.parametrize("unit", [Unit.STEP, Unit.FORWARD])
def test_parts_of_a_text_count_in_either_unit(unit):
    progress, seen = counter(unit, {ATTRIBUTING: 8.0})
    progress.begin_attributing(8)
    progress.begin_text(4)
    for part in (0.25, 0.375, 1.0):
        progress.part_done(part)
    progress.begin_text(4)
    progress.part_done(0.5)
    assert [each.steps_done for each in told(seen)] == [0, 1, 1, 4, 4, 6]
    assert [each.fraction * 8 for each in told(seen)] == [0, 1, 1.5, 4, 4, 6]  # finer than steps


def test_what_precedes_the_steps_takes_its_share_of_the_time():
    """A forward that takes as long as three steps."""
    progress, seen = counter(plan={ATTRIBUTING: 7.0})
    progress.begin_attributing(4)
    progress.begin_text(4)
    progress.part_done(0.0, 3 / 7)
    progress.steps_done(1)
    progress.part_done(0.25, 4 / 7)
    progress.steps_done(2)
    assert [each.steps_done for each in told(seen)] == [0, 0, 1, 2]
    assert [each.eta_seconds for each in told(seen)] == pytest.approx([7, 4, 3, 2])


def test_a_text_that_is_attributed_again_does_not_count_again():
    progress, seen = counter()
    progress.begin_attributing(4)
    progress.begin_text(4)
    for steps in (1, 2, 3, 1, 2, 3, 4):
        progress.steps_done(steps)
    assert [each.steps_done for each in told(seen)] == [0, 1, 2, 3, 4]


def test_stages_share_the_bar_by_their_expected_time():
    progress, seen = counter(plan={GENERATING: 2.0, CHECKING: 2.0, ATTRIBUTING: 4.0})
    progress.expect_generating([2])
    progress.begin_generating()
    progress.forward_begins()
    progress.forward_begins()
    progress.begin_attributing(2)
    with progress.checking(4):
        for _ in range(2):
            progress.forward_begins()
        progress.steps_done(2)  # of the probe, not of the job
    progress.begin_text(2)
    progress.steps_done(1)
    assert [(each.stage, each.fraction, each.eta_seconds) for each in seen[1:]] == [
        (Stage.GENERATING, 0.0, 8.0), (Stage.GENERATING, 0.0, 8.0), (Stage.GENERATING, 0.125, 7.0),
        (Stage.CHECKING, 0.25, 6.0), (Stage.CHECKING, 0.3125, 5.5), (Stage.CHECKING, 0.375, 5.0),
        (Stage.ATTRIBUTING, 0.5, 4.0), (Stage.ATTRIBUTING, 0.5, 4.0), (Stage.ATTRIBUTING, 0.75, 2.0),
    ]  # fmt: skip


def test_what_is_left_of_the_bar_is_divided_anew_when_more_is_known():
    """The model ended its text early, so less is left to attribute than was expected."""
    progress, seen = counter(plan={GENERATING: 4.0, ATTRIBUTING: 12.0})
    progress.expect_generating([4])
    progress.begin_generating()
    for _ in range(3):
        progress.forward_begins()
    assert (seen[-1].fraction, seen[-1].eta_seconds) == (0.125, 14.0)
    progress.request.expect({ATTRIBUTING: 7.0})
    progress.begin_attributing(7)
    progress.begin_text(7)
    assert (seen[-1].fraction, seen[-1].eta_seconds) == (0.125, 7.0)
    progress.steps_done(4)
    assert (seen[-1].fraction, seen[-1].eta_seconds) == (0.625, 3.0)


def test_an_attempt_that_starts_anew_does_not_go_back():
    progress, seen = counter(plan={ATTRIBUTING: 4.0})
    progress.begin_attributing(4)
    progress.begin_text(4)
    progress.steps_done(2)
    progress.request.restart()  # the device ran out of memory
    assert (seen[-1].stage, seen[-1].fraction, seen[-1].eta_seconds) == (Stage.LOADING_MODEL, 0.5, None)
    again = MethodProgress(progress.request, "m")
    again.request.expect({ATTRIBUTING: 8.0})
    again.begin_attributing(4)
    again.begin_text(4)
    again.steps_done(2)
    assert (seen[-1].steps_done, seen[-1].fraction, seen[-1].eta_seconds) == (2, 0.75, 4.0)


def test_methods_of_a_comparison_are_weighted_by_their_expected_time():
    seen = []
    request = RequestProgress(seen.append, names_methods=True)
    request.expect({(Stage.ATTRIBUTING, "a"): 1.0, (Stage.ATTRIBUTING, "b"): 3.0})
    for name, steps in (("a", 4), ("b", 3)):
        progress = MethodProgress(request, name)
        progress.begin_attributing(steps)
        progress.begin_text(steps)
        for done in range(1, steps + 1):
            progress.steps_done(done)
    assert [each.method for each in seen] == ["a"] * 5 + ["b"] * 4
    assert [each.fraction for each in seen] == pytest.approx([0, 1 / 16, 2 / 16, 3 / 16, 1 / 4, 1 / 4, 1 / 2, 3 / 4, 1])
    assert [each.eta_seconds for each in seen[-4:]] == [3.0, 2.0, 1.0, 0.0]


def test_stages_whose_time_is_unknown_have_no_eta():
    progress, seen = counter(plan={ATTRIBUTING: 2.0})
    progress.measuring()
    progress.begin_attributing(2)
    progress.begin_text(2)
    progress.steps_done(1)
    with progress.preparing():
        progress.steps_done(2)
    stages = [(each.stage, each.steps_done, each.eta_seconds) for each in seen[1:]]
    assert stages == [
        (Stage.MEASURING, 0, None), (Stage.ATTRIBUTING, 0, 2.0), (Stage.ATTRIBUTING, 1, 1.0),
        (Stage.PREPARING, 1, None), (Stage.ATTRIBUTING, 1, 1.0),
    ]  # fmt: skip


def test_saving_is_the_whole():
    progress, seen = counter(plan={ATTRIBUTING: 3.0})
    progress.begin_attributing(3)
    progress.begin_text(3)
    progress.steps_done(2)
    progress.request.saving()
    assert (seen[-1].stage, seen[-1].fraction, seen[-1].eta_seconds, seen[-1].steps_total) == (
        Stage.SAVING,
        1.0,
        0.0,
        3,
    )


def test_attempts_share_a_text():
    progress, seen = counter(plan={ATTRIBUTING: 8.0})
    progress.begin_attributing(8)
    progress.begin_text(4)
    for begin, end in ((0.0, 0.5), (0.5, 0.75)):
        progress.begin_attempt(begin, end)
        for steps in (1, 2, 3, 4):
            progress.steps_done(steps)
    assert [each.fraction * 8 for each in told(seen)] == [0, 0.5, 1, 1.5, 2, 2.25, 2.5, 2.75, 3]
    assert [each.steps_done for each in told(seen)] == [0, 0, 1, 1, 2, 2, 2, 2, 3]
    progress.begin_text(4)  # no longer divided
    progress.steps_done(3)
    assert progress.request.latest.steps_done == 7


def test_texts_are_told_as_they_grow_and_stay():
    seen = []
    request = RequestProgress(seen.append, texts=2)
    request.restart()
    assert seen[-1].generated_text is None
    request.write_text(0, " tea")
    request.write_text(0, " tea.")
    request.write_text(0, " tea.")  # nothing new
    request.write_text(1, " milk")
    progress = MethodProgress(request, "m")
    progress.begin_attributing(1)
    progress.begin_text(1)
    assert [each.generated_text for each in seen] == [
        None, [" tea", ""], [" tea.", ""], [" tea.", " milk"], [" tea.", " milk"]
    ]  # fmt: skip
    request.write_text(0, "x" * 100_000)
    assert sum(map(len, seen[-1].generated_text)) < 16_000  # an event carries them


_CALLS = st.one_of(
    st.tuples(st.just("steps_done"), st.integers(0, 9)),
    st.tuples(st.just("part_done"), st.floats(0, 1)),
    st.tuples(st.just("part_done"), st.floats(0, 1), st.floats(0, 1)),
    st.tuples(st.just("forward_begins")),
    st.tuples(st.just("begin_attempt"), st.floats(0, 0.5), st.floats(0.5, 1)),
    st.tuples(st.just("begin_text")),
    st.tuples(st.just("checking"), st.integers(0, 5)),
    st.tuples(st.just("preparing")),
    st.tuples(st.just("write_text")),
)
_SECONDS = st.floats(0, 100)


def _generate(data, progress, most):
    """Generate targets of at most so many tokens."""
    progress.expect_generating(most)
    for tokens in most:
        progress.begin_generating()
        for _ in range(data.draw(st.integers(1, tokens))):
            progress.forward_begins()


def _attribute(data, progress, texts):
    """Attribute texts of so many units, with reports in any order."""
    rest = iter(texts)
    progress.begin_text(next(rest))
    for call, *arguments in data.draw(st.lists(_CALLS, max_size=12)):
        if call in {"checking", "preparing"}:
            with getattr(progress, call)(*arguments):
                progress.forward_begins()
        elif call == "write_text":
            progress.request.write_text(0, data.draw(st.text(max_size=3)))
        elif call != "begin_text":
            getattr(progress, call)(*arguments)
        elif (units := next(rest, None)) is not None:
            progress.begin_text(units)


@given(data=st.data(), unit=st.sampled_from(Unit), methods=st.integers(1, 3), attempts=st.integers(1, 2))
def test_never_back_and_never_beyond_the_total(data, unit, methods, attempts):
    """Over generated texts, methods, attempts, expectations that change, and any order of reports."""
    seen, names = [], ["a", "b", "c"][:methods]
    request = RequestProgress(seen.append, texts=4, names_methods=methods > 1)

    def expected(*first):
        works = [*first, *((stage, name) for name in names for stage in (Stage.CHECKING, Stage.ATTRIBUTING))]
        return {work: data.draw(_SECONDS) for work in works}

    for _ in range(attempts):
        request.restart()
        most = data.draw(st.lists(st.integers(1, 5), max_size=3))
        texts = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
        for name in names:
            progress = MethodProgress(request, name, unit)
            if name == "a" and most:
                request.expect(expected(GENERATING))
                _generate(data, progress, most)
            progress.begin_attributing(sum(texts))
            if name == "a":
                request.expect(expected())
            _attribute(data, progress, texts)
    request.saving()
    assert [each.fraction for each in seen] == sorted(each.fraction for each in seen)
    assert seen[-1].fraction == 1.0
    assert all(each.steps_done <= each.steps_total for each in seen if each.steps_total is not None)
    assert all(each.eta_seconds is None or each.eta_seconds >= 0 for each in seen)
    for one, other in pairwise(seen):  # within a stage, its steps do not go back either
        if (one.stage, one.method) == (other.stage, other.method):
            assert one.steps_done <= other.steps_done
