"""Thanos against constrained least squares of what is left, by multipliers, block after block."""

import numpy as np
import pytest
from layers import PATTERNS, arriving, hostile_layers, random_layer

from fwbench.judge import judge
from fwbench.problem import Problem
from fwbench.solvers.start.scores import Wanda
from fwbench.solvers.weight_update.refit import Refit
from fwbench.solvers.weight_update.sparsegpt import SparseGPT
from fwbench.solvers.weight_update.thanos import Thanos
from fwbench.stage import Context, State


def marked(problem, W, norm, first, left):
    """Of the columns from ``first`` on the least scores, as many of each group as are left to be pruned."""
    score = np.abs(W[:, first:]) * norm[first:]
    if problem.group < problem.n:
        mask = np.zeros(score.shape, bool)
        for row, own in zip(mask, score, strict=True):
            for start in range(0, len(own), problem.group):
                row[start + np.argsort(own[start : start + problem.group], kind="stable")[: left[0]]] = True
        return mask
    grouped = score.reshape(len(left), -1)
    mask = np.zeros(grouped.shape, bool)
    for row, own, count in zip(mask, grouped, left, strict=True):
        row[np.argsort(own, kind="stable")[:count]] = True
    return mask.reshape(score.shape)


def block_by_block(problem, blocksize, damping=0.01):
    """The least change of what is left, in ``H``'s norm, under which the block's marked weights are zero."""
    n, H = problem.n, problem.G + damping * problem.G.diagonal().mean() * np.eye(problem.n)
    W, norm = problem.W.astype(float), np.sqrt(problem.G.diagonal())
    if problem.T is not None:
        W = W + problem.T @ np.linalg.inv(H)
    pruned, left = np.zeros(W.shape, bool), problem.counts.copy()
    for first in range(0, n, blocksize):
        last = min(first + blocksize, n)
        pruned[:, first:last] = marked(problem, W, norm, first, left)[:, : last - first]
        if problem.group == n:
            left = left - pruned[:, first:last].reshape(len(left), -1).sum(axis=1)
        for row in range(len(W)):
            q = np.flatnonzero(pruned[row, first:last])
            A = np.eye(n - first)[q]
            system = np.block([[H[first:, first:], A.T], [A, np.zeros((len(q), len(q)))]])
            W[row, first:] += np.linalg.solve(system, np.concatenate([np.zeros(n - first), -W[row, first + q]]))[
                : n - first
            ]
    return pruned, np.where(pruned, 0, W)


@pytest.mark.parametrize("blocksize", [4, 8, 64])
@pytest.mark.parametrize("pattern", ["0.5", "0.6", "2:4", "unstructured:0.4", "rows"])
def test_equals_multipliers(pattern, blocksize):
    for problem in (random_layer(pattern, rows=4, n=24), arriving(pattern, rows=4, n=24)[0]):
        pruned, weights = block_by_block(problem, blocksize)
        after = Thanos(blocksize=blocksize).run(problem, State(), Context())
        assert np.array_equal(~after.keep, pruned)
        np.testing.assert_allclose(after.weights, weights, rtol=1e-5, atol=1e-5)


def test_on_a_mask_one_block_is_the_refit_and_single_columns_are_the_surgeon_s():
    for problem in (random_layer("0.5", rows=6, n=24), arriving("0.5", rows=6, n=24)[0]):
        start = Wanda().run(problem, State(), Context())
        whole = Thanos(blocksize=24).run(problem, start, Context())
        assert np.array_equal(whole.keep, start.keep)
        np.testing.assert_allclose(
            whole.weights, Refit(ridge=0.01).run(problem, start, Context()).weights, rtol=1e-4, atol=1e-5
        )
        single = Thanos(blocksize=1).run(problem, start, Context())
        np.testing.assert_allclose(
            single.weights, SparseGPT().run(problem, start, Context()).weights, rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("damping", [0.0, 0.01])
def test_exact_counts_and_finite_weights(pattern, damping):
    for problem in [random_layer(pattern), *hostile_layers(pattern)]:
        for context in (Context(), Context(deadline=0.0)):
            after = Thanos(damping=damping, blocksize=5).run(problem, State(), context)
            assert judge(problem, after.keep, after.weights).verdict == "feasible", problem.name


def test_rows_in_parts_are_the_same(monkeypatch):
    problem = random_layer("0.5", rows=9, n=24)
    whole = Thanos(blocksize=8).run(problem, State(), Context()).weights
    monkeypatch.setattr("fwbench.solvers.weight_update.thanos.CHUNK_BYTES", 8 * 64 * 2)
    np.testing.assert_allclose(Thanos(blocksize=8).run(problem, State(), Context()).weights, whole, rtol=1e-6)


def test_all_zero_inputs_leave_the_weights():
    problem = Problem("zero", np.arange(1.0, 9.0).reshape(2, 4), np.zeros((4, 4)), "0.5")
    after = Thanos().run(problem, State(), Context())
    assert np.array_equal(after.weights, np.where(after.keep, problem.W, 0))


def test_bad_parameters():
    for bad in ({"damping": -1.0}, {"blocksize": 0}):
        with pytest.raises(ValueError, match="must be"):
            Thanos(**bad)
