"""Metrics against numbers worked out by hand, and what must hold for any numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwbench import metrics

inf, nan = math.inf, math.nan
costs_of = st.floats(0, 1e6, allow_subnormal=False)
maybe_cost = st.one_of(costs_of.map(lambda x: x + 1e-3), st.just(inf), st.just(nan))
matrices = st.integers(1, 4).flatmap(
    lambda solvers: st.lists(st.lists(maybe_cost, min_size=solvers, max_size=solvers), min_size=1, max_size=6)
)


@pytest.mark.parametrize(
    ("upper", "lower", "gap"),
    [
        (4.0, 3.0, 0.25),
        (4.0, 4.0, 0.0),
        (4.0, 0.0, 1.0),
        (4.0, -4.0, 2.0),
        (3.0, 4.0, -1 / 3),
        (0.0, 0.0, 0.0),
        (0.0, -1.0, None),
        (None, 1.0, None),
        (1.0, None, None),
        (inf, 1.0, None),
        (1.0, nan, None),
    ],
)
def test_optimality_gap(upper, lower, gap):
    assert metrics.optimality_gap(upper, lower) == gap


@pytest.mark.parametrize(
    ("error", "best", "gap"),
    [(3.0, 2.0, 0.5), (2.0, 2.0, 0.0), (0.0, 0.0, 0.0), (1.0, 0.0, inf), (None, 1.0, None), (inf, 0.0, None)],
)
def test_gap_to_best(error, best, gap):
    assert metrics.gap_to_best(error, best) == gap


@pytest.mark.parametrize(
    ("rounded", "relaxed", "expected"),
    [(4.0, 1.0, 0.75), (1.0, 2.0, -1.0), (0.0, 0.0, 0.0), (0.0, 1.0, None), (4.0, None, None), (nan, 1.0, None)],
)
def test_rounding_error(rounded, relaxed, expected):
    assert metrics.rounding_error(rounded, relaxed) == expected


def test_shifted_geometric_mean():
    assert metrics.shifted_geometric_mean([1, 10, 100]) == pytest.approx(10)
    assert metrics.shifted_geometric_mean([0, 3], shift=1) == pytest.approx(1)  # sqrt(1 * 4) - 1
    assert metrics.shifted_geometric_mean([2, None], charge=8) == pytest.approx(4)
    assert metrics.shifted_geometric_mean([2, nan, inf], charge=4) == pytest.approx(32 ** (1 / 3))
    assert metrics.shifted_geometric_mean([2, None]) == inf
    assert metrics.shifted_geometric_mean([0, 4]) == 0
    assert metrics.shifted_geometric_mean([0, 4], floor=0.25) == pytest.approx(1)
    assert math.isnan(metrics.shifted_geometric_mean([]))
    for bad in ({"values": [-1.0]}, {"values": [1.0], "shift": -1}, {"values": [None], "charge": -1}):
        with pytest.raises(ValueError, match="at least zero"):
            metrics.shifted_geometric_mean(**bad)


def test_median_of_failures():
    assert metrics.median([3, 1, None]) == 3
    assert metrics.median([1, None]) == inf
    assert metrics.median([1, 2]) == 1.5
    assert math.isnan(metrics.median([]))


def test_profiles_by_hand():
    costs = np.array([[1.0, 2.0], [4.0, 1.0], [inf, 3.0], [nan, nan]])
    profile = metrics.performance_profile(costs, [1, 2, 4, inf])
    assert profile.tolist() == [[0.25, 0.5], [0.25, 0.75], [0.5, 0.75], [0.5, 0.75]]  # failures at no tau
    assert metrics.wins(costs).tolist() == [1, 2]
    assert metrics.wins(np.array([[1.0, 1.0 + 1e-9], [2.0, 1.0]])).tolist() == [1, 2]


def test_zero_is_the_best_cost():
    assert metrics.ratios_to_best(np.array([[0.0, 0.0, 1.0]])).tolist() == [[1, 1, inf]]


def test_no_problem_and_no_solver():
    assert metrics.performance_profile(np.empty((0, 2)), [1]).tolist() == [[0, 0]]
    assert metrics.wins(np.empty((3, 0))).tolist() == []


def test_costs_are_checked():
    with pytest.raises(ValueError, match="matrix"):
        metrics.wins(np.ones(3))
    with pytest.raises(ValueError, match="at least zero"):
        metrics.wins(-np.ones((1, 1)))


@pytest.mark.parametrize(
    ("error", "whole", "relative", "ratio"),
    [(3.0, 4.0, 0.75, 0.75), (0.0, 4.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0), (2.0, 0.0, inf, inf), (None, 1.0, None, None)],
)
def test_errors_over_a_yardstick(error, whole, relative, ratio):
    assert metrics.relative_error(error, whole) == relative
    assert metrics.ratio_to_wanda(error, whole) == ratio


@pytest.mark.parametrize(
    ("upper", "lower", "gap"),
    [(4.0, 3.0, 0.25), (4.0, 4.0 + 1e-12, 0.0), (0.0, 0.0, 0.0), (None, 1.0, None), (1.0, None, None)],
)
def test_a_certified_gap_is_never_negative(upper, lower, gap):
    assert metrics.certified_gap(upper, lower) == gap


@given(st.lists(costs_of, min_size=1), st.floats(0, 100))
def test_the_mean_lies_between_the_extremes(values, shift):
    mean = metrics.shifted_geometric_mean(values, shift)
    slack = 1e-9 * (max(values) + shift + 1)
    assert min(values) - slack <= mean <= max(values) + slack


@given(st.lists(costs_of, min_size=1), costs_of)
def test_failing_is_never_better_than_the_charge(values, charge):
    failed = metrics.shifted_geometric_mean([*values, None], 1.0, charge=charge)
    assert failed == pytest.approx(metrics.shifted_geometric_mean([*values, charge], 1.0))


@given(matrices)
def test_profiles_are_distributions(rows):
    costs = np.array(rows)
    profile = metrics.performance_profile(costs, [1, 1.5, 10, 1e300, inf])
    assert (np.diff(profile, axis=0) >= 0).all()
    np.testing.assert_allclose(profile[-1], np.isfinite(costs).mean(axis=0))
    solved = np.isfinite(costs).any(axis=1).sum()
    assert metrics.wins(costs).sum() >= solved
    assert (profile[0] * len(costs) <= metrics.wins(costs) + 1e-9).all()


@given(matrices, st.floats(0.5, 2))
def test_ratios_do_not_depend_on_the_unit(rows, unit):
    costs = np.array(rows)
    np.testing.assert_allclose(metrics.ratios_to_best(costs * unit), metrics.ratios_to_best(costs), rtol=1e-12)
