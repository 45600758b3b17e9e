"""Bounds in batches: against the same row by row, the checker, and on a GPU where there is one."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from brute import best_mask
from hypothesis import given, settings
from hypothesis import strategies as st
from layers import hostile_layers, random_layer

from fwbench import verify
from fwbench.bounds import group_bounds
from fwbench.problem import Problem
from fwbench.solvers.bounds.batch import Device, path_of_batches
from fwbench.solvers.bounds.stage import Bound
from fwbench.solvers.frank_wolfe.stage import FrankWolfe
from fwbench.solvers.semidefinite import psd_projection
from fwbench.solvers.semidefinite.ladder import climb, row_bound
from fwbench.solvers.semidefinite.maxcut import interior_point
from fwbench.solvers.semidefinite.maxcut_batch import interior_points
from fwbench.solvers.semidefinite.row import RowForm, row_certificate
from fwbench.solvers.semidefinite.shor import Shor, shor
from fwbench.solvers.start.scores import wanda_score
from fwbench.stage import Context, State

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=NO_GPU)]
SEPARABLE = ("0.5", "0.25", "2:4", "1:4", "rows")
KINDS = ("shor", "dnn", "mccormick")


def programs(count: int, n: int, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((count, n, 2 * n)) * np.logspace(0, -1.5, n)[:, None]
    X *= rng.uniform(0.1, 10, (count, 1, 1))
    return torch.tensor(X @ X.transpose(0, 2, 1) / n)


@pytest.fixture
def by_products(monkeypatch):
    """The projection of a GPU, on the CPU."""
    monkeypatch.setattr(psd_projection, "by_eigenvalues", lambda W, _: psd_projection.by_products(W))


# --- interior points -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("n", [1, 2, 9, 40])
def test_a_batch_ends_where_each_program_does(device, n):
    C = programs(6, n)
    found = interior_points(C.to(device), 0.02, 1e-7)
    assert found.converged.all()
    assert len(set(found.steps.tolist())) > 1 or n < 9  # programs leave the batch at different steps
    for one, y, X, border in zip(C, found.y.cpu(), found.X.cpu(), found.border.cpu(), strict=True):
        alone = interior_point(one, 0.02, lambda y, gap: gap <= 1e-7 * abs(float(y.sum())))
        assert float(y.sum()) == pytest.approx(float(alone.y.sum()), rel=2e-7)
        Z = one - torch.diag(y)
        assert float(torch.linalg.eigvalsh(Z)[0]) > 0
        assert float(torch.linalg.eigvalsh(X)[0]) > 0
        np.testing.assert_allclose(X.diagonal(), 1, rtol=1e-9)
        assert float((X * one).sum()) == pytest.approx(float(y.sum()), rel=1e-6)
        np.testing.assert_allclose((Z @ border).numpy(), np.eye(n)[0], atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 10))
def test_a_deadline_leaves_feasible_points(seed, n):
    C = programs(3, n, seed)
    found = interior_points(C, 0.02, 1e-9, time.monotonic())
    assert not found.converged.any()
    assert found.steps.tolist() == [0, 0, 0]
    assert (torch.linalg.eigvalsh(C - torch.diag_embed(found.y))[:, 0] > 0).all()


def test_indefinite_programs_and_zeros():
    C = torch.stack([torch.tensor(np.diag([1.0, -3.0, 2.0])), -torch.ones(3, 3).double(), torch.zeros(3, 3).double()])
    found = interior_points(C, 0.02, 1e-6)
    best = [min(float(s @ one @ s) for s in _signs(3)) for one in C.numpy()]
    assert (found.y.sum(1).numpy() <= np.array(best) + 1e-9).all()
    np.testing.assert_allclose(found.y.sum(1)[:2], best[:2], atol=1e-4)


def _signs(n: int) -> np.ndarray:
    return np.array(np.meshgrid(*[[-1.0, 1.0]] * n)).reshape(n, -1).T


# --- projections -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("n", [1, 3, 60])
def test_the_projection_by_products(device, n):
    """Against eigenvalues, on spectra over six orders of magnitude: the error is small beside the largest."""
    rng = np.random.default_rng(n)
    values = rng.choice([-1.0, 1.0], (4, n)) * np.logspace(0, -6, n)
    bases = np.linalg.qr(rng.standard_normal((4, n, n)))[0]
    scales = np.array([1.0, 1e-12, 1e12, 3.0])[:, None, None]
    W = scales * (bases * values[:, None]) @ bases.transpose(0, 2, 1)
    exact = scales * (bases * values.clip(0)[:, None]) @ bases.transpose(0, 2, 1)
    found = psd_projection.by_products(torch.tensor(W, dtype=torch.float32, device=device)).cpu().numpy()
    assert np.abs(found / scales - exact / scales).max() < 1e-4
    assert (found == found.transpose(0, 2, 1)).all()


def test_zeros_stay_zeros():
    assert not psd_projection.by_products(torch.zeros(2, 5, 5)).any()


# --- bounds ----------------------------------------------------------------------------------------------------------


def together(
    kind: str,
    forms: list[RowForm],
    starts: list[Shor | None] | None = None,
    device: str = "cpu",
    tolerance: float = 1e-5,
    iterations: int | None = None,
) -> list[Shor]:
    return climb(path_of_batches(kind, iterations), forms, starts or [None] * len(forms), Device(device, tolerance))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("pattern", ["0.5", "2:4"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_gives_each_rows_bound(kind, pattern, device):
    problem = random_layer(pattern, rows=5, n=24, seed=2, condition=1e3)
    forms = [RowForm.of(problem, row) for row in range(5)]
    for form, found in zip(forms, together(kind, forms, device=device), strict=True):
        assert found.proof.bound == pytest.approx(row_bound(kind, form, tolerance=1e-5).proof.bound, rel=2e-3)


@pytest.mark.parametrize("kind", ["dnn", "mccormick"])
def test_projections_by_products_cost_next_to_nothing(by_products, kind):
    """Of the distance between Shor's bound and the kind's own."""
    problem = random_layer("0.5", rows=4, n=40, seed=5, condition=1e3)
    forms = [RowForm.of(problem, row) for row in range(4)]
    found = together(kind, forms)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(psd_projection, "by_eigenvalues", lambda W, _: eigenvalues(W))
        exact = [row_bound(kind, form, tolerance=1e-5).proof.bound for form in forms]
    for form, one, other in zip(forms, found, exact, strict=True):
        assert abs(one.proof.bound - other) <= 0.02 * (other - shor(form, tolerance=1e-5).proof.bound)


def eigenvalues(W: torch.Tensor) -> torch.Tensor:
    values, vectors = torch.linalg.eigh(W)
    return (vectors * values.clamp(min=0)[:, None]) @ vectors.mT


def test_a_given_start_is_not_solved_again():
    problem = random_layer("0.5", rows=2, n=16)
    forms = [RowForm.of(problem, row) for row in range(2)]
    first = together("shor", forms)
    whole = together("dnn", forms)
    mixed = together("dnn", forms, [first[0], None])
    assert [one.proof.bound for one in mixed] == pytest.approx([one.proof.bound for one in whole], rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pattern", SEPARABLE)
def test_proofs_of_hostile_layers(by_products, kind, pattern):
    for problem in hostile_layers(pattern):
        rows = [row for row in range(problem.rows) if RowForm.of(problem, row).free]
        if not rows:
            continue
        shared = Bound(kind="shared", seconds=3600).run(problem, begun(problem), Context()).certificate
        assert shared is not None
        found = together(kind, [RowForm.of(problem, row) for row in rows], tolerance=3e-4, iterations=30)
        lower = np.maximum(group_bounds(problem, shared.arrays["u"], shared.arrays["e"]), 0.0)
        proofs = {row: one.proof for row, one in zip(rows, found, strict=True) if one.proof.lower > lower[row]}
        for row, proof in proofs.items():
            lower[row] = proof.lower
        checked = verify.check(problem, row_certificate(shared, proofs, float(lower.sum()), "batch"))
        assert checked.ok, (problem.name, checked.reason)
        assert checked.bound <= best_mask(problem)[0] * (1 + 1e-12)


@pytest.mark.parametrize("device", ["cpu:0", pytest.param("cuda", marks=NO_GPU)])
@pytest.mark.parametrize("kind", [*KINDS, "best"])
def test_the_stage_on_a_device(kind, device, monkeypatch):
    """In batches of two, so that there are several; ``cpu:0`` is a device by its name, so it takes the same way."""
    monkeypatch.setattr("fwbench.solvers.bounds.stage.fitting", lambda n, device: 2)
    problem = random_layer("0.5", rows=5, n=40, seed=1, condition=1e3)
    after = [
        Bound(kind=kind, seconds=3600).run(problem, begun(problem), Context(device=where, threads=2))
        for where in (device, "cpu")
    ]
    assert after[0].certificate is not None
    assert verify.check(problem, after[0].certificate).ok
    assert after[0].counters["row_proofs"] == after[1].counters["row_proofs"]
    assert after[0].lower == pytest.approx(after[1].lower, rel=2e-3)


def test_the_shared_bound_is_the_hosts(monkeypatch):
    """In-face steps run on the CPU only, and once sent to the device they failed there."""
    asked = []
    run = FrankWolfe.run
    monkeypatch.setattr(FrankWolfe, "run", lambda self, *given: asked.append(given[2].device) or run(self, *given))
    problem = random_layer("0.5", rows=3, n=16)
    Bound(kind="shor").run(problem, begun(problem), Context(device="cpu:0"))
    assert asked == ["cpu"]


def begun(problem: Problem) -> State:
    return State(keep=~problem.pattern.prune(wanda_score(problem.W, problem.G)))
