"""SparseGPT against optimal brain surgeon by explicit inverses, and against the pattern's exact counts."""

import numpy as np
import pytest
import torch
from layers import PATTERNS, arriving, hostile_layers, random_layer

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
    for bad in ({"damping": -1.0}, {"damping": float("nan")}, {"blocksize": 0}, {"order": "left"}, {"spread": -1.0}):
        with pytest.raises(ValueError, match="must be"):
            SparseGPT(**bad)
    assert stage.registry["sparsegpt"].role == "update"


# --- orders -----------------------------------------------------------------------------------------------------------


def columnar(pattern: str, rows: int = 6, n: int = 24, seed: int = 0) -> Problem:
    """Columns at the right whose weights are large."""
    plain = random_layer(pattern, rows, n, seed)
    return Problem("columnar", plain.W * np.where(np.arange(n) < n - 8, 1, 10), plain.G, plain.pattern)


@pytest.mark.parametrize("order", ["diagonal", "loss"])
@pytest.mark.parametrize("pattern", ["0.5", "2:4", "unstructured:0.4"])
def test_another_order_is_the_surgeon_s_on_permuted_inputs(pattern, order):
    problem = columnar(pattern)
    solver = SparseGPT(blocksize=8, order=order)
    columns = solver._order(problem, State())
    assert not np.array_equal(columns, np.arange(24))
    assert np.array_equal(np.sort(columns), np.arange(24))
    moved = Problem("moved", problem.W[:, columns], problem.G[columns][:, columns], problem.pattern)
    expected = SparseGPT(blocksize=8).run(moved, State(), Context())
    found = solver.run(problem, State(), Context())
    assert np.array_equal(found.keep[:, columns], expected.keep)
    assert np.array_equal(found.weights[:, columns], expected.weights)


def test_losses_are_those_of_weights_pruned_alone():
    """Each is what the error rises by where one weight is pruned and all others are refitted."""
    problem = columnar("0.5")
    H = problem.G + 0.01 * problem.G.diagonal().mean() * np.eye(24)
    inverse = np.linalg.inv(H)
    loss = np.empty(problem.shape)
    for row, w in enumerate(problem.W.astype(float)):
        for j in range(24):
            change = -w[j] / inverse[j, j] * inverse[j]
            loss[row, j] = change @ H @ change
    for first in (0, 8, 16):
        for row in loss[:, first : first + 8]:
            row[np.argsort(row)[4:]] = 0
    column = loss.sum(axis=0)
    blocks = sorted((range(8), range(8, 16), range(16, 24)), key=lambda block: -column[list(block)].sum())
    expected = [j for block in blocks for j in sorted(block, key=lambda j: -column[j])]
    assert SparseGPT(blocksize=8, order="loss")._order(problem, State()).tolist() == expected


def test_even_blocks_are_taken_from_the_left():
    problem = columnar("0.5")
    assert SparseGPT(blocksize=8, order="loss", spread=3.0)._order(problem, State()).tolist() == list(range(24))
    whole = SparseGPT(blocksize=24, order="loss")  # one block has no range
    found, natural = (stage.run(problem, State(), Context()) for stage in (whole, SparseGPT(blocksize=24)))
    assert np.array_equal(found.weights, natural.weights)


def test_groups_stay_together_and_their_columns_descend():
    problem = columnar("2:4")
    for order in ("loss", "diagonal"):
        groups = SparseGPT(order=order)._order(problem, State()).reshape(-1, 4)
        assert all(len(set(group // 4)) == 1 for group in groups)
    assert np.all(np.diff(problem.G.diagonal()[groups], axis=1) <= 0)
    assert np.all(np.diff(problem.G.diagonal()[groups].mean(axis=1)) <= 1e-12)


def test_what_loses_most_goes_first_and_loses_less():
    ratios = []
    for seed in range(6):
        problem = columnar("0.5", rows=16, n=48, seed=seed)
        errors = [
            problem.error_of_weights(SparseGPT(blocksize=8, order=order).run(problem, State(), Context()).weights)
            for order in ("loss", "natural")
        ]
        ratios.append(errors[0] / errors[1])
    assert np.exp(np.mean(np.log(ratios))) < 0.9


@pytest.mark.parametrize("order", ["diagonal", "loss"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_orders_take_an_earlier_mask_and_a_target(pattern, order):
    problem, _, _ = arriving(pattern, n=24)
    solver = SparseGPT(blocksize=5, order=order, spread=0.0)
    start = Wanda().run(problem, State(), Context())
    after = solver.run(problem, start, Context())
    assert np.array_equal(after.keep, start.keep)
    assert not after.weights[~after.keep].any()
    for layer in (problem, *hostile_layers(pattern)):
        found = solver.run(layer, State(), Context())
        assert judge(layer, found.keep, found.weights).verdict == "feasible", layer.name
