"""Tabu search and annealing against enumeration and their contract: counts, never worse, 1-swap optimal, repeatable."""

import time
from itertools import pairwise, product

import numpy as np
import pytest
from brute import best_mask
from layers import PATTERNS, hostile_layers, integer_layer, random_layer

from fwbench.judge import count_reason
from fwbench.problem import Problem
from fwbench.solvers.local_search import anneal, anneal_numba, swap_numba, tabu
from fwbench.solvers.local_search.anneal import Anneal
from fwbench.solvers.local_search.ils import IteratedLocalSearch, kicked
from fwbench.solvers.local_search.swap import Swap
from fwbench.solvers.local_search.tabu import Tabu
from fwbench.solvers.numerics.threads import numba_threads
from fwbench.solvers.start.scores import Wanda
from fwbench.stage import Context, Stage, State

SHORT = [Tabu(iterations=300), Anneal(sweeps=40, rounds=3), IteratedLocalSearch(rounds=60, kicks=3)]
STAGES = pytest.mark.parametrize("stage", SHORT, ids=lambda stage: stage.name)


def start(problem: Problem) -> State:
    return Wanda().run(problem, State(), Context())


def best_swap(problem: Problem, keep: np.ndarray) -> float:
    """Least change of the error by one swap inside a group, by evaluating every one."""
    least, before = np.inf, problem.error(keep)
    group = np.arange(keep.size) // problem.pattern.group_size(problem.shape)
    for i, j in product(np.flatnonzero(~keep), np.flatnonzero(keep)):
        if group[i] == group[j]:
            after = keep.copy()
            after.flat[[i, j]] = True, False
            least = min(least, problem.error(after) - before)
    return least


@STAGES
@pytest.mark.parametrize("pattern", PATTERNS)
def test_feasible_never_worse_and_one_swap_optimal(pattern, stage):
    for problem in (random_layer(pattern, condition=1e4), integer_layer(pattern)):
        before = start(problem)
        given = before.keep.copy()
        after = stage.run(problem, before, Context())
        assert np.array_equal(before.keep, given)
        assert not count_reason(problem, after.keep)
        assert problem.error(after.keep) <= problem.error(given) * (1 + 1e-12)
        assert best_swap(problem, after.keep) >= -1e-9 * problem.error(after.keep)
        assert after.stopped == ""
        assert after.counters["iterations"] > 0
        uppers = [moment.upper for moment in after.trace]
        assert all(b <= a * (1 + 1e-12) for a, b in pairwise(uppers))
        assert uppers[-1] == pytest.approx(problem.error(after.keep), rel=1e-9, abs=1e-12)


@STAGES
@pytest.mark.parametrize("pattern", ["0.5", "unstructured:0.4", "2:4"])
def test_hostile_layers(pattern, stage):
    for problem in hostile_layers(pattern):
        before = start(problem)
        after = stage.run(problem, before, Context())
        assert not count_reason(problem, after.keep), problem.name
        assert problem.error(after.keep) <= problem.error(before.keep) * (1 + 1e-9), problem.name


@STAGES
def test_groups_larger_than_the_small_ones_keep_their_counts(stage):
    problem = random_layer("20:40", rows=2, n=80, condition=1e3)
    before = start(problem)
    after = stage.run(problem, before, Context())
    assert not count_reason(problem, after.keep)
    assert problem.error(after.keep) <= problem.error(Swap().run(problem, before, Context()).keep)


@STAGES
@pytest.mark.parametrize("pattern", ["0.5", "2:4"])
def test_finds_the_optimum_of_every_tiny_row(pattern, stage):
    for seed in range(4):
        problem = random_layer(pattern, rows=4, n=16, seed=seed, condition=1e3)
        optimum, _ = best_mask(problem)
        assert problem.error(stage.run(problem, start(problem), Context()).keep) == pytest.approx(optimum, rel=1e-9)


@STAGES
def test_finds_the_optimum_of_most_tiny_layers_over_the_layer(stage):
    problems = [random_layer("unstructured:0.4", rows=3, n=6, seed=seed) for seed in range(10)]
    found = [problem.error(stage.run(problem, start(problem), Context()).keep) for problem in problems]
    assert sum(error <= best_mask(problem)[0] * (1 + 1e-9) for error, problem in zip(found, problems, strict=True)) >= 5


@STAGES
@pytest.mark.parametrize("pattern", ["0.5", "2:4"])
def test_threads_chunks_steps_and_other_rows_do_not_change_a_row(pattern, stage, monkeypatch):
    problem = random_layer(pattern, rows=9, n=32)
    whole = stage.run(problem, start(problem), Context(threads=1, seed=3))
    assert np.array_equal(stage.run(problem, start(problem), Context(threads=1, seed=3)).keep, whole.keep)
    monkeypatch.setattr(swap_numba, "CHUNK_ROWS", 2)
    for module in (anneal, tabu):
        monkeypatch.setattr(module, "CHUNK_ROWS", 2)
        monkeypatch.setattr(module, "STEP", 2 * 32 * 7)
    split = stage.run(problem, start(problem), Context(threads=2, seed=3))
    assert np.array_equal(split.keep, whole.keep)
    assert split.counters == whole.counters
    part = Problem("part", problem.W[:4], problem.G, pattern)
    assert np.array_equal(stage.run(part, start(part), Context(seed=3)).keep, whole.keep[:4])


