"""Perturbation methods on set functions whose answers are known: identities, brute force and standard errors."""

from __future__ import annotations

from itertools import combinations, permutations
from math import factorial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perturbation import METHODS, Game
from perturbation.game import MOST_EXACT, all_subsets

LARGE = MOST_EXACT + 3


class SetFunction:
    """A function of the subsets of `features` features, with `targets` values, from a table of all of them."""

    def __init__(self, features, targets, seed, table=None):
        self.features = features
        self.table = np.random.default_rng(seed).normal(size=(2**features, targets)) if table is None else table
        self.asked, self.progress = [], []

    def __call__(self, masks):
        assert masks.dtype == bool
        assert masks.shape[1] == self.features
        self.asked.append(len(masks))
        return self.table[masks @ (1 << np.arange(self.features))]

    def of(self, members):
        return self.table[sum(1 << each for each in members)]

    def game(self, rows_at_once=7):
        return Game(self, self.features, rows_at_once, lambda done, total: self.progress.append((done, total)))


def random_functions(most=6):
    return st.builds(SetFunction, st.integers(1, most), st.integers(1, 3), st.integers(0, 2**32 - 1))


def additive(features, seed):
    weights = np.random.default_rng(seed).normal(size=(features, 2))
    return weights, SetFunction(features, 2, seed, all_subsets(features) @ weights + [0.5, -2.0])


def marginals(function, feature):
    """v(S + j) - v(S) of every S without the feature j, with the size of S."""
    others = [each for each in range(function.features) if each != feature]
    for size in range(len(others) + 1):
        for chosen in combinations(others, size):
            yield size, function.of([*chosen, feature]) - function.of(chosen)


@settings(deadline=None, max_examples=40)
@given(random_functions())
def test_exact_values_are_those_of_their_definitions(function):
    n, game = function.features, function.game()
    weights = [factorial(size) * factorial(n - size - 1) / factorial(n) for size in range(n)]
    shapley = [sum(weights[size] * each for size, each in marginals(function, j)) for j in range(n)]
    banzhaf = [sum(each for _, each in marginals(function, j)) / 2 ** (n - 1) for j in range(n)]
    every = range(n)
    left_out = [function.of(every) - function.of([each for each in every if each != j]) for j in range(n)]
    for name, expected in {"shapley": shapley, "banzhaf": banzhaf, "leave_one_out": left_out}.items():
        found = METHODS[name].run(game)
        assert found.is_exact
        np.testing.assert_allclose(found.scores, expected, rtol=0, atol=1e-12)
        np.testing.assert_array_equal(found.at_all, function.of(every))


@settings(deadline=None, max_examples=20)
@given(random_functions(5))
def test_shapley_values_are_the_mean_over_all_orders(function):
    n = function.features
    expected = np.zeros((n, function.table.shape[1]))
    for order in permutations(range(n)):
        for place, feature in enumerate(order):
            expected[feature] += function.of(order[: place + 1]) - function.of(order[:place])
    np.testing.assert_allclose(METHODS["shapley"].run(function.game()).scores, expected / factorial(n), atol=1e-12)


@settings(deadline=None, max_examples=40)
@given(random_functions())
def test_shapley_values_sum_to_the_whole_and_banzhaf_values_are_the_nearest_linear_function(function):
    shapley, banzhaf = (METHODS[name].run(function.game()) for name in ("shapley", "banzhaf"))
    np.testing.assert_allclose(shapley.scores.sum(0), function.table[-1] - function.table[0], atol=1e-12)
    subsets = all_subsets(function.features)
    design = np.column_stack([subsets, np.ones(len(subsets))])
    nearest = np.linalg.lstsq(design, function.table, rcond=None)[0][:-1]
    np.testing.assert_allclose(banzhaf.scores, nearest, atol=1e-9)


@pytest.mark.parametrize("features", [4, LARGE])
@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_gives_the_weights_of_an_additive_function(name, features):
    weights, function = additive(features, seed=features)
    found = METHODS[name].run(function.game(), seed=5)
    if name == "banzhaf" and not found.is_exact:  # the others' shares in its two means are not equal
        assert np.all(np.abs(found.scores - weights) <= 4 * found.standard_errors)
        return
    np.testing.assert_allclose(found.scores, weights, atol=1e-12)
    if found.standard_errors is not None:
        np.testing.assert_allclose(found.standard_errors, 0, atol=1e-12)


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 6), st.integers(0, 2**32 - 1))
def test_equal_features_have_equal_scores_and_a_dummy_has_none(features, seed):
    """A function of the number of the first two features that are kept, and not of the last."""
    rng, subsets = np.random.default_rng(seed), all_subsets(features + 1)
    numbers = rng.normal(size=(3, 2 ** (features - 2)))
    table = numbers[subsets[:, :2].sum(1), subsets[:, 2:-1] @ (1 << np.arange(features - 2))][:, None]
    function = SetFunction(features + 1, 1, seed, table)
    for method in METHODS.values():
        scores = method.run(function.game()).scores
        np.testing.assert_allclose(scores[0], scores[1], atol=1e-12)
        np.testing.assert_allclose(scores[-1], 0, atol=1e-12)


