"""1-swaps under refitted weights, against every exchange refitted by numpy's least squares."""

from itertools import product

import numpy as np
import pytest
import torch
from layers import PATTERNS, begun, hostile_layers, random_layer

from fwbench.judge import count_reason, judge
from fwbench.problems.synthetic import correlated
from fwbench.solvers.start.scores import Random, Wanda
from fwbench.solvers.weight_update import reswap
from fwbench.solvers.weight_update.refit import Refit
from fwbench.solvers.weight_update.reswap import WHOLE, Reswap
from fwbench.stage import Context, State


def refitted(w, G, pruned, penalty):
    """What is left of one row, the penalty on the change of kept weights included: from the normal equations."""
    kept = ~pruned
    change = np.where(pruned, -w, 0.0)
    if kept.any():
        A = G[np.ix_(kept, kept)] + penalty * np.eye(kept.sum())
        change[kept] = np.linalg.solve(A, G[np.ix_(kept, pruned)] @ w[pruned])
    return change @ G @ change + penalty * (change[kept] ** 2).sum()


def exchanges(pruned, size):
    """Every mask that one exchange within a group leads to, with its pair."""
    for i, j in product(np.flatnonzero(pruned), np.flatnonzero(~pruned)):
        if i // size == j // size:
            other = pruned.copy()
            other[[i, j]] = False, True
            yield (i, j), other


def followed(w, G, pruned, size, penalty, limit):
    """Best exchange after best exchange: the last mask, and how many there were."""
    swaps = 0
    while not limit or swaps < limit:
        others = [(refitted(w, G, other, penalty), pair) for pair, other in exchanges(pruned, size)]
        if not others or min(others)[0] > refitted(w, G, pruned, penalty) * (1 - 1e-9):
            break
        i, j = min(others)[1]
        pruned = pruned.copy()
        pruned[[i, j]] = False, True
        swaps += 1
    return pruned, swaps


def group(problem):
    return problem.group


@pytest.mark.parametrize("ridge", [1e-6, 1e-3, 0.5])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_follows_the_best_exchange_and_ends_where_none_gains(pattern, ridge):
    problem = random_layer(pattern, rows=3, n=12, condition=1e2)
    penalty = ridge * problem.G.diagonal().mean()
    start = Random().run(problem, State(), Context())
    for limit in (1, 2, 0):
        after = Reswap(ridge=ridge, limit=limit).run(problem, start, Context())
        assert not count_reason(problem, after.keep)
        expected = [
            followed(w, problem.G, pruned, group(problem), penalty, limit)
            for w, pruned in zip(problem.W.astype(float), ~start.keep, strict=True)
        ]
        assert np.array_equal(~after.keep, [pruned for pruned, _ in expected])
        assert after.counters["swaps"] == sum(swaps for _, swaps in expected)


@pytest.mark.parametrize("pattern", ["0.5", "2:4"])
def test_rows_that_are_searched_whole_end_where_none_gains(pattern):
    problem = random_layer(pattern, rows=1, n=WHOLE - 48, condition=1e4)
    G, w = problem.G.astype(float), problem.W[0].astype(float)
    penalty = 1e-3 * G.diagonal().mean()
    start = Random().run(problem, State(), Context())
    after = Reswap().run(problem, start, Context())
    assert after.counters["swaps"] > 32
    pruned = ~after.keep[0]
    reached = refitted(w, G, pruned, penalty)
    assert reached < 0.9 * refitted(w, G, ~start.keep[0], penalty)
    for pair, other in exchanges(pruned, group(problem)):
        assert refitted(w, G, other, penalty) > reached * (1 - 1e-8), pair


@pytest.mark.parametrize("pattern", ["0.5", "unstructured:0.6", "2:4", "0.0", "1.0"])
def test_longer_rows_end_as_low_as_if_they_were_searched_whole(pattern, monkeypatch):
    problem = correlated(6, WHOLE + 64, pattern=pattern)
    start = Wanda().run(problem, State(), Context())
    some = Reswap().run(problem, start, Context())
    assert not count_reason(problem, some.keep)
    monkeypatch.setattr(reswap, "WHOLE", problem.n)
    whole = Reswap().run(problem, start, Context())
    errors = [problem.error_of_weights(after.weights) for after in (some, whole)]
    assert errors[0] == pytest.approx(errors[1], rel=0.02)
    again = Refit().run(problem, State(keep=some.keep), Context())
    assert errors[0] <= problem.error_of_weights(again.weights) * (1 + 1e-5)


def test_a_round_gains_what_it_says():
    problem = correlated(1, WHOLE + 64)
    G, w = problem.G.astype(float), problem.W[0].astype(float)
    penalty = 1e-3 * G.diagonal().mean()
    layer = reswap.Scaled(reswap.Shared(torch.from_numpy(problem.G.copy()), G.diagonal().mean(), 1e-3), problem.n)
    W = (problem.W / layer.scale).astype(float)
    keep = Wanda().run(problem, State(), Context()).keep.copy()
    rows = reswap.Rows(W, W * keep, np.empty_like(W), keep, layer.penalty * W**2)
    layer.refine(rows, 4)
    before = refitted(w, G, ~keep[0], penalty)
    swaps, gain = layer.round(rows, 0, layer.promising(*(part[0] for part in layer.alone(rows))), before, 10**9)
    after = refitted(w, G, ~rows.keep[0], penalty)
    assert swaps > 5
    assert gain == pytest.approx(before - after, rel=1e-3)
    np.matmul(W - rows.V, layer.H, out=rows.R)
    assert rows.errors()[0] == pytest.approx(after, rel=1e-4)  # the weights are those of the new mask