@pytest.mark.parametrize(
    "stage",
    [
        Tabu(iterations=10**9, seconds=0.3),
        Anneal(sweeps=10**6, seconds=0.3),
        Anneal(sweeps=50, seconds=0.3),
        IteratedLocalSearch(rounds=0, seconds=0.3),
    ],
)
def test_keeps_its_own_time_without_calling_it_a_deadline(stage):
    problem = random_layer("0.5", rows=80, n=128)
    before = start(problem)
    stage.run(problem, before, Context())  # compiled
    began = time.process_time()  # the wall's clock also counts the tests beside this one
    after = stage.run(problem, before, Context())
    assert time.process_time() - began < 2
    assert after.stopped == ""
    assert not count_reason(problem, after.keep)
    assert problem.error(after.keep) < problem.error(before.keep)


@pytest.mark.parametrize(
    "stage",
    [Tabu(iterations=10**9), Anneal(sweeps=10**7), Anneal(sweeps=50, rounds=40), IteratedLocalSearch(rounds=10**6)],
)
@pytest.mark.parametrize("left", [0.0, 0.3])
@pytest.mark.parametrize("pattern", ["0.5", "unstructured:0.5"])
def test_stops_at_the_deadline(stage, left, pattern):
    problem = random_layer(pattern, rows=80, n=128)
    before = start(problem)
    stage.run(problem, before, Context(deadline=time.monotonic() + 0.1))  # compiled
    began = time.process_time()
    after = stage.run(problem, before, Context(deadline=time.monotonic() + left))
    assert time.process_time() - began < left + 2
    assert after.stopped == "deadline"
    assert not count_reason(problem, after.keep)
    assert problem.error(after.keep) <= problem.error(before.keep)


def test_settled_rows_leave_early():
    problem = random_layer("0.5", rows=4, n=12)
    after = Anneal(sweeps=100, seconds=60).run(problem, start(problem), Context())
    assert after.counters["iterations"] < 4 * 100 * 2**8


def test_walk_keeps_its_error_and_masks():
    """What the kernel updates step by step equals what it computes anew, and only free weights move."""
    problem = random_layer("0.5", rows=3, n=20, condition=1e4)
    W, pruned = problem.W.astype(float), ~start(problem).keep
    free = np.random.default_rng(0).random(problem.shape) < 0.7
    with numba_threads(1):
        walk = anneal_numba.AnnealState.begin(W, problem.G, pruned, free, 20, anneal_numba.keys(0, np.arange(3), 0))
        assert walk.cool(4.0, 0.5, 0, 100, 100) > 0
    assert np.allclose(walk.error, problem.row_errors(walk.now), rtol=1e-9)
    assert np.allclose(walk.least, problem.row_errors(walk.best), rtol=1e-9)
    assert np.array_equal(walk.now[~free], pruned[~free])
    assert np.array_equal(walk.now.sum(axis=1), pruned.sum(axis=1))
    for row in range(3):
        assert sorted(np.flatnonzero(free[row])) == sorted(walk.slots[row, : free[row].sum()].astype(int))


def test_keys_differ():
    keys = np.concatenate([anneal_numba.keys(seed, np.arange(50), run) for seed in (0, 1) for run in range(4)])
    assert len(np.unique(keys)) == keys.size
    assert (keys > 0).all()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Anneal(sweeps=0),
        lambda: Anneal(hot=0.1),
        lambda: Tabu(candidates=0),
        lambda: IteratedLocalSearch(rounds=0),
    ],
)
def test_refuses_parameters_out_of_range(make):
    with pytest.raises(ValueError, match="must"):
        make()


@STAGES
def test_needs_a_mask(stage: Stage):
    with pytest.raises(ValueError, match="no mask"):
        stage.run(random_layer("0.5"), State(), Context())


@pytest.mark.parametrize("pattern", [p for p in PATTERNS if not p.startswith("unstructured")])
def test_a_kick_keeps_the_counts_and_moves_so_many_weights(pattern):
    problem = random_layer(pattern, rows=6, n=24)
    pruned = ~start(problem).keep
    moved = kicked(pruned, problem.pattern.group_size(problem.shape), 2, [0, 1])
    assert not count_reason(problem, ~moved)
    changed = (moved != pruned).sum(axis=1)
    possible = (pruned.sum(axis=1) > 0) & (pruned.sum(axis=1) < problem.n)
    assert (changed <= 4).all()
    assert (changed[~possible] == 0).all()
    assert changed.sum() > 0
    others = kicked(pruned, problem.pattern.group_size(problem.shape), 2, [1, 1])
    assert (others != moved).any()