@pytest.mark.parametrize("arguments", [{"n_samples": 40}, {"n_samples": 40, "sampling": "plain"}, {"n_samples": 7}])
@pytest.mark.parametrize("seed", range(5))
def test_sampled_shapley_values_are_near_the_exact_ones_and_add_up(arguments, seed):
    function = SetFunction(LARGE, 3, seed)
    exact = exact_shapley(function)
    found = METHODS["shapley"].run(function.game(), seed=seed, **arguments)
    np.testing.assert_allclose(found.scores.sum(0), function.table[-1] - function.table[0], atol=1e-12)
    if arguments["n_samples"] == 40:
        assert np.all(np.abs(found.scores - exact) <= 4 * found.standard_errors)
    np.testing.assert_array_equal(found.at_none, function.table[0])
    rows = METHODS["shapley"].rows(LARGE, **arguments)
    assert sum(function.asked) == rows == 2 + (arguments["n_samples"] + arguments["n_samples"] % 2) * (LARGE - 1)


@pytest.mark.parametrize("seed", range(5))
def test_sampled_banzhaf_values_are_near_the_exact_ones(seed):
    function = SetFunction(LARGE, 3, seed)
    subsets = all_subsets(LARGE)
    exact = np.where(subsets, 1.0, -1.0).T @ function.table / 2 ** (LARGE - 1)
    found = METHODS["banzhaf"].run(function.game(), seed=seed, n_samples=400)
    assert np.all(np.abs(found.scores - exact) <= 4 * found.standard_errors)


@pytest.mark.parametrize(("name", "arguments"), [("shapley", {"n_samples": 20}), ("banzhaf", {"n_samples": 200})])
def test_standard_errors_are_the_spread_of_the_scores(name, arguments):
    function = SetFunction(LARGE, 1, 3)
    runs = [METHODS[name].run(function.game(), seed=seed, **arguments) for seed in range(300)]
    spread = np.std([each.scores for each in runs], axis=0, ddof=1)
    told = np.sqrt(np.mean([each.standard_errors**2 for each in runs], axis=0))
    # The relative standard error of a standard deviation of 300 numbers is 1 / sqrt(600), or 4 %.
    assert np.all(np.abs(told / spread - 1) < 4 * 0.05)


@pytest.mark.parametrize("features", [3, LARGE])
@pytest.mark.parametrize("name", sorted(METHODS))
def test_rows_are_asked_in_batches_and_counted_before(name, features):
    function = SetFunction(features, 2, 0)
    method = METHODS[name]
    once = method.run(function.game(10**6), seed=4)
    assert function.asked == [method.rows(features)]
    function.asked.clear()
    function.progress.clear()
    again = method.run(function.game(5), seed=4)
    np.testing.assert_array_equal(once.scores, again.scores)
    assert max(function.asked) == min(5, method.rows(features))
    assert sum(function.asked) == method.rows(features)
    dones, totals = zip(*function.progress, strict=True)
    assert set(totals) == {method.rows(features)}
    assert list(dones) == sorted(set(dones))
    assert dones[-1] == method.rows(features)


@pytest.mark.parametrize("name", ["shapley", "banzhaf"])
def test_a_seed_gives_the_same_scores_and_another_one_others(name):
    function = SetFunction(LARGE, 2, 0)
    first, same, other = (METHODS[name].run(function.game(), seed=seed).scores for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, same)
    assert not np.allclose(first, other)


def test_the_callable_may_cancel_between_batches():
    class StoppedError(Exception):
        pass

    asked = []

    def answer(masks):
        asked.append(len(masks))
        if len(asked) == 3:
            raise StoppedError
        return np.zeros((len(masks), 1))

    with pytest.raises(StoppedError):
        METHODS["shapley"].run(Game(answer, LARGE, 8))
    assert asked == [8, 8, 8]


def test_one_sample_has_no_standard_error():
    found = METHODS["shapley"].run(SetFunction(LARGE, 1, 0).game(), n_samples=2)
    assert np.isnan(found.standard_errors).all()
    assert np.isfinite(found.scores).all()


def test_a_game_without_features_is_refused():
    with pytest.raises(ValueError, match="at least one feature"):
        SetFunction(0, 1, 0).game()


def exact_shapley(function):
    """From the table of all subsets, by the definition."""
    n, subsets = function.features, all_subsets(function.features)
    sizes, numbers = subsets.sum(1), np.arange(len(subsets))
    found = []
    for feature in range(n):
        without = ~subsets[:, feature]
        weights = np.array([factorial(size) * factorial(n - size - 1) / factorial(n) for size in range(n)])
        gained = function.table[numbers[without] | 1 << feature] - function.table[without]
        found.append(weights[sizes[without]] @ gained)
    return np.array(found)
