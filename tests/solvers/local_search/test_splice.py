"""Splicing against exchanges that are evaluated from the error's definition."""

import numpy as np
import pytest
from brute import best_mask
from layers import PATTERNS, arriving, hostile_layers, hostile_targets, random_layer

from fwbench.judge import count_reason
from fwbench.solvers.local_search.splice import Splice
from fwbench.solvers.start.scores import Random, Wanda
from fwbench.stage import Context, State


def spliced(problem, keep, size):
    """The best exchange of up to ``size`` pairs of one row, every error evaluated anew; None where none gains."""
    start, width = problem.error(keep[None]), problem.group

    def change(i):
        other = keep.copy()
        other[i] = not other[i]
        return problem.error(other[None]) - start

    changes = np.array([change(i) for i in range(len(keep))])
    groups = [range(first, first + width) for first in range(0, len(keep), width)]
    sides = [[[i for i in group if keep[i] == side] for group in groups] for side in (False, True)]
    if len(groups) == 1:
        into, out = (sorted(side[0], key=lambda i: changes[i]) for side in sides)
        pairs = list(zip(into, out, strict=False))
    else:
        both = [pair for pair in zip(*sides, strict=True) if all(pair)]
        pairs = [tuple(min(side, key=lambda i: changes[i]) for side in pair) for pair in both]
        pairs.sort(key=lambda pair: changes[list(pair)].sum())
    best, least = None, start * (1 - 1e-9)
    other = keep.copy()
    for i, j in pairs[:size]:
        other[[i, j]] = True, False
        if problem.error(other[None]) < least:
            best, least = other.copy(), problem.error(other[None])
    return best


@pytest.mark.parametrize("size", [1, 3, 32])
@pytest.mark.parametrize("pattern", ["0.5", "0.25", "2:4"])
def test_descents_are_those_of_the_definition(pattern, size):
    for seed in range(4):
        problem, _, _ = arriving(pattern, rows=2, n=8, seed=seed)
        start = Random().run(problem, State(), Context(seed=seed))
        after = Splice(size=size).run(problem, start, Context())
        for row in range(2):
            own, now, swaps = problem.part(slice(row, row + 1)), start.keep[row], 0
            while (then := spliced(own, now, size)) is not None:
                now, swaps = then, swaps + 1
            assert np.array_equal(after.keep[row], now)
            assert after.counters["swaps"] >= swaps


@pytest.mark.parametrize("pattern", PATTERNS)
def test_feasible_never_worse_and_repeatable(pattern):
    for problem in [random_layer(pattern, rows=5, n=24), *hostile_layers(pattern), *hostile_targets(pattern)]:
        start = Wanda().run(problem, State(), Context())
        given = start.keep.copy()
        after, again = (Splice().run(problem, start, Context(threads=threads)) for threads in (1, 2))
        assert np.array_equal(start.keep, given)
        assert np.array_equal(after.keep, again.keep)
        assert not count_reason(problem, after.keep), problem.name
        assert problem.error(after.keep) <= problem.error(start.keep), problem.name


def test_it_comes_near_the_optimum_of_small_rows():
    errors = []
    for seed in range(10):
        problem = random_layer("0.5", rows=1, n=10, seed=seed)
        start = Wanda().run(problem, State(), Context())
        errors.append(problem.error(Splice().run(problem, start, Context()).keep) / best_mask(problem)[0])
    assert min(errors) > 1 - 1e-9
    assert np.mean(errors) < 1.2


def test_a_deadline_leaves_the_mask():
    problem = random_layer("0.5", rows=4, n=24)
    start = Wanda().run(problem, State(), Context())
    after = Splice().run(problem, start, Context(deadline=0.0))
    assert (np.array_equal(after.keep, start.keep), after.stopped) == (True, "deadline")


def test_bad_parameters():
    with pytest.raises(ValueError, match="at least 1"):
        Splice(size=0)
