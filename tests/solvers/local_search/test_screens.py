"""The screens of ``swap`` in float32 against every exchange in float64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layers import hostile_layers, integer_layer, random_layer

from fwbench.problem import Problem
from fwbench.solvers.local_search import screens
from fwbench.solvers.numerics.extremes import largest_of_positive, smallest


def screened(
    w: np.ndarray, G: np.ndarray, gram: screens.Gram, pruned: np.ndarray
) -> tuple[screens.Row, np.ndarray, np.ndarray]:
    """The row after a screening, ``a``, and ``b_j - 2Q_ij``, infinite where ``j`` is pruned."""
    Q = np.outer(w, w) * G
    q, g = np.diag(Q).copy(), Q @ pruned
    row = screens.row_of(w, gram)
    screens.screen(row, q, g, np.where(pruned, 0.0, np.inf), np.where(pruned, np.inf, 0.0))
    return row, q - 2 * g, np.where(pruned, np.inf, q + 2 * g - 2 * Q)


def check(problem: Problem, rng: np.random.Generator) -> int:
    """That no line gains more than its bound, and that no scan misses the best of a line; the number of lines."""
    gram, lines = screens.gram_of(problem.G), 0
    for w in problem.W.astype(np.float64):
        pruned = rng.random(problem.n) < rng.choice([0.05, 0.5, 0.95])
        if pruned.all():
            continue
        row, a, changes = screened(w, problem.G, gram, pruned)
        for i in np.flatnonzero(pruned):
            j = changes[i].argmin()
            assert float(row.bound[i]) * row.unit <= a[i] + changes[i, j], problem.name
            level = screens.from_above(row, changes[i, j])
            assert screens.may_reach(row, gram.lines[i], i, level), problem.name
            screens.best_partner(row, gram.lines[i], i)
            assert row.values[j] <= level, problem.name
            assert screens.count_upto(row.values, level) == (row.values <= level).sum()
            lines += 1
    return lines


@settings(max_examples=60)
@given(seed=st.integers(0, 10_000))
def test_no_exchange_gains_more_than_its_bound(seed):
    rng = np.random.default_rng(seed)
    problem = random_layer("0.5", rows=4, n=int(rng.integers(33, 70)), seed=seed, condition=10 ** (seed % 10))
    assert check(problem, rng) > 0


@pytest.mark.parametrize("seed", range(5))
def test_no_exchange_gains_more_than_its_bound_on_hostile_layers(seed):
    rng = np.random.default_rng(seed)
    for problem in [*hostile_layers("0.5", n=48), integer_layer("0.5", n=48, seed=seed)]:
        assert check(problem, rng) > 0


def test_a_scan_lets_through_little_more_than_what_reaches_the_level():
    problem = random_layer("0.5", rows=1, n=64)
    pruned = np.arange(64) % 2 == 0
    gram = screens.gram_of(problem.G)
    row, _, changes = screened(problem.W[0].astype(np.float64), problem.G, gram, pruned)
    for i in np.flatnonzero(pruned):
        level = screens.from_above(row, changes[i].min() - 1e-4 * row.unit)
        assert not screens.may_reach(row, gram.lines[i], i, level)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@settings(max_examples=60)
@given(data=st.data())
def test_the_least_and_the_largest_of_numbers(kind, data):
    width = 8 * np.dtype(kind).itemsize
    numbers = st.floats(allow_nan=False, width=width)
    values = np.array(data.draw(st.lists(numbers, min_size=1, max_size=40)), kind)
    before = values.copy()
    assert smallest(values) == before.min()
    assert np.array_equal(values, before)
    positive = np.abs(values)
    assert largest_of_positive(positive) == np.abs(before).max()
    assert np.array_equal(positive, np.abs(before))
