"""The penalty form against enumeration, and dwave-samplers on it: repair, honesty, seeds, the clock."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from brute import best_mask
from hypothesis import given, settings
from hypothesis import strategies as st
from layers import PATTERNS, arriving, begun, extreme_layers, hostile_layers, random_layer

from fwbench import pipeline
from fwbench.judge import count_reason
from fwbench.problem import Problem
from fwbench.solvers.external.blocks import blocks
from fwbench.solvers.external.dwave_ import METHODS, DWave
from fwbench.solvers.external.qubo import enough, qubo, repaired
from fwbench.stage import Context


def small(pattern: str, target: bool, seed: int) -> Problem:
    n = 4 if pattern.startswith("unstructured") else 12
    return arriving(pattern, rows=2, n=n, seed=seed)[0] if target else random_layer(pattern, rows=2, n=n, seed=seed)


def all_masks(size: int) -> np.ndarray:
    return np.array(list(product((False, True), repeat=size)))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.sampled_from(PATTERNS), st.booleans(), st.integers(0, 2**32))
def test_enough_penalty_has_the_same_minimisers(pattern, target, seed):
    """Over all ``2^m`` points, m ≤ 12: the least value of the penalty form is the best mask's, which has the counts."""
    problem = small(pattern, target, seed)
    total = 0.0
    for block in blocks(problem):
        u = all_masks(block.size)
        values = qubo(block, enough(block) * (1 + 1e-6) + 1e-12).values(u)
        right = (u.reshape(len(u), len(block.counts), -1).sum(axis=2) == block.counts).all(axis=1)
        assert right[values.argmin()]
        for mask in u[right][:50]:
            assert qubo(block, 7.0).values(mask) == pytest.approx(
                problem.row_errors(mask.reshape(-1, problem.n), block.rows).sum(), rel=1e-9
            )
        total += values.min()
    assert total == pytest.approx(best_mask(problem)[0], rel=1e-9)


def test_too_little_penalty_does_not_hold_the_counts():
    problem = random_layer("0.5", rows=1)
    [block] = blocks(problem)
    u = all_masks(block.size)
    assert u[qubo(block, 1e-3 * enough(block)).values(u).argmin()].sum() < block.counts[0]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_repair_takes_the_cheapest_step_each_time(pattern):
    problem = small(pattern, True, 3)
    rng = np.random.default_rng(0)
    for block in blocks(problem):
        drawn = rng.random(block.size) < rng.random()
        expected, size = drawn.copy(), block.size // len(block.counts)
        for group, count in enumerate(block.counts):
            part = range(group * size, (group + 1) * size)
            while expected[part].sum() != count:
                wanted = expected[part].sum() < count
                options = [np.where(np.arange(block.size) == i, wanted, expected) for i in part]
                options = [one for i, one in zip(part, options, strict=True) if expected[i] != wanted]
                expected = min(options, key=qubo(block, 0.0).values)
        assert np.array_equal(repaired(block, drawn), expected)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_never_worse_and_near_the_optimum(pattern, method):
    for target in (False, True):
        problem = small(pattern, target, 1)
        stage = DWave(method=method, penalty=0.2, reads=20)
        start = begun(problem, stage)
        after = stage.run(problem, start, Context(seed=3))
        best, _ = best_mask(problem)
        assert not count_reason(problem, after.keep)
        assert problem.error(after.keep) <= min(problem.error(start.keep), 1.05 * best)
        assert after.counters["repaired"] <= after.counters["samples"] <= 40
        assert np.array_equal(stage.run(problem, start, Context(seed=3, deadline=1e12)).keep, after.keep)


@pytest.mark.parametrize("method", METHODS)
def test_a_small_penalty_is_repaired_and_counted(method):
    problem = random_layer("0.5", rows=3, seed=4)
    after = DWave(method=method, penalty=1e-3, reads=5).run(problem, begun(problem, DWave), Context())
    assert after.counters == {"samples": 15, "repaired": 15}
    assert not count_reason(problem, after.keep)


@pytest.mark.parametrize("method", METHODS)
def test_bears_hostile_layers(method):
    for problem in (*hostile_layers("0.5"), *extreme_layers("2:4")):
        start = begun(problem, DWave)
        after = DWave(method=method, reads=2, sweeps=5).run(problem, start, Context())
        assert not count_reason(problem, after.keep), problem.name
        assert problem.error(after.keep) <= problem.error(start.keep), problem.name


def test_clock_salvage_and_what_is_declined():
    problem = random_layer("0.5", rows=3)
    start, parts = begun(problem, DWave), {}
    late = DWave().run(problem, start, Context(deadline=0.0))
    assert late.stopped == "deadline"
    assert np.array_equal(late.keep, start.keep)
    done = DWave().run(problem, start, replace(Context(), hand_in=parts.__setitem__))
    assert np.array_equal(DWave().salvage(problem, start, parts).keep, done.keep)
    assert "largest=12" in str(DWave(largest=11).supports(problem))


def test_without_the_package_it_is_declined_by_name(monkeypatch):
    monkeypatch.setattr(DWave, "requires", ("no_such_package.samplers",))
    reason = pipeline.skip_reason(random_layer("0.5"), pipeline.resolve("wanda+dwave"))
    assert "no_such_package-samplers, which is not installed (pip install no_such_package-samplers)" in str(reason)


@pytest.mark.parametrize("given", [{"method": "qpu"}, {"penalty": 0.0}, {"sweeps": 0}, {"reads": 0}])
def test_what_is_no_parameter_is_refused(given):
    with pytest.raises(ValueError, match=r"unknown|must be"):
        DWave(**given)
