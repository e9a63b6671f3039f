"""The mathematics of a trace: a random text, seen as a Markov chain, against linear algebra and all of its paths."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attribution_reading.trace_paths import strongest_paths
from attribution_reading.traces import LISTED_HOPS, Shares, shares_of, trace

SUM = 1e-9  # of the acceptance; rows of a few hundred doubles are within 1e-13


@st.composite
def cases(draw):
    """Shares of a random text, its answer and the reasoning before it; some tokens have no scores at all."""
    inputs, generated = draw(st.integers(1, 6)), draw(st.integers(1, 12))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sizes = random.exponential(size=(generated, inputs + generated)) ** draw(st.sampled_from([1, 4]))
    sizes[np.arange(inputs + generated) >= inputs + np.arange(generated)[:, None]] = 0
    sizes[draw(st.lists(st.integers(0, generated - 1), max_size=2))] = 0
    sums = sizes.sum(axis=1, keepdims=True)
    shares = Shares(sizes / np.where(sums > 0, sums, 1), inputs)
    start = draw(st.integers(0, generated - 1))
    answer = range(start, draw(st.integers(start + 1, generated)))
    first = draw(st.integers(0, start))
    return shares, answer, range(first, draw(st.integers(first, start)))


def total(found):
    return found.scores.sum() + found.elsewhere.sum() + found.left.sum()


@given(cases(), st.integers(0, 14))
def test_nothing_is_lost_for_any_number_of_hops(case, hops):
    for max_hops in (hops, None):
        found = trace(*case, max_hops)
        assert total(found) == pytest.approx(1, abs=SUM)
        assert (found.scores >= 0).all()
        assert (found.elsewhere >= 0).all()
        listed = sum(each.scores for each in found.hops)
        assert listed == pytest.approx(found.scores, abs=1e-8)  # without what is too small to list
        assert sum(each.reasoning for each in found.hops) == pytest.approx(found.reasoning, abs=1e-8)
    assert not found.left.any()


@given(cases())
def test_all_hops_are_the_solution_of_the_chain(case):
    """With every generated token that passes mass on among the transient states: e (I - Q)^-1 B."""
    shares, answer, reasoning = case
    passing = [*reasoning, *answer]
    rows, columns = shares.rows[passing], [shares.inputs + each for each in passing]
    start = np.array([0.0] * len(reasoning) + [1 / len(answer)] * len(answer))
    visits = np.linalg.solve((np.eye(len(passing)) - rows[:, columns]).T, start)
    brought = visits @ rows
    found = trace(*case)
    assert found.scores == pytest.approx(brought[: shares.inputs], abs=1e-12)
    assert found.reasoning == pytest.approx(visits[: len(reasoning)], abs=1e-12)


@given(cases(), st.integers(0, 6))
def test_a_number_of_hops_is_that_many_terms_of_the_series(case, hops):
    shares, answer, reasoning = case
    first = shares.inputs
    within = shares.rows[np.ix_(answer, [first + each for each in answer])]
    e = np.linalg.solve((np.eye(len(answer)) - within).T, np.full(len(answer), 1 / len(answer)))
    q = shares.rows[np.ix_(reasoning, [first + each for each in reasoning])]
    w = e @ shares.rows[np.ix_(answer, [first + each for each in reasoning])]
    scores = e @ shares.rows[answer, :first]
    for _ in range(hops):
        scores, w = scores + w @ shares.rows[reasoning, :first], w @ q
    found = trace(*case, hops)
    assert found.scores == pytest.approx(scores, abs=1e-12)
    assert found.left == pytest.approx(w, abs=1e-12)


@given(cases(), st.integers(0, 3))
def test_the_strongest_paths_are_those_of_a_search_through_all(case, hops):
    shares, answer, reasoning = case
    found = []

    def follow(token, mass, left, path):
        row = shares.rows[token]
        found.extend((mass * row[at], (at, *path)) for at in range(shares.inputs) if row[at] > 0)
        for before in range(token):
            if before in answer or (before in reasoning and left):
                column = shares.inputs + before
                follow(before, mass * row[column], left - (before in reasoning), (column, *path))

    for token in answer:
        if token - answer.start < 4:  # else there are too many
            follow(token, 1 / len(answer), hops, (shares.inputs + token,))
    if len(answer) <= 4:
        masses = sorted((mass for mass, _ in found if mass > 0), reverse=True)[:5]
        ours = strongest_paths(*case, hops)
        assert [each.mass for each in ours] == pytest.approx(masses, rel=1e-12)
        assert all((pytest.approx(each.mass), each.columns) in found for each in ours)


@given(cases())
def test_another_answer_has_another_trace(case):
    shares, answer, _ = case
    if len(shares.rows) > 1 and shares.rows[answer.stop - 1].any() and answer.stop > 1 and shares.inputs > 1:
        one = trace(shares, range(answer.stop - 1, answer.stop), range(0))
        other = trace(shares, range(answer.stop - 2, answer.stop - 1), range(0))
        assert not np.allclose(one.scores, other.scores)


def planted():
    """Three tokens of input, reasoning r0 to r3, an answer: it rests on r3 alone, r3 on r1, r1 on input token 2."""
    rows = np.zeros((5, 3 + 5))
    rows[[4, 3, 1], [3 + 3, 3 + 1, 2]] = 1
    rows[[0, 2], 0] = 1
    return Shares(rows, 3)


def test_a_planted_chain_is_followed_hop_by_hop():
    found = trace(planted(), range(4, 5), range(4))
    assert [each.scores.tolist() for each in found.hops] == [[0, 0, 0], [0, 0, 0], [0, 0, 1]]
    assert found.reasoning.tolist() == [0, 1, 0, 1]
    assert trace(planted(), range(4, 5), range(4), 1).left.tolist() == [0, 1, 0, 0]
    (path,) = strongest_paths(planted(), range(4, 5), range(4))
    assert (path.columns, path.mass) == ((2, 3 + 1, 3 + 3, 3 + 4), 1)
    assert strongest_paths(planted(), range(4, 5), range(4), 1) == []
    # r1 is not among what it may pass through: what comes to it stays there, and is told.
    found = trace(planted(), range(4, 5), range(2, 4))
    assert (found.scores.sum(), found.elsewhere.tolist()) == (0, [0, 1, 0, 0, 0])


def test_hops_beyond_those_listed_are_counted():
    """A chain of a hundred tokens, each of which gives half to the input and half to the one before."""
    count = 100
    rows = np.zeros((count, 1 + count))
    rows[:, 0], rows[0, 0] = 0.01, 1
    rows[range(1, count), range(1, count)] = 0.99
    found = trace(Shares(rows, 1), range(count - 1, count), range(count - 1))
    assert len(found.hops) == LISTED_HOPS
    assert found.unlisted == pytest.approx(0.99**LISTED_HOPS)
    assert found.scores == pytest.approx([1])
    limited = trace(Shares(rows, 1), range(count - 1, count), range(count - 1), 80)
    assert total(limited) == pytest.approx(1, abs=SUM)
    assert limited.left.sum() == pytest.approx(0.99**81)


def test_shares_are_of_absolute_scores_of_tokens_before():
    nan = np.nan
    source = np.array([[1, -1], [3, 0]], np.float32)
    target = np.array([[-4, 1], [nan, 2], [nan, nan]], np.float32)
    shares = shares_of({"source": source, "target": target}, 1)
    assert (shares.inputs, shares.invalid) == (3, 0)
    assert shares.rows.tolist() == [[1 / 8, 3 / 8, 4 / 8, 0, 0], [1 / 4, 0, 1 / 4, 2 / 4, 0]]
    dropped = {"source": np.array([False, True]), "target": np.array([True, False, False])}
    assert shares_of({"source": source, "target": target}, 1, dropped).rows.tolist() == [
        [1, 0, 0, 0, 0],
        [1 / 3, 0, 0, 2 / 3, 0],
    ]


def test_a_score_that_is_no_number_is_counted_and_a_score_for_itself_is_not_one():
    target = np.array([[np.nan, 1], [5, 3], [np.nan, 7]], np.float32)  # a unit's score for itself: 5 and 7
    shares = shares_of({"target": target}, 1)
    assert shares.invalid == 1
    assert shares.rows.tolist() == [[0, 0, 0], [1 / 4, 3 / 4, 0]]
    found = trace(shares, range(1, 2), range(1))
    assert found.scores.tolist() == [1 / 4]
    assert found.elsewhere.tolist() == [3 / 4, 0]  # it has no scores to pass it on by
