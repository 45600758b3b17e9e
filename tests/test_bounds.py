"""The lower bound against enumeration, an independent QP solver, and a case solved by hand."""

import numpy as np
import pytest
from brute import best_mask
from hypothesis import given, settings
from hypothesis import strategies as st
from layers import PATTERNS, hostile_layers, integer_layer, random_layer
from oracles import relaxed_minimum

from fwbench import bounds, pipeline, verify
from fwbench.problem import Problem
from fwbench.problems import registry
from fwbench.problems.collections import one
from fwbench.verify.rounding import proves_shared

SMALL = {"unstructured:0.4": 5}  # inputs for which masks can be enumerated; 8 elsewhere


def small_layers(pattern: str, seed: int = 0) -> list[Problem]:
    n = SMALL.get(pattern, 8)
    made = [random_layer(pattern, n=n, seed=seed, condition=c) for c in (1.0, 1e4, 1e8)]
    return [*made, integer_layer(pattern, rows=3, n=n, seed=seed)]


def random_e(problem: Problem, rng: np.random.Generator, free_sign: bool) -> np.ndarray:
    """A random diagonal on the boundary of ``G - diag(e) ⪰ 0``, made safe."""
    e = rng.standard_normal(problem.n) * problem.G.diagonal() if free_sign else rng.random(problem.n)
    if free_sign:
        e += min(0.0, np.linalg.eigvalsh(problem.G - np.diag(e))[0])
    else:
        root = np.sqrt(e + 1e-3)
        inverse = np.linalg.inv(problem.G + 1e-12 * problem.G.diagonal().mean() * np.eye(problem.n))
        e = root**2 / np.linalg.eigvalsh(root[:, None] * inverse * root)[-1]
    return bounds.safe(problem.G, e)


def points(problem: Problem, rng: np.random.Generator) -> list[np.ndarray]:
    """Any points will do: inside the cube, at a vertex of the polytope, far outside."""
    cube = rng.random(problem.shape)
    return [cube, problem.pattern.prune(cube).astype(float), rng.standard_normal(problem.shape) * 3]


def test_the_guarantee_of_sparsefw_by_hand():
    """``Q = diag(1, 4, 9, 16, 25, 36)``, 4 pruned of 6: λ = 36, k = min(k, r) = 2, so 72 (2 + √16) + 72 / T."""
    problem = Problem("squares", [[1, 2, 3, 4, 5, 6]], np.eye(6), np.array([4]))
    assert bounds.guaranteed_gaps(problem, 10) == pytest.approx([72 * (2 + 4) + 7.2])
    for pattern in ("unstructured:0.5", "1:2"):
        with pytest.raises(ValueError, match="by row"):
            bounds.guaranteed_gaps(Problem("groups", np.ones((2, 4)), np.eye(4), pattern), 10)


@pytest.mark.parametrize("name", ["n016.gate_proj.random.0.5", "n016.o_proj.top.0.6", "n032.up_proj.top.0.5"])
def test_the_guarantee_of_sparsefw_holds_on_real_rows(name):
    """Its mask without fixed weights is no further above the optimum, which is known."""
    problem = one(f"mini/{name}")[1]
    for steps in (1, 50):
        found = pipeline.run(problem, f"wanda+fw(variant=vanilla,step=open,steps={steps},gap=0.0)+round", threads=1)
        best = registry.best_known()[problem.hash]
        assert best.gap == pytest.approx(0, abs=1e-9)
        assert problem.error(found.keep) - best.lower <= bounds.guaranteed_gaps(problem, steps).sum()


@pytest.mark.parametrize("pattern", PATTERNS)
@settings(max_examples=15)
@given(seed=st.integers(0, 10_000), free_sign=st.booleans())
def test_below_every_mask(pattern, seed, free_sign):
    rng = np.random.default_rng(seed)
    for problem in small_layers(pattern, seed):
        best, _ = best_mask(problem)
        for e in (0.0, random_e(problem, rng, free_sign)):
            for u in points(problem, rng):
                assert bounds.lower_bound(problem, u, e) <= best + 1e-11 * problem.total, problem.name


@pytest.mark.parametrize("pattern", [p for p in PATTERNS if p != "unstructured:0.4"])
def test_below_every_mask_of_hostile_layers(pattern):
    rng = np.random.default_rng(0)
    for problem in hostile_layers(pattern):
        best, _ = best_mask(problem)
        for e in (bounds.safe(problem.G), random_e(problem, rng, False) if problem.G.any() else 0.0):
            for u in points(problem, rng)[:2]:
                assert bounds.lower_bound(problem, u, e) <= best + 1e-11 * problem.total, problem.name


@pytest.mark.parametrize("pattern", PATTERNS)
def test_rows_may_have_an_e_of_their_own(pattern):
    rng = np.random.default_rng(0)
    problem = small_layers(pattern)[0]
    own = np.stack([random_e(problem, rng, False) for _ in range(problem.rows)])
    best, _ = best_mask(problem)
    u = points(problem, rng)[1] * 0.5 + 0.2
    assert bounds.lower_bound(problem, u, own) <= best
    if problem.pattern.separable:
        rows = [bounds.group_bounds(problem, u, e)[r] for r, e in enumerate(own)]
        np.testing.assert_allclose(bounds.group_bounds(problem, u, own), rows, rtol=1e-12)


