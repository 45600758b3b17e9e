"""Generators: seeded, and as they are said to be."""

from functools import partial

import brute
import numpy as np
import pytest

from fwbench.problems import synthetic

DEGENERATE = {
    "one_weight": partial(synthetic.correlated, rows=1, n=1),
    "one_column": partial(synthetic.correlated, rows=4, n=1, pattern="1"),
    "nothing_pruned": partial(synthetic.correlated, rows=3, n=16, pattern="0"),
    "all_pruned": partial(synthetic.correlated, rows=3, n=16, pattern="1"),
    "degenerate": partial(synthetic.degenerate, n=16, pattern="2:4"),
    "zero_rows": partial(synthetic.zero_rows, n=16, pattern="unstructured:0.5"),
    "ties": partial(synthetic.ties, n=16, pattern="2:4"),
}


@pytest.mark.parametrize("name", [*synthetic.CASES, *DEGENERATE])
def test_seeded_and_semidefinite(name):
    case = synthetic.CASES.get(name) or DEGENERATE[name]
    problem = case()
    assert problem.name == name or name in DEGENERATE
    assert problem.hash == case().hash
    problem.check_psd()


def test_planted_mask_costs_nothing():
    for seed in range(3):
        problem, keep = synthetic.planted(seed=seed)
        assert np.array_equal((~keep).sum(1), problem.counts)
        assert problem.error(keep) == 0.0
        naive = problem.pattern.prune(problem.W.astype(float) ** 2 * problem.G.diagonal())
        assert problem.error(~naive) > 0.05 * problem.total  # no saliency finds it
    with pytest.raises(ValueError, match="multiple of 6"):
        synthetic.planted(n=16)


def test_planted_mask_is_the_only_one():
    problem, keep = synthetic.planted(rows=2, n=12)
    error, best = brute.best_mask(problem)
    assert error == 0.0
    assert np.array_equal(best, keep)


def test_diagonal_is_solved_by_sorting():
    problem = synthetic.diagonal(rows=2, n=10, pattern="0.4")
    error, best = brute.best_mask(problem)
    saliency = problem.W.astype(float) ** 2 * problem.G.diagonal()
    assert np.array_equal(best, ~problem.pattern.prune(saliency))
    assert error == pytest.approx(np.sort(saliency, axis=1)[:, :4].sum())


def test_condition():
    values = np.linalg.eigvalsh(synthetic.ill_conditioned(n=32, condition=1e8).G)
    assert values[-1] / values[0] == pytest.approx(1e8, rel=1e-4)


def test_correlation():
    G = synthetic.correlated(rows=1, n=200, rho=0.9).G
    scale = np.sqrt(G.diagonal())
    neighbours = (G / scale[:, None] / scale).diagonal(1)
    assert neighbours.mean() == pytest.approx(0.9, abs=0.02)


def test_degenerate_inputs():
    G = synthetic.degenerate(n=64).G
    assert (G.diagonal() == 0).sum() == 8
    copies = [(i, j) for i in range(64) for j in range(i) if G[i, i] > 0 and np.array_equal(G[i], G[j])]
    assert len(copies) == 16


def test_ties_are_whole_numbers():
    problem = synthetic.ties()
    assert np.array_equal(problem.G * 64, np.round(problem.G * 64))
    assert np.array_equal(problem.W, np.round(problem.W))


def test_zero_rows():
    assert not synthetic.zero_rows().W[::2].any()
    assert synthetic.zero_rows().W[1::2].any()
