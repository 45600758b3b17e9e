"""Solvers of different kinds agree on the real problems of ``mini``; what they say of optima and bounds is coherent."""

import numpy as np
import pytest
from brute import best_mask

from fwbench import bounds, verify
from fwbench.pipeline import resolve, run
from fwbench.problem import Problem
from fwbench.problems.collections import load, one
from fwbench.solvers.external.qp import QuadraticProgram
from fwbench.solvers.frank_wolfe.stage import FrankWolfe
from fwbench.solvers.start.scores import Wanda
from fwbench.stage import Context, State

MINI = [problem for _, problem in load("mini")]
SMALL = [problem for problem in MINI if problem.n <= 32]
NAMES = [problem.name for problem in MINI]


def relaxed(problem, stage, context=Context(dtype="float64", threads=2)):  # noqa: B008
    """Value of the relaxation where a stage ends."""
    u = stage.run(problem, Wanda().run(problem, State(), context), context).relaxed
    return float(problem.row_errors(u).sum())


def agree(problem):
    """Frank-Wolfe and two QP back ends reach the same relaxed optimum to 1e-4 relative."""
    ours = relaxed(problem, FrankWolfe(gap=1e-6, steps=20000))
    for backend in ("clarabel", "piqp"):
        theirs = relaxed(problem, QuadraticProgram(backend=backend))
        assert abs(ours - theirs) <= 1e-4 * theirs, (problem.name, backend, ours, theirs)


@pytest.mark.parametrize("problem", SMALL, ids=[p.name for p in SMALL])
def test_frank_wolfe_and_two_qp_solvers_agree_on_small_problems(problem):
    agree(problem)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("problem", MINI, ids=NAMES)
def test_frank_wolfe_and_two_qp_solvers_agree(problem):
    agree(problem)


@pytest.mark.parametrize("problem", [p for p in SMALL if p.n == 16], ids=[p.name for p in SMALL if p.n == 16])
def test_gurobi_and_bnb_find_the_optimum_of_brute_force(problem):
    if not problem.pattern.separable:  # 64 weights together are beyond enumeration: the two must agree
        optimum = run(problem, resolve("bnb")).result.error
    else:
        optimum, _ = best_mask(problem)
    for solver in ("gurobi", "gurobi(convexify=shared)", "bnb"):
        found = run(problem, resolve(solver)).result
        assert found.status == "optimal"
        assert found.error == pytest.approx(optimum, rel=1e-7), solver


@pytest.mark.parametrize("problem", SMALL, ids=[p.name for p in SMALL])
def test_every_bound_lies_below_every_error(problem):
    rows = [run(problem, resolve(s)).result for s in ("wanda+swap", "fw+swap", "fw(convexify=shared)", "bnb")]
    lower = [row.lower_bound for row in rows if row.lower_bound is not None]
    rng = np.random.default_rng(0)
    lower += [bounds.lower_bound(problem, rng.random(problem.shape), bounds.safe(problem.G)) for _ in range(20)]
    assert len(lower) == 23
    assert max(lower) <= min(row.error for row in rows) * (1 + 1e-9)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_whole_row_of_a_real_layer_is_solved_and_proved():
    """Row 53 of block 0's k_proj in 2:4, all 576 weights: ten of them hold most of what is at stake."""
    _, layer = one("smollm2/00.k_proj")
    row = Problem("row", layer.W[53:54], layer.G, "2:4")
    after = run(row, resolve("fast+bnb(largest=2000)"))
    assert after.result.status == "optimal"
    checked = verify.check(row, after.certificate)
    assert checked.ok, checked.reason
    assert after.result.error * (1 - 1e-6) <= checked.bound <= after.result.error
