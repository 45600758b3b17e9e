"""The refit against numpy's least squares on the inputs themselves."""

import numpy as np
import pytest
from layers import PATTERNS, begun, hostile_layers, random_layer

from fwbench.judge import judge
from fwbench.problem import Problem
from fwbench.solvers.start.scores import Magnitude, Wanda
from fwbench.solvers.weight_update import refit
from fwbench.solvers.weight_update.refit import Refit
from fwbench.stage import Context, State


@pytest.mark.parametrize("pattern", ["0.5", "unstructured:0.4", "2:4"])
def test_equals_least_squares(pattern):
    rng = np.random.default_rng(3)
    X, W = rng.standard_normal((8, 40)), rng.standard_normal((5, 8)).astype(np.float32)
    problem = Problem("known", W, X @ X.T / 40, pattern)
    start = Magnitude().run(problem, State(), Context())
    after = Refit(ridge=0.0).run(problem, start, Context())
    for w, keep, new in zip(W, start.keep, after.weights, strict=True):
        best = np.linalg.lstsq(X[keep].T, w @ X, rcond=None)[0]
        np.testing.assert_allclose(new[keep], best, rtol=1e-5)
        assert not new[~keep].any()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_batches_of_a_device_equal_single_rows(pattern, monkeypatch):
    monkeypatch.setattr(refit, "CHUNK_BYTES", 3000)
    for problem in [random_layer(pattern), *hostile_layers(pattern)]:
        keep = Wanda().run(problem, State(), Context()).keep
        single, batched = np.zeros(problem.shape), np.zeros(problem.shape)
        for into, parts in ((single, refit._one_by_one), (batched, refit._in_batches)):
            for rows, changes in parts(problem, keep, 1e-3, "cpu"):
                into[rows] = changes
        np.testing.assert_allclose(batched, single, rtol=1e-6, atol=1e-9 * np.abs(problem.W).max(initial=1))


def test_the_ridge_is_a_penalty_on_the_change():
    problem, ridge = random_layer("0.5"), 0.3
    start = Wanda().run(problem, State(), Context())
    after = Refit(ridge=ridge).run(problem, start, Context())
    penalty = ridge * problem.G.diagonal().mean()
    for w, keep, new in zip(problem.W.astype(float), start.keep, after.weights, strict=True):
        # the gradient of error + penalty vanishes on the kept weights
        gradient = 2 * problem.G @ (new - w) + 2 * penalty * (new - w)
        np.testing.assert_allclose(gradient[keep], 0, atol=1e-5)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("ridge", [0.0, 1e-3, 10.0])
def test_never_worse_than_the_mask(pattern, ridge):
    for problem in [random_layer(pattern), *hostile_layers(pattern)]:
        after = Refit(ridge=ridge).run(problem, begun(problem, Refit), Context())
        found = judge(problem, after.keep, after.weights)
        assert found.verdict == "feasible", problem.name
        assert found.error <= problem.error(after.keep) * (1 + 1e-6) + 1e-7 * problem.total, problem.name


def test_without_a_mask_it_takes_wanda_s():
    problem = random_layer("0.5")
    wanda = Wanda().run(problem, State(), Context())
    assert np.array_equal(Refit().run(problem, begun(problem, Refit), Context()).keep, wanda.keep)


def test_a_deadline_leaves_trained_weights():
    problem = random_layer("0.5")
    after = Refit().run(problem, begun(problem, Refit), Context(deadline=0.0))
    assert after.stopped == "deadline"
    assert np.array_equal(after.weights, np.where(after.keep, problem.W, 0))


def test_bad_ridge():
    with pytest.raises(ValueError, match="at least 0"):
        Refit(ridge=-1.0)