@pytest.mark.parametrize("pattern", ["0.5", "2:4"])
def test_a_row_that_promises_too_little_gets_no_further_round(pattern, monkeypatch):
    problem = correlated(4, WHOLE + 64, pattern=pattern)
    start, rounds, once = Wanda().run(problem, State(), Context()), [], reswap.Scaled.round
    monkeypatch.setattr(reswap.Scaled, "round", lambda *given: rounds.append(given[2]) or once(*given))
    found = []
    for needed in (np.inf, reswap.PROMISED):
        monkeypatch.setattr(reswap, "PROMISED", needed)
        rounds.clear()
        after = Reswap().run(problem, start, Context())
        found.append((problem.error_of_weights(after.weights), len(rounds)))
    (first, one_each), (last, more) = found
    assert one_each == problem.rows < more
    assert last < first


def test_what_exchanges_promise_is_the_best_with_the_best_of_each_group():
    layer = reswap.Scaled.__new__(reswap.Scaled)
    layer.size = 4
    gain = np.array([[-3.0, -1.0, np.inf, np.inf, -5.0, np.inf, np.inf, np.inf]])
    loss = np.array([[np.inf, np.inf, 2.0, 0.5, np.inf, 6.0, 7.0, 8.0]])
    assert layer.promised(gain, loss) == 3 - 0.5  # 1 - 2 and 5 - 6 are no gains
    layer.size = 8
    assert layer.promised(gain, loss) == (5 - 0.5) + (3 - 2)


def test_the_shared_inverse_is_one_whatever_tells_that_there_is_one():
    problem = correlated(3, 24)
    G, mean = torch.from_numpy(problem.G.astype(float)), float(problem.G.diagonal().mean())
    for ridge in (0.0, 1e-3):  # without a penalty the inverse itself must tell
        shared = reswap.Shared(G, mean, ridge)
        assert shared.penalty == ridge * mean
        damped = problem.G + shared.penalty * np.eye(24)
        np.testing.assert_allclose(shared.C.numpy() @ damped, np.eye(24), atol=1e-8)
    double = G.clone()
    double[1], double[:, 1] = double[0], double[:, 0]
    double[1, 1] = double[0, 0]
    assert reswap.Shared(double, mean, 0.0).penalty > 0


def test_limit_holds_over_rounds():
    problem = correlated(3, WHOLE + 64)
    start = Wanda().run(problem, State(), Context())
    after = Reswap(limit=7).run(problem, start, Context())
    assert after.counters["swaps"] == 21
    assert ((start.keep != after.keep).sum(axis=1) <= 14).all()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_weights_are_the_refit_of_the_mask(pattern):
    problem = random_layer(pattern, rows=6, n=24)
    start = Wanda().run(problem, State(), Context())
    after = Reswap().run(problem, start, Context())
    again = Refit().run(problem, State(keep=after.keep), Context())
    np.testing.assert_allclose(after.weights, again.weights, rtol=1e-4, atol=1e-6)
    assert not after.weights[~after.keep].any()
    before = Refit().run(problem, start, Context())
    assert problem.error_of_weights(after.weights) < problem.error_of_weights(before.weights)


@pytest.mark.parametrize("ridge", [0.0, 1e-3])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_hostile_layers_are_never_worse_than_their_mask(pattern, ridge):
    for problem in hostile_layers(pattern):
        start = Wanda().run(problem, State(), Context())
        after = Reswap(ridge=ridge).run(problem, start, Context())
        assert np.array_equal(after.keep.sum(axis=1), start.keep.sum(axis=1))
        found = judge(problem, after.keep, after.weights)
        assert found.verdict == "feasible", problem.name
        assert found.error <= problem.error(start.keep) * (1 + 1e-6) + 1e-7 * problem.total, problem.name


def test_threads_do_not_matter_and_a_deadline_leaves_whole_rows():
    problem = random_layer("0.5", rows=20, n=24, seed=2)
    start = Wanda().run(problem, State(), Context())
    one, four = (Reswap().run(problem, start, Context(threads=threads)) for threads in (1, 4))
    assert np.array_equal(one.weights, four.weights)
    late = Reswap().run(problem, start, Context(deadline=0.0))
    assert late.stopped == "deadline"
    assert np.array_equal(late.keep, start.keep)
    assert np.array_equal(late.weights, np.where(start.keep, problem.W, 0))


def test_edges():
    for fraction in ("0.0", "1.0"):
        problem = random_layer("0.5", rows=2, n=6).with_pattern(fraction)
        after = Reswap().run(problem, begun(problem, Reswap), Context())
        assert after.counters["swaps"] == 0
        assert np.array_equal(after.keep, np.full(problem.shape, fraction == "0.0"))
    with pytest.raises(ValueError, match="ridge"):
        Reswap(ridge=-1.0)
    with pytest.raises(ValueError, match="limit"):
        Reswap(limit=-1)
