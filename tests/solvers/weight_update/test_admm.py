"""ADMM: its limit is the least-squares refit, its counts are exact, its masks better than one-shot ones."""

import numpy as np
import pytest
from layers import PATTERNS, hostile_layers, random_layer

from fwbench.judge import judge
from fwbench.problem import Problem
from fwbench.solvers.start.scores import Wanda
from fwbench.solvers.weight_update.admm import ADMM
from fwbench.stage import Context, State


def test_on_a_given_mask_its_limit_is_least_squares():
    rng = np.random.default_rng(3)
    X, W = rng.standard_normal((8, 60)), rng.standard_normal((5, 8)).astype(np.float32)
    problem = Problem("known", W, X @ X.T / 60, "0.5")
    start = Wanda().run(problem, State(), Context())
    after = ADMM(damping=0.0, iterations=2000).run(problem, start, Context())
    assert np.array_equal(after.keep, start.keep)
    for w, keep, new in zip(W, start.keep, after.weights, strict=True):
        np.testing.assert_allclose(new[keep], np.linalg.lstsq(X[keep].T, w @ X, rcond=None)[0], rtol=1e-4)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("stage", [ADMM(), ADMM(iterations=3), ADMM(gradual=0)])
def test_exact_counts_and_finite_weights(pattern, stage):
    for problem in [random_layer(pattern), *hostile_layers(pattern)]:
        for context in (Context(), Context(deadline=0.0)):
            after = stage.run(problem, State(), context)
            assert judge(problem, after.keep, after.weights).verdict == "feasible", problem.name


def test_one_iteration_without_growth_is_wanda_s_mask():
    """The scaled weights are Wanda's scores."""
    problem = random_layer("0.5")
    after = ADMM(iterations=1, gradual=0).run(problem, State(), Context())
    assert np.array_equal(after.keep, Wanda().run(problem, State(), Context()).keep)


def test_growing_masks_are_better_on_correlated_inputs():
    for seed in range(3):
        problem = random_layer("0.6", rows=16, n=48, seed=seed)
        errors = [
            problem.error_of_weights(ADMM(gradual=gradual, iterations=60).run(problem, State(), Context()).weights)
            for gradual in (15, 0)
        ]
        assert errors[0] < errors[1]


def test_all_zero_inputs_leave_the_weights():
    problem = Problem("zero", np.arange(1.0, 9.0).reshape(2, 4), np.zeros((4, 4)), "0.5")
    after = ADMM().run(problem, State(), Context())
    assert np.array_equal(after.weights, np.where(after.keep, problem.W, 0))


def test_bad_parameters():
    for bad in ({"damping": -1.0}, {"rho": 0.0}, {"iterations": 0}):
        with pytest.raises(ValueError, match="must be"):
            ADMM(**bad)
