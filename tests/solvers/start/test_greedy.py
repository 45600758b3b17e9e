"""Greedy against its definition: evaluate f after every possible removal, remove the cheapest, first of equals."""

import numpy as np
import pytest
from layers import PATTERNS, hostile_layers, integer_layer, random_layer

from fwbench.judge import count_reason
from fwbench.problem import Problem
from fwbench.solvers.start.greedy import Greedy
from fwbench.stage import Context, State


def by_definition(problem: Problem) -> np.ndarray:
    """The greedy mask ``keep (rows, n)`` from the layer's error alone."""
    pruned = np.zeros(problem.shape, dtype=bool)
    left = problem.counts.copy()
    group = np.arange(pruned.size) // problem.pattern.group_size(problem.shape)
    while left.any():
        best, cost = -1, np.inf
        for i in range(pruned.size):
            if not pruned.flat[i] and left[group[i]]:
                row = i // problem.n
                trial = pruned.copy()
                trial.flat[i] = True
                rise = problem.row_errors(trial)[row] - problem.row_errors(pruned)[row]
                if rise < cost:
                    best, cost = i, rise
        pruned.flat[best] = True
        left[group[best]] -= 1
    return ~pruned


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("pattern", PATTERNS)
def test_equals_its_definition(pattern, seed):
    problem = integer_layer(pattern, seed=seed)
    after = Greedy().run(problem, State(), Context(threads=2))
    assert np.array_equal(after.keep, by_definition(problem))
    assert after.counters["iterations"] == problem.counts.sum()
    assert after.stopped == ""


@pytest.mark.parametrize("pattern", PATTERNS)
def test_hostile_layers(pattern):
    for problem in hostile_layers(pattern):
        assert not count_reason(problem, Greedy().run(problem, State(), Context()).keep), problem.name


@pytest.mark.parametrize("pattern", ["0.5", "unstructured:0.5"])
def test_threads_and_chunks_do_not_change_the_mask(pattern, monkeypatch):
    problem = random_layer(pattern, rows=9, n=24)
    whole = Greedy().run(problem, State(), Context(threads=1)).keep
    monkeypatch.setattr("fwbench.solvers.start.greedy.CHUNK", 1)
    assert np.array_equal(Greedy().run(problem, State(), Context(threads=2)).keep, whole)


@pytest.mark.parametrize("looks", [1, 3])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_deadline_leaves_a_feasible_mask(pattern, looks, monkeypatch):
    clock = iter([False] * (looks - 1) + [True])
    monkeypatch.setattr("fwbench.solvers.start.greedy.CHUNK", 1)
    monkeypatch.setattr(Context, "expired", lambda self: next(clock))
    problem = random_layer(pattern, rows=8, n=16)
    after = Greedy().run(problem, State(), Context())
    assert after.stopped == "deadline"
    assert not count_reason(problem, after.keep)


def test_sees_interactions():
    X = np.array([[1.0, 0.0], [-2.0, 0.0], [0.0, 1.5]])  # once the first is gone, the second is free
    problem = Problem("cancelling", np.ones((1, 3)), X @ X.T, np.array([2]))
    assert Greedy().run(problem, State(), Context()).keep.tolist() == [[False, False, True]]
