"""1-swaps against an exhaustive search in plain python, swap by swap."""

import numpy as np
import pytest
from brute import best_mask
from hypothesis import given, settings
from hypothesis import strategies as st
from layers import PATTERNS, hostile_layers, integer_layer, random_layer

from fwbench.judge import count_reason
from fwbench.problem import Problem
from fwbench.solvers.local_search.safeguard import Safeguard
from fwbench.solvers.local_search.swap import Swap
from fwbench.solvers.start.scores import Random, Wanda
from fwbench.stage import Context, State


def exchanges(problem: Problem, pruned: np.ndarray, rows: list[int]) -> list[tuple[float, int, int]]:
    """Every 1-swap of a group that involves only ``rows``: (change of the error, freed, taken), flat indices."""
    size, n = problem.pattern.group_size(problem.shape), problem.n
    before, found = problem.row_errors(pruned), []
    for i in np.flatnonzero(pruned):
        for j in np.flatnonzero(~pruned):
            if i // size == j // size and {i // n, j // n} <= set(rows):
                trial = pruned.copy()
                trial.flat[[i, j]] = False, True
                found.append(((problem.row_errors(trial) - before).sum(), int(i), int(j)))
    return found


def descend(problem: Problem, pruned: np.ndarray, row: int, limit: int) -> int:
    """The best improving swap of a row, lowest freed then lowest taken index of equals, again and again."""
    for done in range(limit):
        best = min(exchanges(problem, pruned, [row]), default=(0.0, 0, 0))
        if best[0] >= 0:
            return done
        pruned.flat[[best[1], best[2]]] = False, True
    return limit


