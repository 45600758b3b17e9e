"""Bounds and exact solvers of problems with a target: below the optimum, at it where exact, and proved."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from brute import best_mask
from layers import PATTERNS, arriving, hostile_targets, problem_of

from fwbench import bounds, verify
from fwbench.problem import Problem
from fwbench.result import Certificate
from fwbench.solvers.bounds.batch import Device
from fwbench.solvers.bounds.stage import Bound
from fwbench.solvers.branch_and_bound.stage import BranchAndBound
from fwbench.solvers.external.base import CONVEXIFY, block_error
from fwbench.solvers.external.blocks import blocks
from fwbench.solvers.external.gurobi_ import Gurobi
from fwbench.solvers.external.qp import QuadraticProgram
from fwbench.solvers.external.scip_ import Scip
from fwbench.solvers.semidefinite import row_diagonals, search_diagonal
from fwbench.solvers.semidefinite.ladder import RUNGS, Host, row_bound
from fwbench.solvers.semidefinite.row import RowForm, centred, tangent_bound
from fwbench.solvers.semidefinite.shor import shor
from fwbench.solvers.start.scores import wanda_score
from fwbench.stage import Context, State

SEPARABLE = ("0.5", "2:4", "rows")
EXACT = (BranchAndBound(), Gurobi(), Gurobi(convexify="shared"), Scip())
FEW = 20  # iterations of a rung: its bound holds from the first
KINDS = ("shared", "shor", "best")  # the last climbs every rung, each with few iterations


def start(problem: Problem) -> State:
    return State(keep=~problem.pattern.prune(wanda_score(problem.W, problem.G)))


def run(stage, problem: Problem, **context) -> State:
    return stage.run(problem, start(problem), Context(threads=1, **context))


def slack(problem: Problem, best: float) -> float:
    return 1e-9 * abs(best) + problem.rounding()


def proved(problem: Problem, certificate: Certificate, best: float) -> float:
    found = verify.check(problem, certificate)
    assert found.ok, (problem.name, found.reason)
    assert found.bound <= best + 1e-15 * problem.rounding(), problem.name  # with no tolerance but enumeration's own
    return found.bound


def far_away(n: int = 24, seed: int = 0) -> Problem:
    """Its linear term is a hundred times the rest, and of one sign."""
    rng = np.random.default_rng(seed)
    W, X = np.abs(rng.standard_normal((1, n))).astype(np.float32), np.abs(rng.standard_normal((n, 40)))
    return problem_of("far away", W, W @ X + 100, X, "0.5")


def reachable(n: int = 8, seed: int = 0) -> Problem:
    """A target that one mask has but for a little: whoever ignores it claims far too much."""
    rng = np.random.default_rng(seed)
    W, X = rng.standard_normal((2, n)).astype(np.float32), rng.standard_normal((n, 30))
    kept = np.where(np.arange(n) % 2, W, 0).astype(np.float64)
    return problem_of("reachable", W, kept @ X + 0.1 * rng.standard_normal((2, 30)), X, "0.5")


# --- bounds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_bounds_lie_below_the_optimum(kind):
    tried = [arriving(pattern, rows=2, n=8, seed=seed)[0] for seed, pattern in enumerate(SEPARABLE)]
    for problem in (*tried, *hostile_targets("0.5", rows=2), *hostile_targets("2:4", rows=2)[1:4]):
        best, _ = best_mask(problem)
        after = run(Bound(kind=kind, seconds=3600, iterations=FEW), problem)
        assert after.lower <= best + slack(problem, best), problem.name
        bound = proved(problem, after.certificate, best)
        assert bound == pytest.approx(after.lower, rel=1e-6, abs=1e-9 * problem.total + problem.rounding())


def test_the_ladder_climbs():
    problem, _, _ = arriving("0.5", rows=2, n=8, seed=0)
    best, _ = best_mask(problem)
    held = dict.fromkeys(range(2))
    found = []
    for name in RUNGS:
        held = {row: row_bound(name, RowForm.of(problem, row), held[row], iterations=160) for row in held}
        found.append(sum(one.proof.lower for one in held.values()))
    assert found == sorted(found)
    assert found[0] < 0.9 * best
    assert found[-1] > 0.98 * best


@pytest.mark.parametrize("seed", range(3))
def test_shor_of_a_far_target_pays_nothing_for_the_count(seed):
    """Its linear term is moved towards 0: the penalty on the count lost 1 % of the bound by it."""
    problem = far_away(seed=seed)
    form = RowForm.of(problem, 0)
    loose, tight = (shor(form, tolerance=1e-7, rho=rho).proof.bound for rho in (None, 1e4))
    assert loose >= (1 - 1e-3) * tight


def test_a_moved_linear_term_is_the_same_on_masks():
    rng = np.random.default_rng(0)
    linear = 100 + rng.standard_normal(12)
    counts = np.array([2, 0, 4])
    moved, constant = centred(linear, counts, 1.0)
    mask = np.zeros((3, 4))
    mask[0, [1, 3]] = mask[2] = 1
    assert moved @ mask.ravel() + constant == pytest.approx(linear @ mask.ravel(), rel=1e-12)
    assert np.abs(moved).max() < 10


def test_a_row_that_costs_nothing_but_its_linear_term():
    problem, _, _ = arriving("0.5", rows=1, n=8)
    problem = replace(problem, G=np.zeros((8, 8)))
    form = RowForm.of(problem, 0)
    assert form.free
    best, _ = best_mask(problem)
    for name in ("shor", "dnn"):
        assert row_bound(name, form, iterations=FEW).proof.lower == pytest.approx(best, rel=1e-3)
    same = replace(problem, T=problem.T * 0)
    assert not RowForm.of(same, 0).free
    for stage in (*EXACT, Bound(seconds=3600, iterations=FEW), QuadraticProgram()):
        after = run(stage, problem)
        assert after.lower <= best + slack(problem, best)
    assert problem.error(run(BranchAndBound(), problem).keep) == pytest.approx(best, rel=1e-12)


def test_a_target_of_zeros_changes_no_bound():
    plain = replace(arriving("0.5", rows=2, n=10)[0], T=None, offset=None)
    zeros = replace(plain, T=np.zeros(plain.shape), offset=np.zeros(2))
    for kind in ("shor", "dnn"):
        found = [run(Bound(kind=kind, seconds=3600, iterations=FEW), problem).lower for problem in (plain, zeros)]
        assert found[1] == pytest.approx(found[0], rel=1e-6)


def test_an_offset_moves_a_bound_and_nothing_else():
    problem, _, _ = arriving("0.5", rows=2, n=10)
    more = replace(problem, offset=problem.offset + 1e3)
    low, high = (run(BranchAndBound(), one) for one in (problem, more))
    assert (low.keep == high.keep).all()
    assert high.lower == pytest.approx(low.lower + 2e3, rel=1e-9)


def test_rows_beside_each_other_are_bounded_alike():
    problem, _, _ = arriving("0.5", rows=4, n=12, wrong=2.0)
    forms = [RowForm.of(problem, row) for row in range(4)]
    alone, together = Host().shor(forms, np.inf), Device("cpu").shor(forms, np.inf)
    for one, other in zip(alone, together, strict=True):
        assert one.proof.bound == pytest.approx(other.proof.bound, rel=1e-3)


def test_salvaged_bounds_may_be_below_zero():
    problem, _, _ = arriving("0.5", rows=2, n=8, wrong=3.0)
    e = bounds.safe(problem.G)
    shared = bounds.certificate(problem, np.zeros(problem.shape), e)
    assert shared.bound < 0  # at a bad point
    after = Bound().salvage(problem, start(problem), {"shared": shared})
    assert after.lower == shared.bound


def test_layer_certificates_take_rows_below_zero():
    problem, _, _ = arriving("0.5", rows=2, n=8, wrong=3.0)
    proofs = row_diagonals.row_proofs(problem, Context())
    made = row_diagonals.layer_certificate(problem, proofs, None, np.zeros(problem.shape), "test")
    best, _ = best_mask(problem)
    assert 0.9 * best < proved(problem, made, best)
    one = row_diagonals.layer_certificate(problem, {0: proofs[0]}, None, np.zeros(problem.shape), "test")
    assert proved(problem, one, best) == pytest.approx(one.bound, rel=1e-6)
    form = RowForm.of(problem, 0)
    mask = start(problem).keep
    at = tangent_bound(form, np.zeros(8), 0.0, ~mask[0])
    assert at / form.scale**2 == pytest.approx(bounds.group_bounds(problem, ~mask)[0], rel=1e-9)


# --- exact solvers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", EXACT, ids=lambda stage: f"{stage.name}-{getattr(stage, 'convexify', '')}")
@pytest.mark.parametrize("pattern", PATTERNS)
def test_exact_solvers_find_the_optimum(pattern, stage):
    tried = [arriving(pattern, rows=2, n=8, seed=seed, wrong=10.0 ** (seed - 1))[0] for seed in range(3)]
    own = stage.name == "bnb"
    hostile = hostile_targets(pattern, rows=2) if own or pattern in ("0.5", "rows") else []
    for problem in (*tried[: None if own else 1], *hostile):
        best, _ = best_mask(problem)
        after = run(stage, problem)
        near = slack(problem, best) + 1e-6 * best * (not own)
        assert after.proven, (problem.name, after.stopped)
        assert problem.error(after.keep) <= best + near, problem.name
        assert after.lower == pytest.approx(best, abs=near), problem.name
        if after.certificate is not None:
            assert proved(problem, after.certificate, best) == pytest.approx(best, abs=near), problem.name


@pytest.mark.parametrize("pattern", ["0.5", "2:4"])
def test_exact_solvers_agree(pattern):
    for n, wrong in ((24, 0.3), (32, 1.0), (40, 0.1)):
        problem, _, _ = arriving(pattern, rows=1, n=n, seed=n, wrong=wrong)
        found = run(BranchAndBound(), problem)
        assert found.proven
        error = problem.error(found.keep)
        assert proved(problem, found.certificate, error) >= error * (1 - 1e-9)
        for stage in (Gurobi(convexify="row"), Scip(convexify="row")) if n < 40 else (Gurobi(convexify="row"),):
            assert problem.error(run(stage, problem).keep) == pytest.approx(error, rel=1e-6)


def test_errors_below_zero_are_searched_too():
    """No target has such, but nothing that is proved rests on that."""
    problem, _, _ = arriving("0.5", rows=2, n=8)
    problem = replace(problem, offset=problem.offset - 100)
    best, _ = best_mask(problem)
    after = run(BranchAndBound(), problem)
    assert best < 0
    assert after.proven
    assert proved(problem, after.certificate, best) == pytest.approx(best, rel=1e-9)


def test_a_target_that_a_mask_has_leaves_nothing_but_rounding():
    rng = np.random.default_rng(0)
    W, X = rng.standard_normal((1, 8)).astype(np.float32), rng.standard_normal((8, 30))
    problem = problem_of("exact", W, np.where(np.arange(8) % 2, W, 0) @ X, X, "0.5")
    after = run(BranchAndBound(), problem)
    assert problem.error(after.keep) == pytest.approx(0, abs=problem.rounding())
    assert -problem.rounding() <= proved(problem, after.certificate, problem.rounding()) <= problem.rounding()


def test_what_a_search_leaves_open_costs_what_the_linear_term_says():
    problem, _, _ = arriving("0.5", rows=3, n=8, wrong=3.0)
    known = bounds.linear_bounds(problem)
    assert (known < 0).any()
    best, _ = best_mask(problem)
    late = run(BranchAndBound(), problem, deadline=time.monotonic())
    assert late.stopped == "deadline"
    assert late.lower == pytest.approx(known.sum(), rel=1e-12)
    assert proved(problem, late.certificate, best) == pytest.approx(known.sum(), rel=1e-9)
    parts = {"start": ~start(problem).keep}
    assert BranchAndBound().salvage(problem, start(problem), parts).lower == pytest.approx(known.sum(), rel=1e-12)
    for stage in (Gurobi(), Scip()):
        assert run(stage, problem, deadline=time.monotonic()).lower == pytest.approx(known.sum(), rel=1e-12)
        assert stage.salvage(problem, start(problem), {"start": start(problem).keep}).lower == pytest.approx(
            known.sum()
        )


@pytest.mark.parametrize("nodes", [1, 20, 100])
def test_a_search_cut_short_proves_what_it_says(nodes):
    for wrong in (0.3, 3.0):
        problem, _, _ = arriving("0.5", rows=2, n=30, seed=1, wrong=wrong)
        after = run(BranchAndBound(nodes=nodes, subtree=10), problem)
        found = proved(problem, after.certificate, problem.error(after.keep))
        assert found == pytest.approx(after.lower, rel=1e-9)
        assert found > bounds.linear_bounds(problem).sum()


# --- programs of others ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("convexify", CONVEXIFY)
def test_blocks_are_the_error_on_masks(pattern, convexify):
    problem, _, _ = arriving(pattern, rows=3, n=8, wrong=2.0)
    pruned = problem.pattern.prune(np.random.default_rng(0).standard_normal(problem.shape))
    e = np.linalg.eigvalsh(problem.G)[0] * np.ones(8) if convexify == "shared" else None
    own = None
    if convexify == "row" and problem.pattern.separable:
        own = search_diagonal.row_diagonals(problem, ~pruned, Context())
    for block in blocks(problem, e, own):
        u = pruned[block.rows].ravel().astype(float)
        value = u @ (block.Q @ u) + block.c @ u + block.constant
        assert value == pytest.approx(block_error(problem, block, pruned[block.rows]), rel=1e-9)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_relaxation_is_solved(pattern):
    for problem in (arriving(pattern, rows=3, n=12, wrong=0.5)[0], *hostile_targets(pattern)):
        after = run(QuadraticProgram(), problem)
        value = float(problem.row_errors(after.relaxed).sum())
        assert after.lower == pytest.approx(value, abs=1e-5 * problem.total + 1e-5 * abs(value)), problem.name
        assert verify.check(problem, after.certificate).ok


# --- forgeries -------------------------------------------------------------------------------------------------------


def test_a_proof_without_the_target_proves_nothing_of_it():
    problem = reachable()
    plain = replace(problem, T=None, offset=None)
    best, _ = best_mask(problem)
    for stage in (BranchAndBound(), *(Bound(kind=kind, seconds=3600, iterations=FEW) for kind in KINDS)):
        honest = run(stage, plain).certificate
        assert verify.check(plain, honest).ok
        assert honest.bound > 10 * best
        assert "another problem" in verify.check(problem, honest).reason
        assert "can be proved" in verify.check(problem, replace(honest, problem=problem.hash)).reason
        modest = verify.check(problem, replace(honest, problem=problem.hash, bound=-1e6))
        assert modest.ok
        assert modest.bound <= best


def test_raised_claims_are_refused():
    problem, _, _ = arriving("0.5", rows=2, n=8, wrong=2.0)
    for stage in (BranchAndBound(), Bound(kind="dnn", seconds=3600, iterations=FEW)):
        proof = run(stage, problem).certificate
        lie = replace(proof, bound=proof.bound + 1e-3 * problem.total)
        assert "can be proved" in verify.check(problem, lie).reason


def test_a_leaf_of_nothing_is_not_worth_zero():
    """Where the linear term is negative a tree that stops at its root proves less than 0, whatever it claims."""
    problem, _, _ = arriving("0.5", rows=2, n=8, wrong=3.0)
    late = run(BranchAndBound(), problem, deadline=time.monotonic()).certificate
    assert verify.check(problem, late).bound < 0
    assert "can be proved" in verify.check(problem, replace(late, bound=0.0)).reason
