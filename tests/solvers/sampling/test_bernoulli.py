"""The policy gradient against the sum over all masks, the paper's recursion, and hostile layers."""

from itertools import product

import numpy as np
import pytest
from layers import PATTERNS, arriving, begun, hostile_layers, random_layer
from oracles import gradient, group_sums

from fwbench import patterns
from fwbench.solvers.sampling.bernoulli import Bernoulli, estimate
from fwbench.stage import Context, State


@pytest.mark.parametrize("target", [False, True])
@pytest.mark.parametrize("n", [8, 10])
def test_over_all_masks_the_estimate_is_the_gradient_of_the_mean_error(n, target):
    """``F(p) = pᵀQp + Σ Q_ii p_i(1 - p_i) + cᵀp + offset``, and the sum over all ``2ⁿ`` masks of chance times error."""
    problem = arriving("0.5", rows=2, n=n, seed=n)[0] if target else random_layer("0.5", rows=2, n=n, seed=n)
    p = np.random.default_rng(1).uniform(0.05, 0.95, problem.shape)
    masks = np.array(list(product((False, True), repeat=n)))
    mean, found, square = np.zeros(2), np.zeros(problem.shape), np.zeros(problem.shape)
    for mask in masks:
        m = np.broadcast_to(mask, problem.shape)
        chance = np.where(m, p, 1 - p).prod(axis=1)
        f = problem.row_errors(m)
        one = estimate(p, m, f - 0.3)  # any baseline
        mean, found, square = mean + chance * f, found + chance[:, None] * one, square + chance[:, None] * one**2
    own = problem.W.astype(float) ** 2 * problem.G.diagonal()
    np.testing.assert_allclose(mean, problem.row_errors(p) + (own * p * (1 - p)).sum(axis=1))
    expected = gradient(problem, p) + own * (1 - 2 * p)
    np.testing.assert_allclose(found, expected, atol=1e-10 * np.abs(expected).max())
    assert (square - found**2 > found**2).mean() > 0.9, "one sample is mostly noise"


def test_certain_weights_have_no_gradient():
    p, m = np.array([[0.0, 1.0, 0.5]]), np.array([[False, True, True]])
    assert np.array_equal(estimate(p, m, np.array([2.0])), [[0, 0, 4.0]])


@pytest.mark.parametrize("target", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_equals_the_papers_recursion(pattern, target):
    problem = arriving(pattern, rows=3, n=12)[0] if target else random_layer(pattern, rows=3, n=12)
    stage = Bernoulli(steps=4, samples=2, rate=0.3, window=3, explore=0.25)
    start = begun(problem, stage)
    rng, q, b = np.random.default_rng(5), (~start.keep).astype(float), None
    size = problem.pattern.group_size(problem.shape)
    middle = np.repeat(problem.counts / size, size).reshape(problem.shape)
    unit = (problem.W.astype(float) ** 2 * problem.G.diagonal()).mean(axis=1)
    unit = unit + (np.abs(2 * problem.W * problem.T).mean(axis=1) if target else 0)
    for _ in range(4):
        p = 0.75 * q + 0.25 * middle
        drawn = [rng.random(problem.shape) < p for _ in range(2)]
        f = [problem.row_errors(m) / unit for m in drawn]
        b = f[0] if b is None else b
        with np.errstate(invalid="ignore", divide="ignore"):
            score = [np.nan_to_num((m - p) / (p * (1 - p))) for m in drawn]
        step = 0.3 / 12 * 0.75 * sum((y - b)[:, None] * s for y, s in zip(f, score, strict=True)) / 2
        b = b + (sum(f) / 2 - b) / 3
        q = patterns.project(problem.pattern, q - step)
    after = stage.run(problem, start, Context(seed=5))
    np.testing.assert_allclose(after.relaxed, q, atol=1e-12)
    assert after.counters == {"iterations": 4, "gram_products": 8}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_stays_in_the_polytope_and_bears_hostile_layers(pattern):
    for problem in (*hostile_layers(pattern), arriving(pattern, wrong=1e6)[0]):
        after = Bernoulli(steps=20).run(problem, begun(problem, Bernoulli), Context(seed=1))
        assert after.relaxed.min() >= 0, problem.name
        assert after.relaxed.max() <= 1, problem.name
        sums = group_sums(problem.pattern, problem.shape) @ after.relaxed.ravel()
        np.testing.assert_allclose(sums, problem.counts, atol=1e-6, err_msg=problem.name)


def test_the_relaxed_error_falls_and_the_seed_alone_decides():
    problem = random_layer("0.5", rows=4, n=32)
    start = begun(problem, Bernoulli)
    one, again, other = (Bernoulli().run(problem, start, Context(seed=seed)).relaxed for seed in (1, 1, 2))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    assert problem.row_errors(one).sum() < 0.9 * problem.error(start.keep)


def test_ends_at_the_deadline_and_begins_with_the_point():
    problem = random_layer("0.5", rows=2, n=12)
    point = np.full(problem.shape, 0.5)
    late = Bernoulli().run(problem, State(relaxed=point), Context(deadline=0.0))
    assert late.stopped == "deadline"
    assert np.array_equal(late.relaxed, point)
    assert late.counters["iterations"] == 0


@pytest.mark.parametrize("given", [{"steps": 0}, {"samples": 0}, {"window": 0}, {"rate": 0.0}, {"explore": 0.0}])
def test_what_is_no_parameter_is_refused(given):
    with pytest.raises(ValueError, match="must be"):
        Bernoulli(**given)
