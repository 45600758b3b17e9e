"""Channel permutations: what they keep, against enumeration; and that they are the same layer."""

from itertools import combinations

import numpy as np
import pytest
from layers import arriving, random_layer

from fwbench.patterns import PatternError
from fwbench.solvers.start import channels
from fwbench.solvers.start.channels import ORDER, channel_order, kept_score, regrouped
from fwbench.solvers.start.scores import Ria, ria_score, wanda_score
from fwbench.stage import Context, State


def best_grouping(pattern, score):
    """Of eight inputs in two groups of four."""
    halves = [[0, *rest] for rest in combinations(range(1, 8), 3)]
    orders = [half + [j for j in range(8) if j not in half] for half in halves]
    return max(kept_score(pattern, score[:, order]) for order in orders)


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "3:4"])
def test_it_finds_most_of_what_the_best_grouping_gains(pattern):
    shares = []
    for seed in range(10):
        problem = random_layer(pattern, rows=4, n=8, seed=seed)
        score = wanda_score(problem.W, problem.G)
        order = channel_order(problem, score)
        assert np.array_equal(np.sort(order), np.arange(8))
        found, natural = (kept_score(problem.pattern, score[:, order]), kept_score(problem.pattern, score))
        best = best_grouping(problem.pattern, score)
        assert natural <= found <= best * (1 + 1e-12)
        shares.append((found - natural) / (best - natural) if best > natural else 1.0)
    assert np.mean(shares) > 0.7


def test_assignments_gain_on_dealing():
    problem = random_layer("2:4", rows=12, n=32)
    score = ria_score(problem.W, problem.G)
    kept = [kept_score(problem.pattern, score[:, channel_order(problem, score, rounds)]) for rounds in (0, 1, 10)]
    assert kept[0] < kept[1] <= kept[2]


def test_the_gain_of_an_assignment_is_what_it_adds():
    """``max(0, s_c - t)`` over the rows, ``t`` the N-th largest of the others: against sorting anew."""
    problem = random_layer("2:4", rows=5, n=8, seed=1)
    score = wanda_score(problem.W, problem.G)
    others, channel = [0, 1, 2], 5
    least = np.sort(score[:, others], axis=1)[:, 1]
    without = np.sort(score[:, others], axis=1)[:, 1:].sum()
    added = np.sort(score[:, [*others, channel]], axis=1)[:, 2:].sum() - without
    assert np.maximum(score[:, channel] - least, 0).sum() == pytest.approx(added)


def test_the_regrouped_problem_is_the_same_layer_with_other_masks():
    problem, _, _ = arriving("2:4", rows=4, n=16)
    moved = regrouped(problem)
    order = np.array([int(word) for word in moved.meta[ORDER].split(",")])
    keep = Ria().run(moved, State(), Context()).keep
    back = np.empty_like(keep)
    back[:, order] = keep
    assert problem.error(back) == pytest.approx(moved.error(keep), rel=1e-12)
    assert moved.hash != problem.hash
    with pytest.raises(PatternError, match="only N:M"):
        regrouped(problem.with_pattern("0.5"))


def test_a_good_order_is_left_alone_and_any_count_has_one():
    problem = random_layer("2:4", rows=3, n=8)
    assert channel_order(problem, np.ones(problem.shape)).tolist() == list(range(8))
    for pattern in ("0:4", "4:4"):
        assert channels.regrouped(problem.with_pattern(pattern)).shape == problem.shape


def test_permuting_twice_is_permuting_once():
    problem, _, _ = arriving("0.5", n=8)
    order = np.random.default_rng(0).permutation(8)
    back = problem.permuted(order).permuted(np.argsort(order))
    assert back.hash == problem.hash
