"""Trimmed alternation against enumeration, planted outliers, its objective written out, and solvers that fail it."""

from itertools import combinations, pairwise

import numpy as np
import pytest
from brute import best_mask
from layers import PATTERNS, pattern_of

from fwbench.problem import Problem, ProblemError
from fwbench.solvers.local_search.swap import Swap
from fwbench.solvers.start.scores import Wanda
from fwbench.solvers.weight_update.refit import Refit
from fwbench.solvers.weight_update.trimmed import trimmed
from fwbench.stage import Context, State


def tokens(n=6, count=9, seed=0):
    """Correlated inputs ``(count, n)``."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, 3)) @ rng.standard_normal((3, n)) + rng.standard_normal((count, n))


def weights(rows=2, n=6, seed=0):
    return np.random.default_rng(seed + 100).standard_normal((rows, n)).astype(np.float32)


def problem_of(W, X, pattern):
    return Problem("tokens", W, X.T @ X / len(X), pattern)


def exact(problem):
    return np.where(best_mask(problem)[1], problem.W, 0)


def swapped(problem):
    return np.where(Swap().run(problem, Wanda().run(problem, State(), Context()), Context()).keep, problem.W, 0)


def refitted(problem):
    return Refit().run(problem, Wanda().run(problem, State(), Context()), Context(dtype="float64")).weights


def mean_error(W, found, X):
    """Of the tokens that stay, token by token."""
    return np.mean([((W - found.weights) @ x) @ ((W - found.weights) @ x) for x in X[found.stays]])


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("solve", [swapped, refitted])
def test_nothing_left_out_is_the_solver_itself(pattern, solve):
    W, X = weights(rows=3, n=12), tokens(n=12, count=40)
    pattern = pattern_of(pattern, 3, 12)
    found = trimmed(W, [X], pattern, solve, part=0)
    problem = problem_of(W, X, pattern)
    np.testing.assert_array_equal(found.weights, solve(problem))
    assert found.stays.all()
    assert found.errors == (problem.error_of_weights(found.weights),)
    few = trimmed(W, [X], pattern, solve, part=0.02)  # of 40 tokens: none
    np.testing.assert_array_equal(few.weights, found.weights)


@pytest.mark.parametrize("pattern", ["0.5", "2:4"])
def test_planted_outliers_are_found_and_the_clean_tokens_mask_is_back(pattern):
    changed = 0
    for seed in range(5):
        W, clean = weights(rows=4, n=8, seed=seed), tokens(n=8, count=190, seed=seed)
        rng = np.random.default_rng(seed)
        where = np.sort(rng.choice(200, 10, replace=False))
        X = np.insert(clean, where - np.arange(10), 30 * rng.standard_normal((10, 8)), axis=0)
        found = trimmed(W, np.array_split(X, 3), pattern, exact, part=0.05)
        assert np.array_equal(np.flatnonzero(~found.stays), where)
        assert np.array_equal(found.weights, exact(problem_of(W, clean, pattern)))
        changed += not np.array_equal(found.weights, exact(problem_of(W, X, pattern)))
    assert changed == 5, "outliers do change the mask"


@pytest.mark.parametrize("solve", [exact, refitted])
def test_the_error_never_rises_and_is_that_of_the_tokens_that_stay(solve):
    rounds = 0
    for seed in range(8):
        W, X = weights(rows=3, n=8, seed=seed), tokens(n=8, count=20, seed=seed)
        found = trimmed(W, [X], "0.5", solve, part=0.2)
        assert all(b <= a * (1 + 1e-12) for a, b in pairwise(found.errors))
        assert found.errors[-1] == pytest.approx(mean_error(W, found, X))
        assert found.stays.sum() == 16
        own = np.square(X @ (W - found.weights).T).sum(axis=1)
        assert own[found.stays].max() <= own[~found.stays].min(), "the largest errors are left out"
        rounds += len(found.errors)
    assert rounds > 2 * 8, "some go on"


def test_every_end_is_a_minimum_in_tokens_and_in_weights():
    """By an exact solver; over all masks and all choices of tokens it is at most a little above the least."""
    least = 0
    for seed in range(12):
        W, X = weights(seed=seed), tokens(seed=seed)
        found = trimmed(W, [X], "0.5", exact, part=2 / 9)
        subsets = [np.isin(np.arange(9), out, invert=True) for out in combinations(range(9), 2)]
        best = min(best_mask(problem_of(W, X[stays], "0.5"))[0] for stays in subsets)
        assert found.errors[-1] >= best * (1 - 1e-9)
        assert found.errors[-1] == pytest.approx(best_mask(problem_of(W, X[found.stays], "0.5"))[0])
        by_tokens = [np.square(X[stays] @ (W - found.weights).T).sum() / 7 for stays in subsets]
        assert found.errors[-1] == pytest.approx(min(by_tokens))
        least += found.errors[-1] <= best * (1 + 1e-9)
    assert least >= 6


def test_batches_do_not_matter():
    W, X = weights(rows=3, n=12), tokens(n=12, count=60)
    whole, parts = (trimmed(W, batches, "0.5", swapped, part=0.2) for batches in ([X], np.array_split(X, 7)))
    assert np.array_equal(whole.stays, parts.stays)
    assert np.array_equal(whole.weights, parts.weights)
    single = trimmed(W, [X.astype(np.float32)], "0.5", swapped, part=0.2)
    assert np.array_equal(single.stays, whole.stays)


def test_of_equal_tokens_the_first_stay():
    found = trimmed(weights(), [np.tile(tokens(count=1), (10, 1))], "0.5", exact, part=0.25)
    assert np.flatnonzero(~found.stays).tolist() == [8, 9]
    assert trimmed(weights(), [tokens(count=100)], "0.5", exact, part=0.29).stays.sum() == 71


def test_a_worse_answer_is_not_taken_and_rounds_end():
    W, X = weights(rows=3, n=12), tokens(n=12, count=60)
    calls = []

    def worse(problem):
        calls.append(problem)
        return swapped(problem) if len(calls) == 1 else np.zeros_like(problem.W)

    found = trimmed(W, [X], "0.5", worse, part=0.2)
    assert len(calls) == 2
    assert np.array_equal(found.weights, swapped(calls[0]))
    assert found.errors[-1] == pytest.approx(mean_error(W, found, X))
    assert len(trimmed(W, [X], "0.5", swapped, part=0.2, rounds=1).errors) <= 3


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"part": -0.1}, "part"),
        ({"part": 1.0}, "part"),
        ({"rounds": 0}, "rounds"),
        ({"batches": iter([tokens()])}, "a list"),
        ({"batches": []}, "no token"),
        ({"batches": [tokens(n=5)]}, "G has shape"),
        ({"batches": [np.full((3, 6), np.nan)]}, "not finite"),
    ],
)
def test_what_makes_no_sense_is_refused(given, why):
    with pytest.raises((ValueError, ProblemError), match=why):
        trimmed(**{"W": weights(), "batches": [tokens()], "pattern": "0.5", "solve": exact, "part": 0.2, **given})
