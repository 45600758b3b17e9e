"""SparseGPT against optimal brain surgeon by explicit inverses, and against the pattern's exact counts."""

import numpy as np
import pytest
import torch
from layers import PATTERNS, hostile_layers, random_layer

from fwbench import stage
from fwbench.judge import judge
from fwbench.problem import Problem
from fwbench.solvers.start.scores import Wanda
from fwbench.solvers.weight_update import sparsegpt
from fwbench.solvers.weight_update.refit import Refit
from fwbench.solvers.weight_update.sparsegpt import SparseGPT, inverse_factor
from fwbench.stage import Context, State


def surgeon(W, H, per_block, blocksize, pattern=None):
    """Frantar and Alistarh's algorithm 1 as the paper derives it: the inverse of what is left, column by column."""
    W, n = W.astype(np.float64).copy(), len(H)
    pruned = np.zeros(W.shape, bool)
    for j in range(n):
        if j % blocksize == 0:
            end = min(j + blocksize, n)
            cost = np.empty((len(W), end - j))
            for i in range(j, end):
                cost[:, i - j] = W[:, i] ** 2 / np.linalg.inv(H[i:, i:])[0, 0]
            for row in range(len(W)):
                pruned[row, j + np.argsort(cost[row], kind="stable")[: per_block[j // blocksize]]] = True
        inverse = np.linalg.inv(H[j:, j:])
        for row in np.flatnonzero(pruned[:, j]):
            W[row, j:] -= W[row, j] / inverse[0, 0] * inverse[0]
    return pruned, np.where(pruned, 0, W)


@pytest.mark.parametrize(
    ("pattern", "blocksize", "per_block"), [("0.5", 4, [2, 2, 2]), ("0.5", 128, [6]), ("2:4", 4, [2, 2, 2])]
)
def test_equals_the_surgeon(pattern, blocksize, per_block):
    problem = random_layer(pattern)
    H = problem.G + 0.01 * problem.G.diagonal().mean() * np.eye(problem.n)
    pruned, weights = surgeon(problem.W, H, per_block, blocksize)
    after = SparseGPT(blocksize=blocksize).run(problem, State(), Context())
    assert np.array_equal(~after.keep, pruned)
    np.testing.assert_allclose(after.weights, weights, rtol=1e-5, atol=1e-6)


def test_the_factor():
    G = random_layer("0.5", n=7).G
    U = inverse_factor(torch.from_numpy(G.copy()), 0.0).numpy()
    assert np.array_equal(U, np.triu(U))
    np.testing.assert_allclose(U.T @ U, np.linalg.inv(G), rtol=1e-9)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("damping", [0.0, 0.01])
def test_exact_counts_and_finite_weights(pattern, damping):
    for problem in [random_layer(pattern), *hostile_layers(pattern)]:
        after = SparseGPT(damping=damping, blocksize=5).run(problem, State(), Context())
        assert judge(problem, after.keep, after.weights).verdict == "feasible", problem.name


@pytest.mark.parametrize("pattern", PATTERNS)
def test_torch_does_what_numpy_does(pattern):
    """The two kinds of array that one sweep is written for; torch's is the one on a GPU."""
    problem = random_layer(pattern)
    W, U = problem.W.astype(float), inverse_factor(torch.from_numpy(problem.G.copy()), 0.01)
    for given in (None, Wanda().run(problem, State(), Context()).keep):
        mask = None if given is None else torch.from_numpy(given)
        pruned, new = sparsegpt._sweep(W, U.numpy(), problem, 5, given)
        other = sparsegpt._sweep(torch.from_numpy(W), U, problem, 5, mask)
        assert np.array_equal(pruned, other[0].numpy())
        np.testing.assert_allclose(new, other[1].numpy(), rtol=1e-10, atol=1e-12)


def test_an_earlier_mask_is_kept_and_its_error_lowered():
    problem = random_layer("0.5", rows=6, n=24)
    start = Wanda().run(problem, State(), Context())
    after = SparseGPT().run(problem, start, Context())
    assert np.array_equal(after.keep, start.keep)
    best = problem.error_of_weights(Refit(ridge=0.0).run(problem, start, Context()).weights)
    assert best * (1 - 1e-6) <= problem.error_of_weights(after.weights) < problem.error(start.keep)


def test_all_zero_inputs_leave_the_weights():
    problem = Problem("zero", np.arange(1.0, 9.0).reshape(2, 4), np.zeros((4, 4)), "0.5")
    after = SparseGPT().run(problem, State(), Context())
    assert np.array_equal(after.weights, np.where(after.keep, problem.W, 0))


def test_bad_parameters():
    for bad in ({"damping": -1.0}, {"damping": float("nan")}, {"blocksize": 0}):
        with pytest.raises(ValueError, match="must be"):
            SparseGPT(**bad)
    assert stage.registry["sparsegpt"].role == "update"
