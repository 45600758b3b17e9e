"""FISTAPruner: its relaxation against the lasso's optimality conditions, its bisection against a loop on the inputs."""

import numpy as np
import pytest
import torch
from layers import PATTERNS, arriving, hostile_layers, hostile_targets, random_layer

from fwbench.judge import judge
from fwbench.solvers.start.scores import Wanda
from fwbench.solvers.weight_update.descent import ABOVE, Layer
from fwbench.solvers.weight_update.fistapruner import LEAST, FISTAPruner, heaviest, lasso
from fwbench.solvers.weight_update.refit import Refit
from fwbench.stage import Context, State

EXACT = Context(dtype="float64")


@pytest.mark.parametrize("scaled", [False, True])
def test_the_relaxation_is_the_lasso_s_minimum(scaled):
    """Where a weight is not zero its slope is the penalty with its sign, elsewhere no larger."""
    problem, _, _ = arriving("0.5", rows=4, n=12)
    layer = Layer.of(problem, EXACT, scaled)
    most = heaviest(layer)
    for part in (0.2, 0.7):
        v, steps = lasso(layer, layer.w, part * most, 5000, EXACT)
        slope, penalty = layer.slope(v).numpy(), (part * most).numpy()
        zero = v.numpy() == 0
        assert steps == 5000
        assert zero.any(axis=1).all()
        assert np.abs(slope - penalty * np.sign(v.numpy()))[~zero].max() < 1e-8
        assert (np.abs(slope) <= penalty * (1 + 1e-6))[zero].all()
    v, _ = lasso(layer, layer.w, 1.0001 * most, 2000, EXACT)
    assert not v.any()


def by_hand(problem, Y, X, keep, rounds, steps, ratio):
    """One row, on its inputs: FISTA, rounding, and the bisection of the penalty's logarithm."""
    w, L = problem.W[0].astype(float), np.linalg.eigvalsh(X @ X.T)[-1] * (1 + ABOVE)
    best = np.where(keep, w, 0)
    least = ((Y - best @ X) ** 2).sum()
    most, low, high = np.abs(Y @ X.T).max(), np.log(LEAST), 0.0
    for _ in range(rounds):
        penalty = most * np.exp((low + high) / 2)
        v = y = best
        now = 1.0
        for _ in range(steps):
            moved = y + (Y - y @ X) @ X.T / L
            before, v = v, np.sign(moved) * np.maximum(np.abs(moved) - penalty / L, 0)
            last, now = now, (1 + np.sqrt(1 + 4 * now**2)) / 2
            y = v + (last - 1) / now * (v - before)
        rounded = np.where(problem.pattern.prune(np.abs(v)[None])[0], 0, v)
        error = ((Y - rounded @ X) ** 2).sum()
        if np.linalg.norm((rounded - v) @ X) > ratio * np.sqrt(error):
            low = (low + high) / 2
        else:
            high = (low + high) / 2
        if error < least:
            best, least = rounded, error
    return best


@pytest.mark.parametrize("pattern", ["0.5", "2:4"])
def test_rounds_are_those_of_the_definition(pattern):
    gained = 0
    for seed in range(6):
        problem, Y, X = arriving(pattern, rows=1, n=16, seed=seed, wrong=0.3)
        start = Wanda().run(problem, State(), Context())
        stage = FISTAPruner(rounds=8, steps=15)
        expected = by_hand(problem, Y[0], X, start.keep[0], 8, 15, stage.ratio)
        after = stage.run(problem, start, EXACT)
        np.testing.assert_allclose(after.weights[0], expected, rtol=1e-4, atol=1e-5)
        gained += problem.error_of_weights(after.weights) < 0.99 * problem.error(start.keep)
    assert gained >= 3


@pytest.mark.parametrize("pattern", PATTERNS)
def test_feasible_never_worse_and_repeatable(pattern):
    stage = FISTAPruner(rounds=4, steps=10)
    for problem in (*hostile_layers(pattern), *hostile_targets(pattern)):
        start = Wanda().run(problem, State(), Context())
        after, again, late = (stage.run(problem, start, c) for c in (Context(), Context(), Context(deadline=0.0)))
        assert judge(problem, after.keep, after.weights).verdict == "feasible", problem.name
        assert problem.error_of_weights(after.weights) <= problem.error(start.keep), problem.name
        assert np.array_equal(after.weights, again.weights)
        assert np.array_equal(late.keep, start.keep)
        assert late.stopped == "deadline"


def test_it_begins_with_the_weights_at_hand():
    problem = random_layer("0.5", rows=4, n=24)
    start = Refit().run(problem, Wanda().run(problem, State(), Context()), Context())
    after = FISTAPruner(rounds=2).run(problem, start, Context())
    assert problem.error_of_weights(after.weights) <= problem.error_of_weights(start.weights)
    layer = Layer.of(problem, EXACT)
    np.testing.assert_allclose(layer.begin(start) * torch.tensor(layer.size) / torch.tensor(layer.scale), start.weights)
    left_behind = State(keep=~start.keep, weights=start.weights)
    assert not layer.begin(left_behind).numpy()[start.keep].any()


def test_bad_parameters():
    for bad in ({"rounds": 0}, {"steps": 0}, {"ratio": 0.0}, {"ratio": 1.0}):
        with pytest.raises(ValueError, match="must"):
            FISTAPruner(**bad)
