"""ALPS against the paper's equations with explicit solves, and its refit against direct ones."""

import numpy as np
import pytest
import torch
from layers import PATTERNS, arriving, hostile_layers, hostile_targets, random_layer

from fwbench import patterns
from fwbench.judge import judge
from fwbench.problem import Problem
from fwbench.solvers.start.scores import Wanda
from fwbench.solvers.weight_update import alps
from fwbench.solvers.weight_update.admm import ADMM
from fwbench.solvers.weight_update.alps import ALPS
from fwbench.solvers.weight_update.refit import Refit
from fwbench.stage import Context, State


def published(problem, Y, X, ridge, rho):
    """Equations 4, 27, 28: weights as columns, systems solved anew; the masks in the order of the iterations."""
    n = len(X)
    penalty = ridge * (X * X).sum() / n
    H = X @ X.T + penalty * np.eye(n)
    E = np.diag(np.diag(H) ** -0.5)
    start = np.linalg.inv(E) @ problem.W.T.astype(float)
    right = E @ (X @ Y.T + penalty * problem.W.T)
    D, V, masks = start, np.zeros(start.shape), [np.ones(start.shape, bool)]
    while True:
        W = np.linalg.solve(E @ H @ E + rho * np.eye(n), right - V + rho * D)
        near = W + V / rho
        pruned = patterns.smallest(problem.pattern.groups(np.abs(near.T)), problem.counts).reshape(problem.shape).T
        D = np.where(pruned, 0, near)
        V = V + rho * (W - D)
        masks.append(~pruned)
        if (len(masks) - 1) % 3 == 0:
            changed, kept = (masks[-1] != masks[-4]).sum(), (~pruned).sum()
            if not changed:
                return masks, E @ D
            rho *= 1.3 if changed >= 0.1 * kept else 1.2 if changed >= 0.005 * kept else 1.1


@pytest.mark.parametrize("pattern", ["0.5", "0.6", "2:4", "unstructured:0.4"])
def test_iterations_are_the_paper_s(pattern):
    for seed, wrong in ((0, 1e-12), (1, 0.5)):
        problem, Y, X = arriving(pattern, rows=6, n=24, seed=seed, wrong=wrong)
        masks, D = published(problem, Y, X, 0.01, 0.1)
        after = ALPS(gradients=0).run(problem, State(), Context())
        assert after.counters["iterations"] == len(masks) - 1 >= 6
        assert np.array_equal(after.keep, masks[-1].T)
        np.testing.assert_allclose(after.weights, D.T, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("ridge", [0.01, 1.0])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_conjugate_gradients_end_at_a_direct_solve(pattern, ridge):
    for problem in (random_layer(pattern, rows=5, n=24), arriving(pattern, rows=5, n=24)[0]):
        start = Wanda().run(problem, State(), Context())
        found = ALPS(ridge=ridge, gradients=60).run(problem, start, Context())
        direct = Refit(ridge=ridge).run(problem, start, Context())
        assert np.array_equal(found.keep, start.keep)
        np.testing.assert_allclose(found.weights, direct.weights, rtol=1e-6, atol=1e-6)


def test_each_row_s_residual_ends_at_zero_to_1e_6():
    problem = random_layer("0.5", rows=8, n=32)
    H = problem.G / np.sqrt(np.outer(problem.G.diagonal(), problem.G.diagonal())) + 0.01 * np.eye(32)
    H /= 1.01
    keep = Wanda().run(problem, State(), Context()).keep
    right = torch.from_numpy(problem.W @ H)
    V, steps, _ = alps.refine(
        torch.from_numpy(H), right, torch.zeros(8, 32).double(), torch.from_numpy(keep), 50, Context()
    )
    assert steps == 50
    for row, mask in enumerate(keep):
        expected = np.linalg.solve(H[np.ix_(mask, mask)], right[row].numpy()[mask])
        np.testing.assert_allclose(V[row].numpy()[mask], expected, rtol=1e-6, atol=1e-9)
        assert not V[row].numpy()[~mask].any()


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("stage", [ALPS(), ALPS(iterations=2), ALPS(ridge=0.0)], ids=str)
def test_exact_counts_and_finite_weights(pattern, stage):
    for problem in [random_layer(pattern), *hostile_layers(pattern)]:
        for context in (Context(), Context(deadline=0.0)):
            after = stage.run(problem, State(), context)
            assert judge(problem, after.keep, after.weights).verdict == "feasible", problem.name


@pytest.mark.parametrize("pattern", PATTERNS)
def test_on_a_mask_it_is_never_worse(pattern):
    for problem in (*hostile_layers(pattern), *hostile_targets(pattern)):
        start = Wanda().run(problem, State(), Context())
        for steps in (0, 1, 10):
            after = ALPS(gradients=steps).run(problem, start, Context())
            before, found = problem.error(start.keep), problem.error_of_weights(after.weights)
            slack = 1e-6 * before + 1e-7 * (0 if problem.offset is None else problem.offset.sum())
            assert found <= before + slack, (problem.name, steps)


def test_it_is_better_than_masks_that_only_grow():
    for seed in range(3):
        problem = random_layer("0.7", rows=16, n=48, seed=seed)
        errors = [
            problem.error_of_weights(
                Refit(ridge=1e-3).run(problem, stage.run(problem, State(), Context()), Context()).weights
            )
            for stage in (ALPS(), ADMM())
        ]
        assert errors[0] < errors[1]


def test_nothing_pruned_and_all_zero_inputs_leave_the_weights():
    problem = random_layer("0.0", n=8)
    np.testing.assert_allclose(ALPS().run(problem, State(), Context()).weights, problem.W, rtol=1e-6)
    problem = Problem("zero", np.arange(1.0, 9.0).reshape(2, 4), np.zeros((4, 4)), "0.5")
    after = ALPS().run(problem, State(), Context())
    assert np.array_equal(after.weights, np.where(after.keep, problem.W, 0))


def test_bad_parameters():
    for bad in ({"ridge": -1.0}, {"rho": 0.0}, {"iterations": 0}, {"gradients": -1}):
        with pytest.raises(ValueError, match="must be"):
            ALPS(**bad)