def by_definition(problem: Problem, keep: np.ndarray, limit: int = 10**9) -> tuple[np.ndarray, int]:
    """The mask that ``swap`` ends at, from the layer's error alone, and the number of swaps."""
    pruned = ~keep
    swaps = sum(descend(problem, pruned, row, limit) for row in range(problem.rows))
    while not problem.pattern.separable:
        between = [
            x for x in exchanges(problem, pruned, list(range(problem.rows))) if x[1] // problem.n != x[2] // problem.n
        ]
        best = min(between, default=(0.0, 0, 0))
        if best[0] >= 0:
            break
        pruned.flat[[best[1], best[2]]] = False, True
        swaps += 1 + sum(descend(problem, pruned, index // problem.n, limit) for index in best[1:])
    return ~pruned, swaps


def starts(problem: Problem, seed: int) -> list[State]:
    return [Wanda().run(problem, State(), Context()), Random().run(problem, State(), Context(seed=seed))]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("pattern", [p for p in PATTERNS if p != "unstructured:0.4"])
def test_equals_exhaustive_search(pattern, seed):
    problem = integer_layer(pattern, rows=3, n=8, seed=seed)
    for start in starts(problem, seed):
        for limit in (1, 2, 3, 0):
            after = Swap(limit=limit).run(problem, start, Context(threads=2))
            keep, swaps = by_definition(problem, start.keep, limit or 10**9)
            assert np.array_equal(after.keep, keep)
            assert after.counters["swaps"] == swaps
            assert after.stopped == ""


@pytest.mark.parametrize("limit", [1, 2])
def test_a_limit_is_of_a_row_s_swaps_between_rows_too(limit):
    """Each changes at most two weights of a row; without a limit these rows change more."""
    problem = random_layer("unstructured:0.4", rows=4, n=24)
    for start in starts(problem, 0):
        changed = (Swap(limit=limit).run(problem, start, Context()).keep != start.keep).sum(axis=1)
        assert changed.max() <= 2 * limit < (Swap().run(problem, start, Context()).keep != start.keep).sum(axis=1).max()
        assert problem.error(Swap(limit=limit).run(problem, start, Context()).keep) < problem.error(start.keep)
    with pytest.raises(ValueError, match="limit"):
        Swap(limit=-1)


@pytest.mark.parametrize("make", [integer_layer, random_layer])
@pytest.mark.parametrize("pattern", ["0.5", "rows"])
def test_equals_exhaustive_search_where_a_bound_chooses_what_is_tried(pattern, make):
    """Groups above 32 weights are searched by bounds; ties (many, on integers) go by the same rule."""
    problem = make(pattern, rows=3, n=40, seed=5)
    for start in starts(problem, 0):
        keep, swaps = by_definition(problem, start.keep)
        after = Swap().run(problem, start, Context(threads=2))
        assert np.array_equal(after.keep, keep)
        assert after.counters["swaps"] == swaps


def test_groups_larger_than_the_small_ones_keep_their_counts():
    """Groups of 40 in rows of 80: beyond the size up to which whole rows are searched by pairs."""
    problem = random_layer("20:40", rows=2, n=80, condition=1e3)
    for start in starts(problem, 0):
        keep, swaps = by_definition(problem, start.keep)
        after = Swap().run(problem, start, Context())
        assert not count_reason(problem, after.keep)
        assert np.array_equal(after.keep, keep)
        assert after.counters["swaps"] == swaps


@pytest.mark.parametrize("enough", [0.5, 0.1, 1e-3])
@pytest.mark.parametrize("condition", [1e0, 1e8])
def test_every_swap_gains_enough_of_the_largest_gain(condition, enough):
    problem = random_layer("0.5", rows=1, n=48, condition=condition)
    swaps = 0
    for start in starts(problem, 2):
        done, keep = 0, start.keep
        while True:
            after = Swap(enough=enough, limit=done + 1).run(problem, start, Context())
            best = min(exchanges(problem, ~keep, [0]))[0]
            if after.counters["swaps"] == done:
                break
            gained = problem.error(keep) - problem.error(after.keep)
            assert 0 < gained <= -best * (1 + 1e-9)
            assert gained >= -enough * best * (1 - 1e-9)
            done, keep = done + 1, after.keep
        assert best >= -1e-9 * problem.error(keep)  # ends at a 1-swap optimum all the same
        swaps += done
    assert swaps > 5


@pytest.mark.parametrize("enough", [0.0, 1.5, -1.0, float("nan")])
def test_a_part_of_the_gain_that_is_none_is_refused(enough):
    with pytest.raises(ValueError, match="enough"):
        Swap(enough=enough)


@pytest.mark.parametrize("condition", [1e0, 1e8])
def test_no_swap_is_missed_where_a_bound_chooses_what_is_tried(condition):
    problem = random_layer("0.5", rows=2, n=64, condition=condition)
    for start in starts(problem, 1):
        after = Swap().run(problem, start, Context())
        least = min(exchanges(problem, ~after.keep, [0, 1]))[0]
        assert least >= -1e-9 * problem.error(after.keep)


@pytest.mark.parametrize("seed", range(6))
def test_equals_exhaustive_search_over_a_layer(seed):
    problem = integer_layer("unstructured:0.4", rows=3, n=6, seed=seed)
    for start in starts(problem, seed):
        after = Swap().run(problem, start, Context())
        keep, swaps = by_definition(problem, start.keep)
        assert np.array_equal(after.keep, keep)
        assert after.counters["swaps"] == swaps


@pytest.mark.parametrize("pattern", PATTERNS)
@settings(max_examples=15)
@given(seed=st.integers(0, 10_000))
def test_ends_at_a_1_swap_optimum_never_worse(pattern, seed):
    problem = random_layer(pattern, rows=3, n=12, seed=seed, condition=10 ** (seed % 7))
    for start in starts(problem, seed):
        after = Swap().run(problem, start, Context())
        assert not count_reason(problem, after.keep)
        assert problem.error(after.keep) <= problem.error(start.keep)
        least = min(exchanges(problem, ~after.keep, list(range(3))), default=(0.0, 0, 0))[0]
        assert least >= -1e-10 * problem.error(after.keep)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_an_optimal_mask_stays(pattern):
    problem = random_layer(pattern, n=5 if pattern == "unstructured:0.4" else 12)
    _, keep = best_mask(problem)
    after = Swap().run(problem, State(keep=keep), Context())
    assert np.array_equal(after.keep, keep)
    assert after.counters["swaps"] == 0


@pytest.mark.parametrize("n", [8, 40])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_hostile_layers(pattern, n):
    for problem in hostile_layers(pattern, n=n):
        for start in starts(problem, 0):
            after = Swap().run(problem, start, Context())
            assert not count_reason(problem, after.keep), problem.name
            assert problem.error(after.keep) <= problem.error(start.keep) * (1 + 1e-12) + 1e-13 * problem.total


@pytest.mark.parametrize("seed", range(8))
def test_ends_at_a_mask_without_error(seed):
    """Of a layer that was pruned before: the running error may come out below 0 by rounding."""
    rng = np.random.default_rng(seed)
    dense = random_layer("0.5", rows=4, n=40, seed=seed)
    problem = Problem("sparse", np.where(rng.random(dense.W.shape) < 0.6, 0.0, dense.W), dense.G, "0.5")
    start = Random().run(problem, State(), Context(seed=seed + 100))
    after = Swap(limit=1000).run(problem, start, Context())
    assert after.counters["swaps"] < 200
    assert problem.error(after.keep) < problem.error(start.keep)


@pytest.mark.parametrize("pattern", ["0.5", "unstructured:0.4", "2:4"])
def test_threads_and_chunks_do_not_change_the_mask(pattern, monkeypatch):
    problem = random_layer(pattern, rows=9, n=24)
    start = starts(problem, 0)[1]
    whole = Swap().run(problem, start, Context(threads=1))
    monkeypatch.setattr("fwbench.solvers.local_search.swap_numba.CHUNK_ROWS", 2)
    parts = Swap().run(problem, start, Context(threads=2))
    assert np.array_equal(whole.keep, parts.keep)
    assert whole.counters == parts.counters


def test_one_row_does_not_depend_on_the_others():
    problem = random_layer("0.5", rows=4, n=16)
    start = starts(problem, 0)[1]
    whole = Swap().run(problem, start, Context()).keep
    for row in range(4):
        alone = Problem("row", problem.W[row : row + 1], problem.G, "0.5")
        assert np.array_equal(Swap().run(alone, State(keep=start.keep[row : row + 1]), Context()).keep[0], whole[row])


@pytest.mark.parametrize("pattern", ["0.5", "2:4", "rows"])
def test_the_limit_is_for_each_row(pattern):
    problem = random_layer(pattern, rows=3, n=24)
    start = starts(problem, 0)[1]
    errors = [problem.row_errors(~start.keep)]
    for limit in (1, 2, 4, 8):
        after = Swap(limit=limit).run(problem, start, Context())
        changed = (after.keep != start.keep).sum(axis=1)
        assert (changed <= 2 * limit).all()
        errors.append(problem.row_errors(~after.keep))
    assert (np.diff(errors, axis=0) <= 1e-12).all()
    assert (errors[-1][1:-1] < errors[0][1:-1]).all()


@pytest.mark.parametrize("looks", [1, 2, 3])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_deadline_leaves_a_feasible_mask(pattern, looks, monkeypatch):
    clock = iter([False] * (looks - 1) + [True])
    monkeypatch.setattr("fwbench.solvers.local_search.swap_numba.CHUNK_ROWS", 2)
    monkeypatch.setattr(Context, "expired", lambda self: next(clock))
    problem = random_layer(pattern, rows=8, n=16)
    start = Random().run(problem, State(), Context())
    after = Swap().run(problem, start, Context())
    assert after.stopped == "deadline"
    assert not count_reason(problem, after.keep)
    assert np.array_equal(after.keep[2 * (looks - 1) :], start.keep[2 * (looks - 1) :])
    assert problem.error(after.keep) <= problem.error(start.keep)


def test_the_given_mask_is_not_written_to():
    problem = random_layer("unstructured:0.4")
    start = starts(problem, 0)[1]
    keep = start.keep.copy()
    Swap().run(problem, start, Context())
    assert np.array_equal(start.keep, keep)


def test_a_mask_is_needed():
    with pytest.raises(ValueError, match="there is no mask to begin with"):
        Swap().run(random_layer("0.5"), State(), Context())


@pytest.mark.parametrize("pattern", PATTERNS)
def test_safeguard_takes_the_better_of_each_row_or_layer(pattern):
    problem = random_layer(pattern, rows=20, n=24, condition=1e4)
    first, second = starts(problem, 3)
    swapped = Swap().run(problem, first, Context())
    mine, theirs = (problem.row_errors(~keep) for keep in (second.keep, swapped.keep))
    assert (theirs < mine).any()
    after = Safeguard().run(problem, second, Context())
    assert not count_reason(problem, after.keep)
    expected = np.minimum(mine, theirs) if problem.pattern.separable else theirs
    assert np.allclose(problem.row_errors(~after.keep), expected, rtol=1e-12)
    assert np.array_equal(Safeguard().run(problem, swapped, Context()).keep, swapped.keep)


@pytest.mark.parametrize("pattern", ["0.5", "unstructured:0.4", "2:4"])
def test_safeguard_keeps_a_mask_that_swaps_cannot_reach(pattern):
    problem = random_layer(pattern, rows=2 if pattern == "unstructured:0.4" else 4, n=6 if ":0." in pattern else 12)
    error, keep = best_mask(problem)
    after = Safeguard().run(problem, State(keep=keep), Context())
    assert problem.error(after.keep) == pytest.approx(error, rel=1e-12)
