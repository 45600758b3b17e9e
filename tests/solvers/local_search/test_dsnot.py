"""Dynamic sparse no training against its rule on the inputs, and the published one where inputs do not vary."""

import numpy as np
import pytest
from layers import PATTERNS, arriving, hostile_layers, random_layer

from fwbench.judge import count_reason
from fwbench.problem import Problem
from fwbench.solvers.local_search.dsnot import DSnoT
from fwbench.solvers.start.scores import Random, Wanda
from fwbench.stage import Context, State


def cycle(w, y, X, keep, size, power):
    """One cycle from the definitions: moments over tokens of what is left of the output ``y``; None at its end."""
    left = y - np.where(keep, w, 0) @ X
    moment, second = (left * X).mean(axis=1), (X * X).mean(axis=1)
    best, pair = 0.0, None
    for first in range(0, len(w), size):
        block = range(first, first + size)
        gone = [j for j in block if keep[j] and w[j] * moment[j] < 0]
        for k in block:
            if gone and not keep[k] and w[k] * moment[k] / second[k] ** power > best:
                best = w[k] * moment[k] / second[k] ** power
                pair = k, min(gone, key=lambda j: abs(w[j]) * np.sqrt(second[j]))
    if pair is None:
        return None
    after = keep.copy()
    after[list(pair)] = True, False
    return after


@pytest.mark.parametrize("power", [0.0, 1.0])
@pytest.mark.parametrize("pattern", ["0.5", "2:4", "unstructured:0.4"])
def test_cycles_are_those_of_the_rule(pattern, power):
    """After 1, 2, ... cycles: of the masks so far the best."""
    for seed, wrong in ((0, 1e-9), (1, 0.5)):
        problem, Y, X = arriving(pattern, rows=4, n=8, seed=seed, wrong=wrong)
        start = Random().run(problem, State(), Context(seed=seed))
        for row in range(4):
            now, best = start.keep[row], start.keep[row]
            for cycles in range(1, 7):
                now = cycle(problem.W[row].astype(float), Y[row], X, now, problem.group, power)
                if now is None:
                    break
                errors = [((Y[row] - np.where(keep, problem.W[row], 0) @ X) ** 2).mean() for keep in (now, best)]
                best = now if errors[0] < errors[1] else best
                after = DSnoT(cycles=cycles, power=power).run(problem, start, Context())
                assert np.array_equal(after.keep[row], best)


def test_inputs_that_do_not_vary_are_grown_and_pruned_as_published():
    """Without variance ``E[ε x] = E[ε] E[x]``; the published signs and scores, its variances all alike."""
    rng = np.random.default_rng(5)
    W, mean = rng.standard_normal((6, 10)).astype(np.float32), rng.standard_normal(10)
    problem = Problem("constant inputs", W, np.outer(mean, mean), "0.5")
    start = Random().run(problem, State(), Context(seed=2))
    after = DSnoT(cycles=1, power=0.0).run(problem, start, Context())
    changed = 0
    for w, before, found in zip(W.astype(float), start.keep, after.keep, strict=True):
        sign = np.sign((w * ~before) @ mean)
        grown = np.where(before, -np.inf, sign * w * mean).argmax()
        gone = np.where(before & (sign * w * mean < 0), np.abs(w * mean), np.inf).argmin()
        published = before.copy()
        published[[grown, gone]] = True, False
        errors = [((w * ~keep) @ mean) ** 2 for keep in (published, before)]
        assert np.array_equal(found, published if errors[0] < errors[1] else before)
        changed += errors[0] < errors[1]
    assert changed >= 2


@pytest.mark.parametrize("pattern", PATTERNS)
def test_feasible_never_worse_and_repeatable(pattern):
    for problem in [random_layer(pattern, rows=5, n=24), *hostile_layers(pattern)]:
        start = Wanda().run(problem, State(), Context())
        given = start.keep.copy()
        after, again = (DSnoT().run(problem, start, Context(threads=threads)) for threads in (1, 2))
        assert np.array_equal(start.keep, given)
        assert np.array_equal(after.keep, again.keep)
        assert not count_reason(problem, after.keep), problem.name
        assert problem.error(after.keep) <= problem.error(start.keep), problem.name
        assert after.counters["iterations"] <= 50 * problem.rows


def test_it_gains_on_correlated_inputs_and_stops_at_a_deadline():
    problem = random_layer("0.6", rows=80, n=48, seed=1)
    start = Wanda().run(problem, State(), Context())
    after, late = (DSnoT().run(problem, start, context) for context in (Context(), Context(deadline=0.0)))
    assert problem.error(after.keep) < 0.95 * problem.error(start.keep)
    assert (after.stopped, late.stopped) == ("", "deadline")
    assert np.array_equal(late.keep, start.keep)


def test_bad_parameters():
    for bad in ({"cycles": 0}, {"power": -0.1}, {"power": float("nan")}):
        with pytest.raises(ValueError, match="must"):
            DSnoT(**bad)