@pytest.mark.parametrize("convex", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_meets_the_relaxation_at_its_minimum(pattern, convex):
    rng = np.random.default_rng(0)
    for problem in (random_layer(pattern, n=8), random_layer(pattern, n=8, condition=1e3)):
        e = random_e(problem, rng, False) if convex else 0.0
        value, u = relaxed_minimum(problem, e)
        assert bounds.lower_bound(problem, u, e) == pytest.approx(value, rel=1e-4)
        for other in points(problem, rng):  # weak duality: nothing is higher
            assert bounds.lower_bound(problem, other, e) <= value * (1 + 1e-7)


def test_equal_to_the_optimum_by_hand():
    # uncorrelated inputs: e = diag(G) makes h linear, so the bound is the optimum at any point
    problem = Problem("diagonal", [[3.0, -1.0, 2.0, 1.0]], np.diag([1.0, 2.0, 0.5, 4.0]), "0.5")
    e = problem.G.diagonal()  # costs w²G: 9, 2, 2, 4
    for u in points(problem, np.random.default_rng(0)):
        assert bounds.lower_bound(problem, u, e) == pytest.approx(4.0, rel=1e-14)
    assert bounds.lower_bound(problem, np.array([[0, 1, 1, 0]]), 0.0) == 0.0  # f = 4, and the gap is 2·2 + 2·2 + 0
    # one variable leaves 9u1² + 2u2² with u1 + u2 = 1 relaxed to 18/11, and 2 in truth
    pair = Problem("pair", [[3.0, 1.0]], np.diag([1.0, 2.0]), "0.5")
    assert bounds.lower_bound(pair, np.array([[2 / 11, 9 / 11]])) == pytest.approx(18 / 11, rel=1e-14)
    assert bounds.lower_bound(pair, np.array([[0.5, 0.5]]), pair.G.diagonal()) == pytest.approx(2.0, rel=1e-14)


def test_never_below_zero():
    problem = random_layer("0.5", n=8)
    assert bounds.lower_bound(problem, np.ones(problem.shape) * 5) == 0.0


@pytest.mark.parametrize("pattern", PATTERNS)
def test_slope_is_the_growth_of_the_bound(pattern):
    # at the minimum of the relaxation the bound grows with e_i like c_i (envelope theorem)
    problem = random_layer(pattern, n=8)
    low, u = relaxed_minimum(problem)
    c = bounds.slope(problem, u)
    step = 1e-4 * np.linalg.eigvalsh(problem.G)[0]
    for i in range(problem.n):
        high, _ = relaxed_minimum(problem, step * np.eye(problem.n)[i])
        assert high - low == pytest.approx(step * c[i], rel=1e-2, abs=1e-7 * low)


@pytest.mark.parametrize("pattern", ["0.5", "2:4"])
def test_safe_is_proved_and_costs_nothing(pattern):
    for problem in [*hostile_layers(pattern), random_layer(pattern, n=24, condition=1e8)]:
        e = bounds.safe(problem.G)
        assert proves_shared(problem.G, e), problem.name
        assert (e <= 0).all()
        assert np.abs(e).max() <= 1e-11 * problem.G.diagonal().sum() + 1e-290, problem.name


def test_safe_refuses_an_indefinite_matrix():
    with pytest.raises(ValueError, match="not positive semidefinite"):
        bounds.safe(np.array([[1.0, 2.0], [2.0, 1.0]]))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("limit", [1.0, 1 - 1e-9, 1 - 1e-5, 0.3, -40.0])
def test_a_diagonal_is_lowered_until_it_is_proved(limit, dtype):
    """No further than twice what is needed, and rounded down."""
    d, step = np.array([1.0, 0.1, -1 / 3]), 1e-7
    found = bounds.lowered(d, lambda d: d.max() <= limit, step, dtype=dtype)
    assert found.dtype == dtype
    shift = d - found
    assert shift.min() >= max(0, 1 - limit)
    assert shift.max() <= max(step, 2 * (1 - limit)) + 1e-6 * (dtype is np.float32) * (1 + shift.max()) + 1e-12
    assert np.ptp(shift) <= (1e-6 if dtype is np.float32 else 1e-12) * (1 + shift.max())


@pytest.mark.parametrize(("most", "tried"), [(np.inf, 60), (3.0, 3), (0.0, 1)])
def test_a_diagonal_that_nothing_proves_is_refused(most, tried):
    seen = []
    with pytest.raises(ValueError, match="G is not positive semidefinite"):
        bounds.lowered(np.ones(2), lambda d: bool(seen.append(d[0])), 1.0, most=most)
    assert [1 - d for d in seen[:3]] == [0, 1, 2][:tried]
    assert len(seen) == tried


@pytest.mark.parametrize("pattern", PATTERNS)
def test_certificate_claims_what_it_proves(pattern):
    rng = np.random.default_rng(0)
    for problem in small_layers(pattern):
        for e in (None, random_e(problem, rng, False)):
            proof = bounds.certificate(problem, points(problem, rng)[0], e, "test")
            assert (proof.problem, proof.kind, proof.source) == (problem.hash, "diagonal", "test")
            checked = verify.check(problem, proof)
            assert checked.ok, checked.reason
            assert checked.bound == pytest.approx(proof.bound, rel=1e-6, abs=1e-9 * problem.total)
