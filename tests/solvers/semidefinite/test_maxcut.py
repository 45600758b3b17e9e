"""The semidefinite program of max-cut against Clarabel, in both ways of finding a step's length."""

from __future__ import annotations

import time

import cvxpy
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fwbench.solvers.semidefinite import maxcut


def matrix(seed: int, n: int, condition: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    X = np.logspace(0, -np.log10(condition) / 2, n)[:, None] * rng.standard_normal((n, 2 * n))
    return X @ X.T / n


@pytest.mark.parametrize("large", [0, 300])
@pytest.mark.parametrize(("n", "condition"), [(2, 1.0), (7, 1.0), (20, 1.0), (20, 1e6), (45, 1e3)])
def test_against_clarabel(monkeypatch, large, n, condition):
    monkeypatch.setattr(maxcut, "LARGE", large)
    C = matrix(n, n, condition)
    point = maxcut.interior_point(torch.tensor(C), 0.02, lambda y, gap: gap <= 1e-7 * abs(float(y.sum())))
    assert point.converged
    y = cvxpy.Variable(n)
    best = cvxpy.Problem(cvxpy.Maximize(cvxpy.sum(y)), [C - cvxpy.diag(y) >> 0]).solve("CLARABEL")
    assert float(point.y.sum()) == pytest.approx(best, rel=1e-6)
    X = point.X.numpy()
    np.testing.assert_allclose(X.diagonal(), 1, rtol=1e-9)
    assert np.linalg.eigvalsh(X)[0] >= -1e-12
    assert float((X * C).sum()) == pytest.approx(best, rel=1e-6)
    Z = C - np.diag(point.y.numpy())
    np.testing.assert_allclose(point.inverse.numpy() @ Z, np.eye(n), atol=1e-4)


@settings(max_examples=30)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 12), steps=st.integers(0, 15), large=st.sampled_from([0, 300]))
def test_feasible_and_rising_at_any_step(seed, n, steps, large):
    """Wherever it is ended, ``y`` bounds and ``X`` is bounded; both come nearer to each other."""
    C, seen = matrix(seed, n), []

    def done(y: torch.Tensor, gap: float) -> bool:
        seen.append((float(y.sum()), gap))
        return len(seen) > steps

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(maxcut, "LARGE", large)
        point = maxcut.interior_point(torch.tensor(C), 0.02, done)
    assert np.linalg.eigvalsh(C - np.diag(point.y.numpy()))[0] >= -1e-12
    assert np.linalg.eigvalsh(point.X.numpy())[0] >= -1e-12
    dual, gap = seen[-1]
    assert gap >= -1e-9
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], (50, n))
    assert dual <= ((signs @ C) * signs).sum(1).min() + 1e-9
    assert seen[-1][1] <= seen[0][1] + 1e-12


def test_indefinite_and_hard_matrices():
    for C in (np.diag([1.0, -3.0, 2.0]), -np.ones((4, 4)), np.zeros((3, 3)), 1e6 * matrix(0, 9)):
        scale = max(float(np.abs(C).max()), 1.0)
        point = maxcut.interior_point(torch.tensor(C), 0.02, lambda _, gap, s=scale: gap <= 1e-6 * s)
        assert np.linalg.eigvalsh(C - np.diag(point.y.numpy()))[0] >= -1e-9 * scale
        best = min(float(s @ C @ s) for s in np.array(np.meshgrid(*[[-1.0, 1.0]] * len(C))).reshape(len(C), -1).T)
        assert float(point.y.sum()) <= best + 1e-9 * scale


def test_the_deadline():
    point = maxcut.interior_point(torch.tensor(matrix(0, 30)), 0.02, lambda *_: False, time.monotonic())
    assert (point.steps, point.converged) == (0, False)
    assert np.linalg.eigvalsh(matrix(0, 30) - np.diag(point.y.numpy()))[0] > 0
