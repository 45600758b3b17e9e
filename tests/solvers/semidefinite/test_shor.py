"""The bounds of single rows: against enumeration, against cvxpy's semidefinite programs, and through the checker."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from itertools import combinations, product

import cvxpy
import numpy as np
import pytest
import torch
from brute import best_mask
from hypothesis import given, settings
from hypothesis import strategies as st
from layers import arriving, hostile_layers, integer_layer, odd_layer, random_layer, repelling_layer

from fwbench import verify
from fwbench.problem import Problem
from fwbench.result import RELAXATIONS
from fwbench.solvers.bounds.stage import Bound, chosen_rows
from fwbench.solvers.semidefinite import pentagons as pentagon_cuts
from fwbench.solvers.semidefinite import pentagons_numba
from fwbench.solvers.semidefinite import triangles as triangle_cuts
from fwbench.solvers.semidefinite.doubly_nonnegative import DoublyNonnegative, lagrangian
from fwbench.solvers.semidefinite.ladder import LADDER, RUNGS, Host, Rung, climb, row_bound
from fwbench.solvers.semidefinite.maxcut import interior_point
from fwbench.solvers.semidefinite.row import RowForm, tangent_bound
from fwbench.solvers.semidefinite.shor import max_cut, proof_of, shor
from fwbench.solvers.semidefinite.triangles import violated
from fwbench.solvers.semidefinite.triangles_numba import subtract, value
from fwbench.solvers.start.scores import wanda_score
from fwbench.stage import Context, State

SEPARABLE = ("0.5", "0.25", "2:4", "1:4", "rows")
KINDS = ("shor", "dnn", "mccormick", "triangles", "best")  # pentagons are the last of best, which takes iterations


def start(problem: Problem) -> State:
    return State(keep=~problem.pattern.prune(wanda_score(problem.W, problem.G)))


def bounded(problem: Problem, **parameters: object) -> State:
    return Bound(**{"seconds": 3600, **parameters}).run(problem, start(problem), Context(threads=1))


def relaxation(form: RowForm, nonnegative: bool, all_products: bool = False, all_triangles: bool = False) -> float:
    """The semidefinite relaxation in u by a general-purpose solver."""
    n, size = len(form.Q), len(form.Q) // len(form.counts)
    scale = form.Q.diagonal().mean()
    Y = cvxpy.Variable((n + 1, n + 1), PSD=True)
    u, U = Y[0, 1:], Y[1:, 1:]
    constraints = [Y[0, 0] == 1, cvxpy.diag(U) == u]
    for g, count in enumerate(form.counts):
        part = slice(g * size, (g + 1) * size)
        constraints += [cvxpy.sum(u[part]) == count, cvxpy.sum(U[:, part], axis=1) == count * u]
    if nonnegative:
        constraints.append(Y >= 0)
    if all_products:
        i, j = np.nonzero(~np.eye(n, dtype=bool))
        constraints += [u[i] - U[i, j] >= 0, 1 - u[i] - u[j] + U[i, j] >= 0]
    for i, j, k in combinations(range(n), 3) if all_triangles else ():
        constraints.append(1 - u[i] - u[j] - u[k] + U[i, j] + U[i, k] + U[j, k] >= 0)
        constraints += [u[a] - U[a, b] - U[a, c] + U[b, c] >= 0 for a, b, c in ((i, j, k), (j, i, k), (k, i, j))]
    linear = np.zeros(n) if form.linear is None else form.linear
    problem = cvxpy.Problem(cvxpy.Minimize(cvxpy.trace((form.Q / scale) @ U) + (linear / scale) @ u), constraints)
    return float(problem.solve(solver=cvxpy.CLARABEL)) * scale + form.offset


def forms(problem: Problem) -> list[RowForm]:
    return [form for form in (RowForm.of(problem, row) for row in range(problem.rows)) if form.free]


# --- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["0.5", "0.3", "2:4"])
@pytest.mark.parametrize("seed", range(2))
def test_shor_is_the_semidefinite_relaxation(pattern, seed):
    for form in forms(random_layer(pattern, rows=2, n=8, seed=seed)):
        found = shor(form, tolerance=1e-6)
        exact = relaxation(form, nonnegative=False)
        assert found.converged
        assert exact * (1 - 5e-3) <= found.proof.bound <= exact * (1 + 1e-5)
        assert exact * (1 - 1e-4) <= shor(form, tolerance=1e-6, rho=2500.0).proof.bound <= exact * (1 + 1e-5)


@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")  # Clarabel, of a relaxation without an interior
@pytest.mark.parametrize("wrong", [0.1, 1.0, 10.0])
def test_shor_of_a_target_is_the_semidefinite_relaxation(wrong):
    for form in forms(arriving("0.5", rows=2, n=8, seed=4, wrong=wrong)[0]):
        found = shor(form, tolerance=1e-6)
        exact = relaxation(form, nonnegative=False)
        assert found.converged
        assert exact * (1 - 5e-3) <= found.proof.bound <= exact * (1 + 1e-5)
        assert exact * (1 - 1e-4) <= shor(form, tolerance=1e-6, rho=2500.0).proof.bound <= exact * (1 + 1e-5)
        products = relaxation(form, nonnegative=True)
        above = row_bound("dnn", form, iterations=300, tolerance=1e-6).proof.bound
        assert found.proof.bound <= above <= products + 1e-5 * form.offset  # Clarabel does not know the offset


@pytest.mark.parametrize("pattern", ["0.5", "2:4"])
def test_doubly_nonnegative_against_the_general_solver(pattern):
    for seed in range(3):
        form = forms(random_layer(pattern, rows=1, n=8, seed=seed))[0]
        low = shor(form, tolerance=1e-5).proof.bound
        found = row_bound("dnn", form, iterations=1000, tolerance=1e-5).proof.bound
        exact = relaxation(form, nonnegative=True)
        assert low <= found <= exact * (1 + 1e-5)
        assert found >= exact * (1 - 3e-2)


@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")  # Clarabel, of a relaxation without an interior
@pytest.mark.parametrize("pattern", ["0.5", "2:4"])
def test_mccormick_against_the_general_solver(pattern):
    for seed in range(3):
        form = forms(random_layer(pattern, rows=1, n=8, seed=seed))[0]
        low = shor(form, tolerance=1e-5).proof.bound
        found = row_bound("mccormick", form, iterations=1000, tolerance=1e-5).proof.bound
        exact = relaxation(form, nonnegative=True, all_products=True)
        assert low <= found <= exact * (1 + 1e-3)
        assert found >= exact * (1 - 5e-2)


@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
def test_triangles_against_the_general_solver(monkeypatch):
    """Three rows whose McCormick relaxation leaves a gap, and one without; with all triples of so few weights held."""
    monkeypatch.setattr(triangle_cuts, "NEW", 1000)
    gained = 0
    for seed in (1, 2, 3, 11):
        form = forms(repelling_layer(seed=seed))[0]
        low = row_bound("mccormick", form, iterations=2000, tolerance=1e-6)
        found = row_bound("triangles", form, low, iterations=2000, tolerance=1e-6).proof.bound
        exact = relaxation(form, nonnegative=True, all_products=True, all_triangles=True)
        assert low.proof.bound <= found <= exact * (1 + 1e-3)
        assert found >= exact * (1 - 3e-2)
        without = relaxation(form, nonnegative=True, all_products=True)
        gained += without * (1 + 2e-3) < found  # more than any multipliers of pairs can prove
    assert gained == 3


@pytest.mark.parametrize("n", [3, 4, 9])
def test_violated_triples_are_those_of_enumeration(n):
    rng = np.random.default_rng(n)
    U = torch.tensor(rng.random((n + 1, n + 1)), dtype=torch.float32)
    Y = (U + U.T) / 2
    wanted, ones = {}, np.ones(n + 1, np.float32)
    for triple in combinations(range(n), 3):
        amounts = [value(Y.numpy(), ones, *(at + 1 for at in triple), corner) for corner in range(4)]
        least = min(range(4), key=amounts.__getitem__)
        if amounts[least] < -triangle_cuts.VIOLATED:
            wanted[(*triple, least)] = amounts[least]
    triple, corner, _ = violated(Y, 10**6)
    found = [(*row, kind) for row, kind in zip(triple.tolist(), corner.tolist(), strict=True)]
    assert sorted(found) == sorted(wanted)
    assert [wanted[key] for key in found] == pytest.approx(sorted(wanted.values()), abs=1e-6)
    few, _, threshold = violated(Y, 3)
    assert few.tolist() == triple[:3].tolist()
    for guess in (threshold / 4, 10.0):  # one that helps, and one that is wrong
        assert violated(Y, 3, guess)[0].tolist() == few.tolist()


def test_a_triples_product_on_masks():
    """0 or 1: whether all are equal, or the corner is unlike two that are equal."""
    for mask in product([0.0, 1.0], repeat=3):
        y, unit = np.array([1.0, *mask], np.float32), np.array([0.5, 2.0, 1.0, 4.0], np.float32)
        P = np.outer(y, y) / np.outer(unit, unit)
        found = [value(P, unit, 1, 2, 3, corner) for corner in range(4)]
        odd = [len({*mask}) == 1, *(mask.count(own) == 1 for own in mask)]
        assert found == [float(one) for one in odd]


def test_a_fives_product_on_masks():
    """A fourth of an odd square less one."""
    unit = np.array([0.5, 2.0, 1.0, 4.0, 0.25, 1.0], np.float32)
    for mask in product([0.0, 1.0], repeat=5):
        y = np.array([1.0, *mask], np.float32)
        P = np.outer(y, y) / np.outer(unit, unit)
        for sign in product([1.0, -1.0], repeat=5):
            found = pentagons_numba.value(P, unit, np.arange(5), np.array(sign, np.float32))
            assert found == ((np.array(sign) @ (2 * y[1:] - 1)) ** 2 - 1) / 4


def test_fives_are_taken_from_the_cost_as_they_are_valued():
    rng = np.random.default_rng(4)
    n, count = 8, 20
    P, unit = rng.random((n + 1, n + 1)), rng.random(n + 1) + 0.5
    P = (P + P.T) / 2
    P[0, 0] = unit[0] ** -2
    five = np.sort([rng.choice(n, 5, replace=False) for _ in range(count)], axis=1)
    sign, multiplier = rng.choice([-1.0, 1.0], (count, 5)), rng.random(count) * (rng.random(count) < 0.8)
    C = np.zeros((n + 1, n + 1))
    pentagons_numba.subtract(C, unit, five, sign, multiplier, 3.0)
    values = [pentagons_numba.value(P, unit, at, own) for at, own in zip(five, sign, strict=True)]
    assert float((C * P).sum()) == pytest.approx(-3 * float(multiplier @ values), rel=1e-6)
    assert (C == C.T).all()


@pytest.mark.parametrize("n", [5, 9])
def test_violated_fives_are_violated_and_the_worst_is_found(n):
    rng = np.random.default_rng(n)
    basis = rng.standard_normal((n, 3))
    basis /= np.linalg.norm(basis, axis=1)[:, None]  # points of the elliptope of low rank
    Y = np.ones((n + 1, n + 1), np.float32)
    Y[0, 1:] = Y[1:, 0] = 0.5
    Y[1:, 1:] = (1 + basis @ basis.T) / 4
    five, sign = pentagon_cuts.violated(torch.tensor(Y), triangle_cuts.Triples(n))
    ones = np.ones(n + 1, np.float32)
    values = [pentagons_numba.value(Y, ones, at, own) for at, own in zip(five, sign, strict=True)]
    assert values == sorted(values)
    assert values[-1] < -pentagon_cuts.VIOLATED
    assert (np.diff(five, axis=1) > 0).all()
    assert (sign[:, 0] == 1).all()
    every = [
        pentagons_numba.value(Y, ones, np.array(at), np.array((1.0, *own), np.float32))
        for at in combinations(range(n), 5)
        for own in product([1.0, -1.0], repeat=4)
    ]
    assert values[0] == pytest.approx(min(every), abs=0.02)


def test_triples_are_taken_from_the_cost_as_they_are_valued():
    """``⟨C, P⟩`` falls by the sum of the values times their multipliers, for any symmetric ``P``."""
    rng = np.random.default_rng(3)
    n, count = 7, 30
    P, unit = rng.random((n + 1, n + 1)), rng.random(n + 1) + 0.5
    P = (P + P.T) / 2
    P[0, 0] = unit[0] ** -2
    triple = np.sort([rng.choice(n, 3, replace=False) for _ in range(count)], axis=1)
    corner, multiplier = rng.integers(0, 4, count), rng.random(count) * (rng.random(count) < 0.8)
    C = np.zeros((n + 1, n + 1))
    subtract(C, unit, triple, corner, multiplier, 3.0)
    values = [value(P, unit, *(at + 1), own) for at, own in zip(triple, corner, strict=True)]
    assert float((C * P).sum()) == pytest.approx(-3 * float(multiplier @ values), rel=1e-12)
    assert (C == C.T).all()


def test_a_linear_term_moves_into_the_diagonal():
    """On masks ``lᵤ u = l u²``: both forms have the same optimum and the same Shor bound."""
    form = forms(random_layer("0.5", rows=1, n=10))[0]
    linear = np.linspace(-0.2, 0.1, 10)
    moved = replace(form, linear=linear, constant=3.0)
    other = replace(form, Q=form.Q + np.diag(linear))
    assert shor(moved, tolerance=1e-6).proof.bound == pytest.approx(
        3 + shor(other, tolerance=1e-6).proof.bound, rel=1e-3
    )


def test_a_dual_point_at_the_wall_still_proves_its_bound():
    """There the least point of the convex function may lie far outside of what a certificate may hold."""
    far, rng = 0, np.random.default_rng(0)
    for form in forms(random_layer("0.5", rows=6, n=40, seed=7, condition=1e4)):
        C = max_cut(form)
        y = interior_point(torch.tensor(C), 0.1, lambda y, gap: gap <= 1e-6 * abs(float(y.sum()))).y.numpy()
        y = y + 1e-5 * abs(y.sum()) / len(y) * rng.standard_normal(len(y))
        y = y + (1 - 1e-9) * np.linalg.eigvalsh(C - np.diag(y))[0]
        border = np.linalg.solve(C - np.diag(y), np.eye(len(y))[0])
        far += np.abs(border).max() > 3 * abs(border[0])
        value = float(y.sum() * form.Q.diagonal().mean())
        assert proof_of(form, y, border).bound >= value * (1 - 2e-4)
    assert far > 0


def test_the_tangent_bound_is_the_enumerated_one():
    problem = random_layer("0.5", rows=1, n=10)
    form = RowForm.of(problem, 0)
    proof = shor(form).proof
    u = proof.u.astype(float)
    d = proof.d

    def convex(v):
        return v @ form.Q @ v + d @ (v - v * v) + proof.rho * (v.sum() - 5) ** 2

    gradient = 2 * (form.Q @ u - d * u) + d + 2 * proof.rho * (u.sum() - 5)
    masks = [np.array([k >> i & 1 for i in range(10)], float) for k in range(1024) if k.bit_count() == 5]
    least = min(convex(u) + gradient @ (v - u) for v in masks)
    assert tangent_bound(form, d, proof.rho, proof.u) == pytest.approx(least, rel=1e-9)


def test_thinning_keeps_the_largest_multipliers():
    form = forms(random_layer("0.5", rows=1, n=12))[0]
    directions = DoublyNonnegative([form], [shor(form)], 50)
    for _ in range(50):
        directions.step()
    [[N]] = directions.multipliers()
    assert np.array_equal(N, N.T)
    assert N.min() >= 0
    whole, few = (write(shor(less)).proof for less, write in (lagrangian(form, N[None], limit=k) for k in (1000, 5)))
    assert len(few.pair) == 5
    assert set(few.pair) <= set(whole.pair)
    assert few.multiplier.min() >= np.sort(whole.multiplier)[-5]


def test_a_deadline_in_the_past_still_gives_a_proof():
    form = forms(random_layer("0.5", rows=1, n=12))[0]
    found = shor(form, deadline=time.monotonic() - 1)
    assert not found.converged
    assert math.isfinite(found.proof.bound)
    assert math.isfinite(row_bound("dnn", form, deadline=time.monotonic() - 1).proof.bound)


# --- the stage and its certificate -----------------------------------------------------------------------------------


def assert_proved(problem: Problem, after: State) -> float:
    assert after.certificate is not None
    checked = verify.check(problem, after.certificate)
    assert checked.ok, (problem.name, checked.reason)
    optimum, _ = best_mask(problem)
    assert checked.bound <= optimum * (1 + 1e-12), problem.name
    assert after.lower is not None
    assert after.lower <= optimum * (1 + 1e-9) + 1e-12 * problem.total, problem.name
    return checked.bound


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pattern", SEPARABLE)
def test_bounds_of_hostile_layers(kind, pattern):
    for problem in hostile_layers(pattern):  # a bound holds wherever the iterations end
        assert_proved(problem, bounded(problem, kind=kind, iterations=120))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.sampled_from(SEPARABLE),
    st.sampled_from(KINDS),
    st.booleans(),
    st.integers(0, 10_000),
    st.sampled_from([1.0, 1e3, 1e7]),
)
def test_bounds_never_exceed_the_optimum(pattern, kind, whole, seed, condition):
    if whole:
        problem = integer_layer(pattern, rows=2, n=8, seed=seed)
    else:
        problem = random_layer(pattern, rows=2, n=8, seed=seed, condition=condition)
    assert_proved(problem, bounded(problem, kind=kind))


def test_each_bound_is_better_than_the_last():
    problem = random_layer("0.5", rows=3, n=16, seed=3)
    values = [assert_proved(problem, bounded(problem, kind=kind)) for kind in ("shared", "shor", "dnn", "mccormick")]
    assert values[0] < values[1] < values[2] < values[3]
    problem = repelling_layer(seed=1)
    values = [assert_proved(problem, bounded(problem, kind=kind)) for kind in ("mccormick", "triangles")]
    assert values[0] < values[1]
    values = [assert_proved(odd_layer(), bounded(odd_layer(), kind=kind)) for kind in ("triangles", "pentagons")]
    assert values[0] * (1 + 2e-2) < values[1]


@pytest.mark.parametrize(
    ("rows", "chosen"), [("1,3", [1, 3]), ("2,", [2]), ("0-1,3", [0, 1, 3]), ("all", [0, 1, 2, 3])]
)
def test_only_the_named_rows_are_bounded(rows, chosen):
    problem = random_layer("0.5", rows=4, n=12, seed=1)
    after = bounded(problem, kind="shor", rows=rows)
    assert after.certificate is not None
    assert after.certificate.arrays["rows"].tolist() == chosen
    assert after.counters["row_proofs"] == len(chosen)
    assert_proved(problem, after)


def test_chosen_rows():
    assert chosen_rows(None, 5) == chosen_rows("all", 5) == chosen_rows(9, 5) == [0, 1, 2, 3, 4]
    assert chosen_rows("4, 1-2,2", 5) == [1, 2, 4]
    few, more = chosen_rows(7, 100, seed=1), chosen_rows("20", 100, seed=1)
    assert len(set(few)) == 7
    assert set(few) < set(more)
    assert few != chosen_rows(7, 100, seed=2)
    with pytest.raises(ValueError, match="there is no row 5: the layer has 5"):
        chosen_rows("1,5", 5)


@pytest.mark.parametrize("rows", [0, -1, "0", "", ",", "1,,2", "3-1", "1-", "-4", "x", "1.5", "all,1"])
def test_what_is_no_list_of_rows_is_refused(rows):
    with pytest.raises(ValueError, match="rows must be all, a number or a list such as 3,7,100-120, not"):
        Bound(rows=rows)


def test_best_starts_where_the_rung_below_ended():
    """The ladder by hand and by the stage give the same bound."""
    problem = random_layer("0.5", rows=1, n=12, seed=1)
    form = forms(problem)[0]
    found = row_bound("shor", form)
    for kind in list(RUNGS)[1:]:
        found = row_bound(kind, form, replace(found, X=found.X.astype(np.float32)))
    after = bounded(problem, kind="best")
    assert after.lower == pytest.approx(found.proof.bound, rel=1e-9)


def test_rungs_are_the_relaxations_of_reports_in_their_order():
    assert [name for name in RELAXATIONS if name in RUNGS] == list(RUNGS)


def test_a_rung_of_ones_own_climbs_from_the_one_below():
    """Data alone make a rung: the same directions for longer are another one above."""
    form = forms(random_layer("0.5", rows=1, n=16, seed=1))[0]
    longer = Rung("longer", DoublyNonnegative, iterations=300, products=40)
    [found] = climb((*LADDER[:2], longer), [form], [None], Host())
    assert found.proof.bound > row_bound("dnn", form).proof.bound
    [found] = climb((*LADDER[:2], replace(longer, sizes=range(17, 20))), [form], [None], Host())
    assert found.proof.bound == row_bound("dnn", form).proof.bound


def test_threads_change_nothing():
    problem = random_layer("0.5", rows=4, n=12, seed=1)
    one = Bound(kind="shor", seconds=3600).run(problem, start(problem), Context(threads=1))
    two = Bound(kind="shor", seconds=3600).run(problem, start(problem), Context(threads=2))
    assert one.certificate is not None
    assert two.certificate is not None
    assert one.certificate.to_bytes() == two.certificate.to_bytes()


@pytest.mark.parametrize("scale", [1.0, 2.0**-40, 2.0**40])
def test_what_was_handed_in_is_worth_as_much_as_the_run(scale):
    """Rows of unusual weights are proved in units of their own; the bound of the layer is in the problem's."""
    plain = random_layer("0.5", rows=3, n=12, seed=1)
    problem = Problem("scaled", plain.W * scale, plain.G, plain.pattern)
    parts: dict = {}
    stage = Bound(kind="shor", seconds=3600)
    after = stage.run(problem, start(problem), Context(hand_in=parts.__setitem__))
    assert after.lower is not None
    assert any(proof.scale != 1 for row, proof in parts.items() if row != "shared") == (scale != 1)
    salvaged = stage.salvage(problem, start(problem), parts)
    assert salvaged.lower == pytest.approx(after.lower, rel=1e-12)


def test_unstructured_is_declined_or_shared():
    problem = random_layer("unstructured:0.4")
    for kind in RUNGS:
        assert "rows are independent" in str(Bound(kind=kind).supports(problem))
    assert Bound(kind="best").supports(problem) is None
    after = bounded(problem, kind="best")
    assert after.certificate is not None
    assert after.certificate.kind == "diagonal"


@pytest.mark.parametrize("parameters", [{"kind": "best_"}, {"iterations": -1}, {"seconds": 0.0}, {"tolerance": 0.0}])
def test_wrong_parameters_are_refused(parameters):
    with pytest.raises(ValueError, match=r"must|known"):
        Bound(**parameters)
