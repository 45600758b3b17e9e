"""Projections from call to call, and the entrywise kernels of the alternating directions, against plain formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fwbench.solvers.semidefinite import doubly_nonnegative as dnn
from fwbench.solvers.semidefinite import lift_numba, mccormick
from fwbench.solvers.semidefinite.psd_projection import AFRESH, PositivePart, Projection


def symmetric(values: np.ndarray, seed: int = 0) -> np.ndarray:
    basis = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(values),) * 2))[0]
    return (basis * values) @ basis.T


def positive(W: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(W)
    return (vectors * values.clip(0)) @ vectors.T


@pytest.mark.parametrize("positives", [1, 12, 50, 90])
def test_a_walk_of_matrices_is_followed(positives, monkeypatch):
    """Steps of a thousandth, over spectra with outliers below, with few positive eigenvalues and with many."""
    n, rng = 160, np.random.default_rng(positives)
    values = np.r_[-np.logspace(2, -3, n - positives), np.logspace(-3, 1, positives)]
    W = symmetric(values)
    part, begun = PositivePart(), []
    monkeypatch.setattr(PositivePart, "_begin", lambda self, W, do=PositivePart._begin: (begun.append(1), do(self, W)))
    for _ in range(AFRESH + 5):
        step = rng.standard_normal((n, n))
        W += 1e-3 * np.linalg.norm(W) / np.linalg.norm(step + step.T) * (step + step.T)
        found = part(torch.tensor(W, dtype=torch.float32)).numpy()
        assert np.linalg.norm(found - positive(W)) < 2e-3 * np.linalg.norm(W)
        assert (found == found.T).all()
        assert np.linalg.eigvalsh(found.astype(float))[0] > -1e-5 * np.abs(W).max()
    if positives < n // 4:
        assert 2 <= len(begun) <= 12
    else:
        assert len(begun) == AFRESH + 5  # following so many vectors would cost more


def test_a_jump_is_no_worse():
    """Matrices that have nothing to do with the last one, zeros among them, and one that is definite."""
    n = 150
    part = PositivePart()
    part(torch.tensor(symmetric(np.r_[-np.ones(n - 5), np.ones(5)]), dtype=torch.float32))
    hostile = [symmetric(np.r_[-np.ones(n - 40), np.ones(40)], seed=4), np.zeros((n, n)), -np.eye(n), np.eye(n)]
    for W in hostile:
        found = part(torch.tensor(W, dtype=torch.float32)).numpy()
        assert np.linalg.norm(found - positive(W)) <= 2e-2 * np.linalg.norm(W)


def test_the_null_space_is_kept():
    W = torch.tensor(symmetric(np.linspace(-3, 1, 120)), dtype=torch.float32)[None]
    face = torch.linalg.qr(torch.randn(1, 120, 3, generator=torch.Generator().manual_seed(0)))[0]
    project = Projection(face)
    for _ in range(3):
        found = project(W)
        assert float((found @ face).abs().max()) < 1e-5
        assert float(torch.linalg.eigvalsh(found[0])[0]) > -1e-5


def test_kernels_against_torch():
    rng = np.random.default_rng(0)
    rows, n = 2, 9
    S, P, C, M = (
        torch.tensor(A + A.transpose(0, 2, 1), dtype=torch.float32)
        for A in (rng.standard_normal((rows, size, size)) for size in (n + 1, *[2 * n + 1] * 3))
    )
    t = torch.tensor(rng.random((rows, 2 * n + 1)) + 0.1, dtype=torch.float32)
    for found, wanted in (
        (lift_numba.row_by_row(lift_numba.lifted, S, t), mccormick.lifted(S, t)),
        (lift_numba.row_by_row(lift_numba.lowered, P, t), mccormick.lowered(P, t)),
        (dnn.prox_entries_by_row(P, C, M), dnn.prox_entries(P, C, M)),
    ):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("offset", [0, 4])
def test_the_nearest_matrix_of_the_wanted(offset):
    """Against a general solver, where the last point and multiplier are zero but for the relaxation's factor."""
    import cvxpy

    rng = np.random.default_rng(5)
    n = 8
    W = rng.standard_normal((n + 1, n + 1))
    W, t = (W + W.T) / 2, rng.random(n + 1) + 0.5
    nothing = torch.zeros(1, n + 1, n + 1)
    found = dnn.prox(
        nothing, torch.tensor(-W[None], dtype=torch.float32), nothing, torch.tensor(t[None]).float(), offset
    )
    Y = cvxpy.Variable((n + 1, n + 1), symmetric=True)
    conditions = [Y >= 0, Y[0, 0] == 1, cvxpy.diag(Y) == Y[0]]
    if offset:
        conditions += [Y[1 + i, 1 + i + offset] == 0 for i in range(n - offset)]
    cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(cvxpy.multiply(np.outer(t, t), Y) - W)), conditions).solve(
        "CLARABEL"
    )
    np.testing.assert_allclose(found[0] / dnn.RELAXATION, np.outer(t, t) * Y.value, atol=1e-4)
