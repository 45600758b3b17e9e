"""Hard thresholding against loops of its two lines, its fixed points, and an error that never rises."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from layers import PATTERNS, arriving, hostile_layers, hostile_targets, random_layer

from fwbench.judge import judge
from fwbench.solvers.start.scores import Random, Wanda
from fwbench.solvers.weight_update.descent import ABOVE
from fwbench.solvers.weight_update.iht import IHT
from fwbench.stage import Context, State

EXACT = Context(dtype="float64")
BOTH = pytest.mark.parametrize("accelerated", [False, True])


class Loop:
    """On inputs and target themselves, in units where inputs have norm 1."""

    def __init__(self, problem, Y, X):
        self.problem, self.Y = problem, Y
        self.norm = np.linalg.norm(X, axis=1)
        self.X = X / self.norm[:, None]
        self.L = np.linalg.eigvalsh(self.X @ self.X.T)[-1] * (1 + ABOVE)

    def threshold(self, v):
        return np.where(self.problem.pattern.prune(np.abs(v)), 0, v)

    def step(self, v):
        return self.threshold(v + (self.Y - v @ self.X) @ self.X.T / self.L)

    def errors(self, v):
        own = ((self.Y - v @ self.X) ** 2).sum(axis=1, keepdims=True)
        return own if self.problem.pattern.separable else np.full_like(own, own.sum())

    def plain(self, v, steps):
        for _ in range(steps):
            v = self.step(v)
        return v

    def accelerated(self, x, steps):
        """Li and Lin's algorithm 1."""
        z = before = x
        last, now = 0.0, 1.0
        for _ in range(steps):
            z, safe = self.step(x + last / now * (z - x) + (last - 1) / now * (x - before)), self.step(x)
            before, x = x, np.where(self.errors(z) <= self.errors(safe), z, safe)
            last, now = now, (1 + np.sqrt(4 * now**2 + 1)) / 2
        return x


@BOTH
@pytest.mark.parametrize("pattern", ["0.5", "2:4", "unstructured:0.4"])
def test_iterations_are_those_of_the_definition(pattern, accelerated):
    for seed, wrong in ((0, 1e-12), (1, 0.7)):
        problem, Y, X = arriving(pattern, rows=4, n=16, seed=seed, wrong=wrong)
        loop = Loop(problem, Y, X)
        start = Random().run(problem, State(), Context(seed=seed))
        for steps in (1, 2, 5, 20):
            v = np.where(start.keep, problem.W, 0) * loop.norm
            expected = (loop.accelerated if accelerated else loop.plain)(v, steps) / loop.norm
            after = IHT(iterations=steps, accelerated=accelerated).run(problem, start, EXACT)
            np.testing.assert_allclose(after.weights, expected, rtol=1e-4, atol=1e-5)
            assert after.counters["iterations"] <= steps


@BOTH
@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_error_never_rises(pattern, accelerated):
    problem, _, _ = arriving(pattern, rows=4, n=16)
    for layer in (problem, random_layer(pattern, rows=4, n=16, condition=1e4)):
        start = Random().run(layer, State(), Context())
        errors = [layer.error(start.keep)]
        for steps in range(1, 30):
            after = IHT(iterations=steps, accelerated=accelerated).run(layer, start, EXACT)
            errors.append(layer.error_of_weights(after.weights))
        assert all(b <= a * (1 + 1e-6) for a, b in pairwise(errors))
        assert errors[-1] < errors[0] or not layer.counts.any()


@BOTH
def test_fixed_points_stay_and_are_stationary(accelerated):
    """Where no step leads on, kept weights have no slope, and no pruned one has a slope that brings it in."""
    problem = random_layer("0.5", rows=4, n=12, seed=3)
    start = Wanda().run(problem, State(), Context())
    found = IHT(iterations=20000, accelerated=accelerated).run(problem, start, EXACT)
    norm = np.sqrt(problem.G.diagonal())
    G = problem.G / norm / norm[:, None]
    slope = ((problem.W - found.weights) * norm) @ G
    L, v = np.linalg.eigvalsh(G)[-1], np.abs(found.weights * norm)
    assert np.abs(slope[found.keep]).max() < 1e-5
    for s, kept, size in zip(np.abs(slope), found.keep, v, strict=True):
        assert s[~kept].max() / L <= size[kept].min() * (1 + 1e-5)
    at_once = replace(problem, W=np.where(start.keep, problem.W, 0))  # no error: a fixed point to begin with
    again = IHT(accelerated=accelerated).run(at_once, start, EXACT)
    assert again.counters["iterations"] == 1
    assert np.array_equal(again.weights, at_once.W)


@BOTH
@pytest.mark.parametrize("pattern", PATTERNS)
def test_feasible_never_worse_and_repeatable(pattern, accelerated):
    stage = IHT(iterations=15, accelerated=accelerated)
    for problem in (*hostile_layers(pattern), *hostile_targets(pattern)):
        start = Wanda().run(problem, State(), Context())
        after, again, late = (stage.run(problem, start, c) for c in (Context(), Context(), Context(deadline=0.0)))
        assert judge(problem, after.keep, after.weights).verdict == "feasible", problem.name
        assert problem.error_of_weights(after.weights) <= problem.error(start.keep), problem.name
        assert np.array_equal(after.weights, again.weights)
        assert np.array_equal(late.keep, start.keep)
        assert late.stopped == "deadline"


def test_acceleration_gains():
    problem = random_layer("0.5", rows=16, n=48)
    start = Wanda().run(problem, State(), Context())
    errors = [
        problem.error_of_weights(IHT(iterations=40, accelerated=kind).run(problem, start, Context()).weights)
        for kind in (True, False)
    ]
    assert errors[0] < errors[1] < 0.9 * problem.error(start.keep)


def test_bad_parameters():
    with pytest.raises(ValueError, match="at least 1"):
        IHT(iterations=0)
