"""Unrolled steps: the projection against a QP solver, the update by its formula, constraints on rows not trained on."""

import numpy as np
import pytest
import qpsolvers
import scipy.sparse as sp
import torch
from layers import PATTERNS, arriving, begun, hostile_layers, random_layer
from oracles import gradient, group_sums, relaxed_minimum

from benchmarks.learned import train
from fwbench.problem import Problem
from fwbench.problems.collections import load
from fwbench.solvers.learned import weights
from fwbench.solvers.learned.unrolled import Unrolled, curvatures, numbers, project
from fwbench.stage import Context, State

EXACT = Context(dtype="float64")


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_projection_is_the_nearest_point_in_its_metric(pattern):
    problem, rng = random_layer(pattern, rows=2, n=12), np.random.default_rng(0)
    z, s = 2 * rng.standard_normal(problem.shape), np.exp(rng.standard_normal(problem.shape))
    counts = torch.tensor(problem.counts).double()[:, None]
    found = project(torch.tensor(z), torch.tensor(s), problem.pattern.groups, counts).numpy()
    P, q = sp.diags(1 / s.ravel(), format="csc"), -(z / s).ravel()
    sums = sp.csc_matrix(group_sums(problem.pattern, problem.shape))
    form = qpsolvers.Problem(P, q, None, None, sums, problem.counts.astype(float), np.zeros(24), np.ones(24))
    expected = qpsolvers.solve_problem(form, "clarabel", tol_gap_abs=1e-11, tol_gap_rel=1e-11, tol_feas=1e-11).x
    np.testing.assert_allclose(found.ravel(), expected, atol=1e-6)


def test_the_projection_knows_its_derivative():
    problem, rng = random_layer("0.5", rows=2, n=8), np.random.default_rng(1)
    counts = torch.tensor(problem.counts).double()[:, None]
    z, s = (torch.tensor(rng.random(problem.shape) + 0.3, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda z, s: project(z, s, problem.pattern.groups, counts), (z, s), atol=1e-6)


@pytest.mark.parametrize("target", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_each_step_is_the_formula(pattern, target):
    problem = arriving(pattern, rows=2, n=12, seed=1)[0] if target else random_layer(pattern, rows=2, n=12, seed=1)
    start = begun(problem, Unrolled)
    counts = torch.tensor(problem.counts).double()[:, None]
    trained = torch.from_numpy(weights.load("unrolled")["steps"].astype(np.float64))
    u = before = (~start.keep).astype(float)
    Q = np.abs(problem.W[:, :, None] * problem.W[:, None, :].astype(float) * problem.G)
    D, own = Q.sum(axis=2), Q.diagonal(axis1=1, axis2=2)
    for length, exponent, momentum in numbers(trained[:5]):
        y = u + float(momentum) * (u - before)
        s = float(length) / (2 * D) * (D / np.maximum(own, 1e-4 * D)) ** float(exponent)
        z = torch.tensor(y - s * gradient(problem, y))
        before, u = u, project(z, torch.tensor(s), problem.pattern.groups, counts).numpy()
    after = Unrolled(steps=5).run(problem, start, EXACT)
    better = problem.row_errors(u) < problem.row_errors(~start.keep)
    rows = better if problem.pattern.separable else np.full(2, u is not None and better.any())
    np.testing.assert_allclose(after.relaxed[rows], u[rows], atol=1e-6)
    assert after.counters == {"iterations": 5, "gram_products": 7}


def test_the_minimum_is_a_fixed_point_and_the_majorant_descends():
    problem = random_layer("0.5", rows=3, n=16)
    _, u = relaxed_minimum(problem)
    W, G = torch.tensor(problem.W, dtype=torch.float64), torch.tensor(problem.G)
    own, bound = curvatures(W, G)
    for w, d in zip(problem.W.astype(float), bound.numpy(), strict=True):
        assert np.linalg.eigvalsh(np.diag(d) - np.outer(w, w) * problem.G)[0] >= -1e-9
    counts = torch.tensor(problem.counts).double()[:, None]
    for s in (1 / (2 * bound), 3 / (2 * own)):
        moved = project(torch.tensor(u) - s * torch.tensor(gradient(problem, u)), s, problem.pattern.groups, counts)
        np.testing.assert_allclose(moved.numpy(), u, atol=1e-4)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_never_worse_than_its_start_and_in_the_polytope(pattern):
    for problem in (*hostile_layers(pattern), arriving(pattern, wrong=1e6)[0]):
        start = begun(problem, Unrolled)
        after = Unrolled().run(problem, start, Context())
        assert after.relaxed.min() >= 0, problem.name
        assert after.relaxed.max() <= 1, problem.name
        sums = group_sums(problem.pattern, problem.shape) @ after.relaxed.ravel()
        np.testing.assert_allclose(sums, problem.counts, atol=1e-6, err_msg=problem.name)
        errors = problem.row_errors(after.relaxed).sum(), problem.error(start.keep)
        assert errors[0] <= errors[1] + problem.rounding(start.keep), problem.name


def test_descent_constraints_hold_on_rows_that_it_was_not_trained_on():
    """The mean gap falls by the trained part at nearly every step, over the blocks of ``mini`` that are another's."""
    problems = [problem for _, problem in load("mini/n096*") if problem.T is None and problem.pattern.separable]
    trained = torch.from_numpy(weights.load("unrolled")["steps"].astype(np.float64))
    gaps = np.mean([train.Batch.of([problem]).run(trained)[1].numpy() for problem in problems], axis=0)
    assert gaps[-1] < 0.1 * gaps[0]
    assert np.mean(gaps[1:] <= gaps[:-1] * (1 - train.DESCENT / 2)) >= 0.8


def test_the_deadline_and_what_is_refused():
    problem = random_layer("0.5", n=12)
    point = np.full(problem.shape, 0.5)
    late = Unrolled().run(problem, State(relaxed=point), Context(deadline=0.0))
    assert late.stopped == "deadline"
    assert np.array_equal(late.relaxed, point)
    for steps in (0, 1000):
        with pytest.raises(ValueError, match="steps must lie between"):
            Unrolled(steps=steps)


def test_rows_without_weights():
    problem = Problem("zeros", np.zeros((2, 4)), np.eye(4), "0.5")
    start = begun(problem, Unrolled)
    assert np.array_equal(Unrolled().run(problem, start, Context()).relaxed, ~start.keep)
