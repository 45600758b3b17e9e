"""Scores against the papers' formulas, written as loops."""

import math

import numpy as np
import pytest
from layers import PATTERNS, integer_layer, random_layer

from fwbench.judge import count_reason
from fwbench.problem import Problem
from fwbench.solvers.start.scores import Magnitude, Random, Ria, Wanda, ria_score, wanda_score
from fwbench.stage import Context, State

W = np.array([[1.0, -4.0, 2.0], [0.0, 0.0, 0.0]])
X = np.array([[3.0, 0.0, 4.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])  # norms 5, 1, 0


def test_wanda_by_hand():
    assert wanda_score(W, X @ X.T).tolist() == [[5.0, 4.0, 0.0], [0.0, 0.0, 0.0]]


def test_ria_by_hand():
    # row sum 7, column sums 1, 4, 2; a = 1 leaves the norm itself
    expected = [[(1 / 7 + 1) * 5, (4 / 7 + 1) * 1, 0.0], [0.0, 0.0, 0.0]]
    np.testing.assert_allclose(ria_score(W, X @ X.T, a=1.0), expected, rtol=1e-15)


def test_scores_equal_loops():
    problem = random_layer("0.5")
    w, G = problem.W.astype(float), problem.G
    for i in range(problem.rows):
        for j in range(problem.n):
            norm = math.sqrt(G[j, j])
            relative = abs(w[i, j]) / sum(abs(w[i, :])) + abs(w[i, j]) / sum(abs(w[:, j]))
            assert wanda_score(problem.W, G)[i, j] == pytest.approx(abs(w[i, j]) * norm, rel=1e-14)
            assert ria_score(problem.W, G)[i, j] == pytest.approx(relative * norm**0.5, rel=1e-14)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("stage", [Magnitude(), Wanda(), Ria(), Random()])
def test_masks_have_the_exact_count(stage, pattern):
    for problem in (random_layer(pattern), integer_layer(pattern)):
        after = stage.run(problem, State(), Context())
        assert not count_reason(problem, after.keep)


def test_ties_keep_the_higher_index():
    problem = Problem("ties", np.ones((2, 4)), np.eye(4), "0.5")
    for stage in (Magnitude(), Wanda(), Ria()):
        assert stage.run(problem, State(), Context()).keep.tolist() == [[False, False, True, True]] * 2


def test_magnitude_ranks_within_the_groups():
    problem = Problem("groups", [[9.0, 8.0, 1.0, 2.0], [5.0, 6.0, 7.0, 3.0]], np.eye(4), "1:2")
    keep = Magnitude().run(problem, State(), Context()).keep
    assert keep.tolist() == [[True, False, False, True], [False, True, True, False]]
    keep = Magnitude().run(problem.with_pattern("unstructured:0.5"), State(), Context()).keep
    assert keep.tolist() == [[True, True, False, False], [False, True, True, False]]


def test_random_repeats_with_its_seed():
    problem = random_layer("0.5", n=40)
    first, second, other = (Random().run(problem, State(), Context(seed=seed)).keep for seed in (1, 1, 2))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)


def test_bad_exponent_is_refused():
    with pytest.raises(ValueError, match="at least 0"):
        Ria(a=-1.0)
