"""Alternating minimisation against a loop on the inputs, its safeguard, and what it ends at."""

from itertools import pairwise

import numpy as np
import pytest
from layers import PATTERNS, arriving, hostile_layers, hostile_targets, random_layer

from fwbench.judge import judge
from fwbench.solvers.start.scores import Random, Wanda
from fwbench.solvers.weight_update.alternate import ENOUGH, Alternate
from fwbench.solvers.weight_update.descent import ABOVE
from fwbench.solvers.weight_update.iht import IHT
from fwbench.stage import Context, State

EXACT = Context(dtype="float64")


def by_hand(problem, y, X, w, keep, steps):
    """One row, every error from the outputs: ``y (tokens,)``, ``w`` and ``keep (n,)``."""
    norm = np.linalg.norm(X, axis=1)
    X, v, length, taken = X / norm[:, None], np.where(keep, w, 0) * norm, 1.0, []
    shortest = 1 / (np.linalg.eigvalsh(X @ X.T)[-1] * (1 + ABOVE))

    def error(v):
        return ((y - v @ X) ** 2).sum()

    for _ in range(steps):
        slope = (y - v @ X) @ X.T
        tried = v + length * slope
        tried[problem.pattern.prune(np.abs(tried)[None])[0]] = 0
        if error(tried) <= error(v) - ENOUGH * ((tried - v) ** 2).sum():
            v, keep, length = tried, tried != 0, min(1, 2 * length)
            taken.append("tried")
        else:
            along = np.where(keep, slope, 0)
            v, length = v + (along @ along) / ((along @ X) ** 2).sum() * along, max(length / 2, shortest)
            taken.append("safe")
    return v / norm, taken


@pytest.mark.parametrize("pattern", ["0.5", "2:4"])
def test_steps_are_those_of_the_definition(pattern):
    kinds = set()
    for seed in range(4):
        problem, Y, X = arriving(pattern, rows=3, n=16, seed=seed)
        start = Random().run(problem, State(), Context(seed=seed))
        for steps in (1, 2, 12):
            after = Alternate(iterations=steps).run(problem, start, EXACT)
            for row in range(3):
                expected, taken = by_hand(problem, Y[row], X, problem.W[row].astype(float), start.keep[row], steps)
                np.testing.assert_allclose(after.weights[row], expected, rtol=1e-4, atol=1e-5)
                kinds |= set(taken)
    assert kinds == {"tried", "safe"}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_error_never_rises(pattern):
    for problem in (arriving(pattern, rows=4, n=16)[0], random_layer(pattern, rows=4, n=16, condition=1e4)):
        start = Random().run(problem, State(), Context())
        errors = [problem.error(start.keep)]
        for steps in range(1, 25):
            after = Alternate(iterations=steps).run(problem, start, EXACT)
            errors.append(problem.error_of_weights(after.weights))
        assert all(b <= a * (1 + 1e-6) for a, b in pairwise(errors))


def test_it_ends_at_least_squares_on_its_mask():
    problem, Y, X = arriving("0.5", rows=4, n=12, seed=3)
    after = Alternate(iterations=3000).run(problem, Wanda().run(problem, State(), Context()), EXACT)
    for y, keep, weights in zip(Y, after.keep, after.weights, strict=True):
        np.testing.assert_allclose(weights[keep], np.linalg.lstsq(X[keep].T, y, rcond=None)[0], rtol=1e-3, atol=1e-4)


def test_it_is_better_than_hard_thresholding():
    for seed in range(3):
        problem = random_layer("0.6", rows=16, n=48, seed=seed)
        start = Wanda().run(problem, State(), Context())
        ours, theirs = (
            problem.error_of_weights(s.run(problem, start, Context()).weights) for s in (Alternate(), IHT())
        )
        assert ours < theirs


@pytest.mark.parametrize("pattern", PATTERNS)
def test_feasible_never_worse_and_repeatable(pattern):
    stage = Alternate(iterations=15)
    for problem in (*hostile_layers(pattern), *hostile_targets(pattern)):
        start = Wanda().run(problem, State(), Context())
        after, again, late = (stage.run(problem, start, c) for c in (Context(), Context(), Context(deadline=0.0)))
        assert judge(problem, after.keep, after.weights).verdict == "feasible", problem.name
        assert problem.error_of_weights(after.weights) <= problem.error(start.keep), problem.name
        assert np.array_equal(after.weights, again.weights)
        assert np.array_equal(late.keep, start.keep)
        assert late.stopped == "deadline"


@pytest.mark.parametrize(
    ("rule", "why"),
    [("trimmed", "tokens.*weight_update.trimmed.trimmed"), ("multiplicative", "cancel"), ("other", "must be one of")],
)
def test_other_rules_are_refused_with_the_reason(rule, why):
    with pytest.raises(ValueError, match=why):
        Alternate(rule=rule)


def test_bad_parameters():
    with pytest.raises(ValueError, match="at least 1"):
        Alternate(iterations=0)
