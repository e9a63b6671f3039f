"""Progress of an attribution, without a model: the fraction never decreases, in the method's unit, with an ETA."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attribution.run.progress import ProgressCounter, Unit
from models import Stage


def counter(unit=Unit.STEP):
    seen = []
    return ProgressCounter(seen.append, unit), seen


def test_steps_of_several_texts():
    progress, seen = counter()
    progress.begin_attributing(5)
    progress.expect(10.0)
    progress.begin_text(2)
    progress.forward_begins()  # not counted: this method counts steps
    progress.steps_done(1)
    progress.steps_done(2)
    progress.begin_text(3)
    progress.steps_done(2)
    assert {each.stage for each in seen} == {Stage.ATTRIBUTING}
    assert [(each.steps_done, each.steps_total) for each in seen] == [(0, 5), (1, 5), (2, 5), (2, 5), (4, 5)]
    assert [each.fraction for each in seen] == [0.0, 0.2, 0.4, 0.4, 0.8]
    assert [each.eta_seconds for each in seen] == [10.0, 8.0, 6.0, 6.0, 2.0]
    assert progress.latest is seen[-1]


def test_without_an_expectation_there_is_no_eta():
    progress, seen = counter()
    progress.begin_attributing(2)
    progress.begin_text(2)
    progress.steps_done(1)
    assert [each.eta_seconds for each in seen] == [None, None]


def test_generated_tokens_are_counted_for_each_text():
    progress, seen = counter()
    for most in (3, None):
        progress.begin_generating(most)
        progress.forward_begins()
        progress.forward_begins()
    assert {each.stage for each in seen} == {Stage.GENERATING}
    assert [(each.steps_done, each.steps_total) for each in seen] == [(1, 3), (2, 3), (1, None), (2, None)]
    assert [each.fraction for each in seen] == [pytest.approx(1 / 3), pytest.approx(2 / 3), 0.0, 0.0]
    assert {each.eta_seconds for each in seen} == {None}


def test_forwards_of_a_method_with_one_step():
    progress, seen = counter(Unit.FORWARD)
    progress.begin_attributing(4)
    progress.expect(4.0)
    progress.begin_text(2)
    progress.steps_done(1)  # not counted: this method counts forward passes
    for _ in range(3):  # one more than expected
        progress.forward_begins()
    progress.begin_text(2)
    progress.forward_begins()
    assert [each.steps_done for each in seen] == [0, 1, 2, 2, 3]
    assert [each.eta_seconds for each in seen] == [4.0, 3.0, 2.0, 2.0, 1.0]


@pytest.mark.parametrize("unit", [Unit.STEP, Unit.FORWARD])
def test_parts_of_a_text_count_in_either_unit(unit):
    progress, seen = counter(unit)
    progress.begin_attributing(8)
    progress.begin_text(4)
    for part in (0.25, 0.5, 1.0):
        progress.part_done(part)
    progress.begin_text(4)
    progress.part_done(0.5)
    assert [each.steps_done for each in seen] == [0, 1, 2, 4, 4, 6]


def test_a_text_that_is_attributed_again_does_not_count_again():
    progress, seen = counter()
    progress.begin_attributing(4)
    progress.begin_text(4)
    for steps in (1, 2, 3, 1, 2, 3, 4):
        progress.steps_done(steps)
    assert [each.steps_done for each in seen] == [0, 1, 2, 3, 4]


def test_forwards_between_generation_and_the_first_text_are_not_counted():
    """The first job on a model measures the model's speed in this stage; those forward passes are not progress."""
    for unit in Unit:
        progress, seen = counter(unit)
        progress.begin_generating(2)
        progress.forward_begins()
        progress.begin_attributing(1)
        progress.forward_begins()
        progress.begin_text(1)
        assert [(each.stage, each.steps_done) for each in seen] == [(Stage.GENERATING, 1), (Stage.ATTRIBUTING, 0)]


def test_preparing_keeps_the_count():
    progress, seen = counter()
    progress.begin_attributing(2)
    progress.expect(2.0)
    progress.begin_text(2)
    progress.steps_done(1)
    with progress.preparing():
        pass
    stages = [(each.stage, each.steps_done, each.eta_seconds) for each in seen[2:]]
    assert stages == [(Stage.PREPARING, 1, None), (Stage.ATTRIBUTING, 1, 1.0)]


def test_saving_is_the_whole():
    progress, seen = counter()
    progress.begin_attributing(3)
    progress.expect(3.0)
    progress.begin_text(3)
    progress.steps_done(2)
    saving = progress.saving()
    assert (saving.stage, saving.fraction, saving.eta_seconds, saving.steps_total) == (Stage.SAVING, 1.0, None, 3)
    assert saving not in seen


def test_attempts_share_a_text():
    progress, seen = counter()
    progress.begin_attributing(8)
    progress.expect(8.0)
    progress.begin_text(4)
    for begin, end in ((0.0, 0.5), (0.5, 0.75)):
        progress.begin_attempt(begin, end)
        for steps in (1, 2, 3, 4):
            progress.steps_done(steps)
    assert [each.steps_done for each in seen] == [0, 1, 2, 3]
    progress.begin_text(4)  # no longer divided
    progress.steps_done(3)
    assert progress.latest.steps_done == 7


_CALLS = st.one_of(
    st.tuples(st.just("steps_done"), st.integers(0, 9)),
    st.tuples(st.just("part_done"), st.floats(0, 1)),
    st.tuples(st.just("forward_begins")),
    st.tuples(st.just("begin_attempt"), st.floats(0, 0.5), st.floats(0.5, 1)),
    st.tuples(st.just("begin_text")),
)


@given(unit=st.sampled_from(Unit), texts=st.lists(st.integers(1, 5), min_size=1, max_size=4), calls=st.lists(_CALLS))
def test_never_back_and_never_beyond_the_total(unit, texts, calls):
    progress, seen = counter(unit)
    progress.begin_attributing(sum(texts))
    progress.expect(7.0)
    rest = iter(texts)
    progress.begin_text(next(rest))
    for name, *arguments in calls:
        if name != "begin_text":
            getattr(progress, name)(*arguments)
        elif (units := next(rest, None)) is not None:
            progress.begin_text(units)
    assert [each.fraction for each in seen] == sorted(each.fraction for each in seen)
    assert all(each.steps_done <= each.steps_total == sum(texts) for each in seen)
    assert all(each.eta_seconds == pytest.approx(7.0 * (1 - each.fraction), abs=1e-3) for each in seen)
