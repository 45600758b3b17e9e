"""The shared ``e`` against a general-purpose SDP solver."""

import cvxpy
import numpy as np
import pytest
from brute import best_mask
from layers import PATTERNS, hostile_layers, random_layer

from fwbench import bounds, verify
from fwbench.solvers.bounds.stage import Bound
from fwbench.solvers.frank_wolfe.stage import FrankWolfe
from fwbench.solvers.semidefinite.shared_diagonal import maximise_diagonal, shared_e
from fwbench.solvers.start.scores import Wanda
from fwbench.stage import Context, State
from fwbench.verify.rounding import proves_shared


def by_sdp(G: np.ndarray, c: np.ndarray) -> float:
    """``max cᵀe``, ``e ≥ 0``, ``G - diag(e) ⪰ 0`` by Clarabel, for a ``G`` of unit mean diagonal."""
    scale = G.diagonal().mean()
    e = cvxpy.Variable(len(c), nonneg=True)
    program = cvxpy.Problem(cvxpy.Maximize((c / c.max()) @ e), [G / scale - cvxpy.diag(e) >> 0])
    return program.solve(solver=cvxpy.CLARABEL) * scale * c.max()


def weights(n: int, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    some = rng.random(n) * (rng.random(n) < 0.5)
    some[0] = 1.0
    return [np.ones(n), rng.random(n), np.exp(4 * rng.standard_normal(n)), some]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("n", [1, 2, 5, 12])
def test_equals_the_semidefinite_program(n, seed):
    for condition in (1.0, 1e4):
        G = random_layer("0.5", n=n, seed=seed, condition=condition).G
        for c in weights(n, seed):
            e = maximise_diagonal(G, c, tolerance=1e-4)
            best = by_sdp(G, c)
            assert (e >= -1e-6 * G.diagonal().mean()).all()
            assert np.linalg.eigvalsh(G - np.diag(e))[0] >= -1e-9 * G.diagonal().sum()
            assert best * (1 - 1e-3) <= c @ e <= best * (1 + 1e-4)


def test_an_equicorrelated_matrix_by_hand():
    # G = (1 - r) I + r 11ᵀ: by symmetry e is constant, and the smallest eigenvalue is 1 - r
    for n, r in ((3, 0.5), (10, 0.9)):
        e = maximise_diagonal((1 - r) * np.eye(n) + r, np.ones(n), tolerance=1e-6)
        np.testing.assert_allclose(e, 1 - r, rtol=1e-4)


def test_uncorrelated_inputs_take_the_whole_diagonal():
    diagonal = np.array([4.0, 1.0, 0.25, 9.0])
    np.testing.assert_allclose(maximise_diagonal(np.diag(diagonal), np.ones(4), tolerance=1e-6), diagonal, rtol=1e-4)


def test_a_singular_matrix_leaves_nothing_where_it_is_tight():
    # three inputs with x3 = x1 + x2: only the fourth, independent one can be lifted
    X = np.array([[1.0, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 2]])
    e = maximise_diagonal(X @ X.T, np.ones(4))
    np.testing.assert_allclose(e, [0, 0, 0, 4], atol=1e-2)


@pytest.mark.parametrize("G", [np.zeros((3, 3)), np.eye(3)])
def test_without_weight_or_inputs_there_is_nothing_to_gain(G):
    assert maximise_diagonal(G, np.zeros(3)).tolist() == [0, 0, 0]
    assert maximise_diagonal(np.zeros((3, 3)), np.ones(3)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_shared_e_is_proved_safe(pattern):
    layers = [random_layer(pattern, n=16, condition=condition) for condition in (1.0, 1e4, 1e8)]
    for problem in [*layers, *hostile_layers(pattern)]:
        u = np.random.default_rng(0).random(problem.shape)
        e = shared_e(problem, u)
        assert proves_shared(problem.G, e), problem.name
        assert np.isfinite(e).all()
        assert (e >= -1e-6 * problem.G.diagonal().mean() - 1e-290).all(), problem.name
        assert bounds.slope(problem, u) @ e >= -1e-6 * problem.total


def test_more_tolerance_is_less_exact_never_unsafe():
    problem = random_layer("0.5", n=24)
    u = np.random.default_rng(0).random(problem.shape)
    c = bounds.slope(problem, u)
    values = [c @ shared_e(problem, u, tolerance=tolerance) for tolerance in (0.5, 1e-2, 1e-4)]
    assert values == sorted(values)
    assert values[0] >= 0.5 * values[2]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("pattern", ["0.5", "0.25", "2:4", "rows"])
def test_own_diagonals_bound_best_and_below_every_mask(pattern, dtype):
    for problem in (random_layer(pattern, n=12, condition=condition) for condition in (1.0, 1e3)):
        best, _ = best_mask(problem)
        context = Context(dtype=dtype)
        state = Wanda().run(problem, State(), context)
        shared, own = (FrankWolfe(convexify=kind, gap=1e-6).run(problem, state, context) for kind in ("shared", "row"))
        assert shared.lower * (1 - 1e-6) <= own.lower <= best * (1 + 1e-9)
        assert verify.check(problem, own.certificate).bound == pytest.approx(own.lower, rel=1e-6)
        semidefinite = (
            Bound(kind="shor", seconds=3600).run(problem, state, context).lower
        )  # the same bound, by another solver's point
        assert own.lower >= semidefinite * (1 - 5e-3)
        assert own.counters["row_proofs"] > 0


def test_own_diagonals_need_independent_rows_and_hostile_ones_do_without():
    assert "independent" in FrankWolfe(convexify="row").supports(random_layer("unstructured:0.4"))
    assert FrankWolfe(convexify="row").supports(random_layer("2:4")) is None
    for problem in hostile_layers("0.5"):
        after = FrankWolfe(convexify="row", steps=50).run(problem, Wanda().run(problem, State(), Context()), Context())
        assert np.isfinite(after.relaxed).all(), problem.name
        assert verify.check(problem, after.certificate).ok, problem.name


def test_without_time_the_rows_keep_the_shared_diagonal():
    problem = random_layer("0.5", n=12)
    context = Context(deadline=0.0)
    state = Wanda().run(problem, State(), Context())
    after = FrankWolfe(convexify="row").run(problem, state, context)
    assert after.counters["row_proofs"] == 0
    assert after.certificate.kind == "diagonal"


def test_an_indefinite_matrix_is_refused():
    problem = random_layer("0.5", rows=1, n=2)
    object.__setattr__(problem, "G", np.array([[1.0, 2.0], [2.0, 1.0]]))
    with pytest.raises(ValueError, match="positive"):
        shared_e(problem, np.full((1, 2), 0.5))


@pytest.mark.parametrize("convexify", ["shared", "row"])
def test_out_of_time_the_plain_bound_is_kept_and_no_diagonal_is_sought(convexify, monkeypatch):
    monkeypatch.setattr(
        "fwbench.solvers.frank_wolfe.stage.shared_e", lambda *_, **__: pytest.fail("no time was left for e")
    )
    problem = random_layer("0.5", rows=3, n=24, condition=1e3)
    near = FrankWolfe(gap=1e-2).run(problem, Wanda().run(problem, State(), Context()), Context())
    start = State(keep=None, relaxed=near.relaxed)
    after = FrankWolfe(convexify=convexify).run(problem, start, Context(deadline=0.0))
    assert after.stopped == "deadline"
    assert after.certificate.bound == pytest.approx(bounds.certificate(problem, near.relaxed, None).bound, rel=1e-3)
    assert after.certificate.bound > 0
    assert verify.check(problem, after.certificate).ok
