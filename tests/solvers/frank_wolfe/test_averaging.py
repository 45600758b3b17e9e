"""Averages of iterates: lookahead is Krasnosel'skiĭ and Mann's iteration, and none changes where a method ends."""

import numpy as np
import pytest
import torch
from layers import arriving, begun, random_layer
from oracles import relaxed_minimum

from fwbench import verify
from fwbench.solvers.frank_wolfe.averaging import Averaging, minimise_averaged
from fwbench.solvers.frank_wolfe.objective import LoopOptions, LoopRun, Objective
from fwbench.solvers.frank_wolfe.stage import FrankWolfe
from fwbench.stage import Context, State

EXACT = Context(dtype="float64")


def walked(kind: str, turns: int, weight: float = 0.3) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Where an affine map that contracts is asked, where it leads at last, and its matrix and shift's fixed point."""
    problem, rng = random_layer("0.5", rows=2, n=8), np.random.default_rng(0)
    A = np.linalg.qr(rng.standard_normal((8, 8)))[0] * 0.9
    fixed = rng.uniform(0.2, 0.8, (2, 8))
    asked = []

    def walk(u: torch.Tensor, options: LoopOptions, context: Context) -> LoopRun:
        asked.append(u.numpy().copy())
        end = torch.from_numpy(fixed + (u.numpy() - fixed) @ A)
        return LoopRun(end, end, torch.zeros(2, 1), options.steps, "")

    layer = Objective.of(problem, EXACT)
    start = torch.full((2, 8), 0.5, dtype=torch.float64)
    options = LoopOptions(steps=5 * turns)
    run = minimise_averaged(walk, layer, start, options, Averaging(kind, 5, weight), EXACT)
    assert run.iterations == 5 * turns
    asked.append(run.u.numpy())
    return asked, A, fixed


def test_lookahead_is_the_krasnoselskii_mann_iteration():
    asked, A, fixed = walked("lookahead", 40)
    z = np.full((2, 8), 0.5)
    for point in asked:
        np.testing.assert_allclose(point, z, atol=1e-12)
        z = z + 0.3 * (fixed + (z - fixed) @ A - z)
    assert np.abs(asked[-1] - fixed).max() < 0.1 * np.abs(asked[0] - fixed).max()


def test_polyak_is_the_mean_with_weights_that_grow():
    averaging, rng = Averaging("polyak"), np.random.default_rng(0)
    ends = [torch.from_numpy(rng.random((2, 3))) for _ in range(7)]
    mean = torch.zeros(2, 3, dtype=torch.float64)
    for turn, end in enumerate(ends, 1):
        mean, after = averaging.advance(turn, mean, end)
        assert after is end
    expected = sum(turn * end for turn, end in enumerate(ends, 1)) / sum(range(1, 8))
    np.testing.assert_allclose(mean, expected, rtol=1e-12)


def test_fixed_points_stay():
    problem = random_layer("0.5", rows=3, n=24)
    best = FrankWolfe(gap=1e-8).run(problem, begun(problem, FrankWolfe), EXACT)
    for average in ("polyak", "lookahead"):
        after = FrankWolfe(gap=1e-6, average=average).run(problem, State(relaxed=best.relaxed), EXACT)
        assert after.counters["iterations"] == 0
        np.testing.assert_allclose(after.relaxed, best.relaxed, atol=1e-12)


@pytest.mark.parametrize("average", ["polyak", "lookahead"])
@pytest.mark.parametrize("pattern", ["0.5", "unstructured:0.4", "2:4"])
def test_it_reaches_the_same_minimum(pattern, average):
    for problem in (random_layer(pattern, n=12), arriving(pattern, n=12)[0]):
        minimum, _ = relaxed_minimum(problem)
        for options in ({}, {"variant": "pairwise"}, {"variant": "vanilla", "step": "open"}):
            stage = FrankWolfe(gap=1e-6, steps=400, average=average, **options)
            after = stage.run(problem, begun(problem, FrankWolfe), EXACT)
            value = problem.row_errors(after.relaxed).sum()
            assert minimum * (1 - 1e-7) <= value <= minimum * (1.02 if options else 1 + 1e-4)
            assert after.lower <= minimum * (1 + 1e-9)
            assert after.trace[-1].relaxed == pytest.approx(value, rel=1e-6)
            assert verify.check(problem, after.certificate).ok


def test_the_open_loop_goes_on_from_walk_to_walk():
    """With a weight of 1 the average is the iterate: that of one run in one piece."""
    problem = random_layer("0.5", rows=3, n=24)
    for dtype, slack in (("float64", 1e-12), ("float32", 1e-5)):
        start, context = begun(problem, FrankWolfe), Context(dtype=dtype)
        options = {"variant": "vanilla", "step": "open", "steps": 60, "gap": 0.0}
        whole = FrankWolfe(**options).run(problem, start, context)
        walks = FrankWolfe(**options, average="lookahead", weight=1.0, every=7).run(problem, start, context)
        np.testing.assert_allclose(walks.relaxed, whole.relaxed, atol=slack)
        assert walks.counters["iterations"] == 60


def test_with_alpha_and_convexified():
    problem = random_layer("0.5", rows=3, n=24)
    start = begun(problem, FrankWolfe)
    fixed = FrankWolfe(alpha=0.5, average="polyak", steps=100).run(problem, start, EXACT)
    assert (fixed.relaxed == 0).sum(axis=1).min() >= 6
    plain, shared = (
        FrankWolfe(convexify=kind, average="polyak", steps=400).run(problem, start, EXACT).lower
        for kind in ("none", "shared")
    )
    assert plain < shared


@pytest.mark.parametrize("given", [{"average": "mean"}, {"every": 0}, {"weight": 0.0}, {"weight": 1.5}])
def test_what_is_no_parameter_is_refused(given):
    with pytest.raises(ValueError, match=r"average|every|weight"):
        FrankWolfe(**given)
