"""The learned diagonal: convexity by chords, proofs whatever the net says, the bound against enumeration."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from brute import best_mask
from layers import PATTERNS, arriving, begun, extreme_layers, hostile_layers, random_layer

from benchmarks.learned import train
from fwbench import bounds, verify
from fwbench.problem import Problem
from fwbench.problems.collections import load
from fwbench.problems.synthetic import correlated
from fwbench.solvers.learned import weights
from fwbench.solvers.learned.bound import LearnedBound
from fwbench.solvers.learned.diagonal import alone, features, inverse_e, learned_e, top
from fwbench.solvers.semidefinite.shared_diagonal import shared_e
from fwbench.stage import Context
from fwbench.verify.rounding import proves_shared


def test_the_net_is_convex_and_positive_and_the_one_that_was_trained():
    net, rng = weights.load("diagonal"), np.random.default_rng(0)
    x, y = (net["mean"] + 3 * net["spread"] * rng.standard_normal((4000, 5)) for _ in range(2))
    part = rng.random((4000, 1))
    ends = [weights.input_convex(net, z) for z in (x, y)]
    between = weights.input_convex(net, part * x + (1 - part) * y)
    assert (between <= part[:, 0] * ends[0] + (1 - part[:, 0]) * ends[1] + 1e-9 * np.maximum(*ends)).all()
    assert (between > 0).all()
    assert np.ptp(between) > 0.1, "it depends on its input"
    tensors = {name: torch.tensor(array, dtype=torch.float64) for name, array in net.items()}
    in_torch = train.convex_net(tensors, torch.tensor(x))
    np.testing.assert_allclose(in_torch.numpy(), ends[0], rtol=1e-9)


def test_its_loss_is_what_the_checker_would_confirm():
    problem = random_layer("0.5", n=24, seed=1)
    u = np.full(problem.shape, 0.5)
    example, c = train.Example.of(problem), bounds.slope(problem, u)
    tau, H = alone(problem.G)
    v = weights.input_convex(weights.load("diagonal"), features(problem.G, tau, H, c))
    e = tau * v / top(H, v)
    values = np.linalg.eigvalsh(problem.G - np.diag(e))
    assert abs(values[0]) < 1e-9 * values[-1], "on the border"
    mine = train.part_of_best(torch.tensor(v), example)
    assert 0 < float(mine) <= 1 + 1e-3


def test_features_have_no_unit():
    problem, c = random_layer("0.5", n=12), np.random.default_rng(0).random(12)
    tau, H = alone(problem.G)
    other = alone(9 * problem.G)
    np.testing.assert_allclose(features(problem.G, tau, H, c), features(9 * problem.G, *other, 7 * c), atol=1e-6)


@pytest.mark.parametrize("net", ["trained", "wild"])
def test_whatever_the_net_says_it_is_proved(net, monkeypatch):
    if net == "wild":
        wild = np.random.default_rng(1)
        monkeypatch.setattr(weights, "input_convex", lambda net, x: np.exp(3 * wild.standard_normal(len(x))))
    for problem in (random_layer("0.5"), *hostile_layers("2:4"), *extreme_layers("0.5")):
        e = learned_e(problem, np.full(problem.shape, 0.5))
        proof = bounds.certificate(problem, np.full(problem.shape, 0.5), e)
        assert verify.check(problem, proof).ok, problem.name


@pytest.mark.parametrize("target", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_bounds_below_the_optimum_and_above_the_plain_relaxation(pattern, target):
    problem = arriving(pattern, n=8)[0] if target else random_layer(pattern, n=8, rows=2)
    after = LearnedBound().run(problem, begun(problem, LearnedBound), Context())
    best, _ = best_mask(problem)
    assert after.lower <= best + 1e-9 * abs(best)
    assert verify.check(problem, after.certificate).ok
    plain = LearnedBound(steps=0).run(problem, begun(problem, LearnedBound), Context())
    assert after.lower >= plain.lower - 1e-9 * abs(best)


@pytest.mark.parametrize("target", [False, True])
@pytest.mark.parametrize("pattern", ["0.5", "2:4"])
def test_a_rows_own_diagonal_bounds_no_worse_and_is_proved(pattern, target):
    problem = arriving(pattern, n=12)[0] if target else random_layer(pattern, n=12, rows=3, seed=2)
    start = begun(problem, LearnedBound)
    shared, own = (LearnedBound(own=own).run(problem, start, Context()) for own in (False, True))
    best, _ = best_mask(problem)
    assert shared.lower < own.lower <= best + 1e-9 * abs(best)
    assert verify.check(problem, own.certificate).ok
    assert own.counters["row_proofs"] == problem.rows


def test_a_rows_own_diagonal_is_proved_whatever_the_layer_and_the_net(monkeypatch):
    wild = np.random.default_rng(1)
    monkeypatch.setattr(weights, "input_convex", lambda net, x: np.exp(3 * wild.standard_normal(len(x))))
    stage = LearnedBound(own=True, plain_steps=10, steps=10)
    for problem in (*hostile_layers("2:4"), *extreme_layers("0.5")):
        after = stage.run(problem, begun(problem, LearnedBound), Context())
        assert verify.check(problem, after.certificate).ok, problem.name


def test_rows_that_depend_on_one_another_have_no_diagonal_of_their_own():
    stage = LearnedBound(own=True)
    assert "independent" in stage.supports(random_layer("unstructured:0.4"))
    assert stage.supports(random_layer("0.5")) is None
    assert LearnedBound().supports(random_layer("unstructured:0.4")) is None


def test_on_real_layers_it_has_most_of_the_best_diagonal():
    parts = []
    for _, problem in load("mini/n064*"):
        u = np.full(problem.shape, 0.5)
        c = bounds.slope(problem, u)
        parts.append(c @ learned_e(problem, u) / (c @ shared_e(problem, u)))
    assert min(parts) > 0.6
    assert max(parts) <= 1 + 1e-3
    assert np.mean(parts) > 0.85


def test_seeds_threads_and_the_deadline():
    problem = correlated(60, 12)
    start = begun(problem, LearnedBound)
    one, two = (LearnedBound().run(problem, start, Context(threads=threads, seed=threads)) for threads in (1, 2))
    assert one.lower == two.lower
    parts = {}
    late = LearnedBound().run(problem, start, Context(deadline=0.0, hand_in=parts.__setitem__))
    assert late.stopped == "deadline"
    assert verify.check(problem, late.certificate).ok
    assert LearnedBound().salvage(problem, start, parts).certificate is parts["plain"]


def test_an_indefinite_gram_matrix_is_refused():
    problem = Problem("indefinite", np.ones((1, 2)), np.array([[1.0, 2.0], [2.0, 1.0]]), "0.5")
    with pytest.raises(ValueError, match="not positive semidefinite"):
        alone(problem.G)


def test_what_is_no_parameter_is_refused():
    with pytest.raises(ValueError, match="must not be negative"):
        LearnedBound(steps=-1)


def test_the_inverse_diagonal_is_as_large_as_it_may_be():
    layer = random_layer("0.5", n=20, seed=2)
    e = inverse_e(layer)
    assert proves_shared(layer.G, e)
    inverse = np.linalg.inv(layer.G).diagonal()
    assert e * inverse == pytest.approx(np.full(20, e[0] * inverse[0]), rel=1e-6)
    assert np.linalg.eigvalsh(layer.G - np.diag(e))[0] == pytest.approx(0, abs=1e-8 * layer.G.trace())
    assert (inverse_e(replace(layer, G=0 * layer.G)) <= 0).all()
