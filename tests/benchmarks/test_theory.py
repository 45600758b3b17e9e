"""What is guaranteed of a row, against enumeration."""

from itertools import combinations, product

import numpy as np
import pytest
from brute import best_mask
from layers import hostile_layers, random_layer

from benchmarks.theory import guarantees, page
from benchmarks.theory.study import EXACT, Row, measured
from fwbench import bounds
from fwbench.problem import Problem
from fwbench.solvers.frank_wolfe.stage import FrankWolfe
from fwbench.solvers.rounding.stage import Round
from fwbench.solvers.start.scores import Wanda
from fwbench.stage import Context, State


def rows():
    """Rows of all kinds, of few enough masks."""
    for seed, (pattern, condition) in enumerate(product(("0.25", "0.5", "0.75"), (1.0, 1e4))):
        yield random_layer(pattern, rows=1, n=12, seed=seed, condition=condition)
    for layer in hostile_layers("0.5", rows=1):
        if not layer.name.startswith(("tiny", "huge")):
            yield layer
    Q, *_ = guarantees.parity(8, 3, 1e-3)
    yield Problem("parity", np.ones((1, 8)), Q, np.array([3]))


def point(problem):
    """A point of the polytope, drawn at random."""
    rng = np.random.default_rng(problem.n)
    masks = [problem.pattern.prune(rng.random((1, problem.n))) for _ in range(5)]
    return np.tensordot(rng.dirichlet(np.ones(5)), np.array(masks, float), 1)[0]


def relaxed(problem):
    start = Wanda().run(problem, State(), EXACT)
    return FrankWolfe(gap=1e-9).run(problem, start, EXACT).relaxed[0]


@pytest.mark.parametrize("problem", list(rows()), ids=lambda problem: problem.name)
def test_the_guarantees_hold(problem):
    Q, pruned = guarantees.quadratic(problem), int(problem.counts[0])
    best, slack = best_mask(problem)[0], 1e-9 * problem.total + 1e-14
    for u in (relaxed(problem), point(problem)):
        value = float(u @ Q @ u)
        errors = {
            method: problem.error(Round(method=method).run(problem, State(relaxed=u[None]), Context()).mask)
            for method in ("topk", "expectation")
        }
        assert errors["topk"] <= value + guarantees.nearest(Q, pruned, value) + slack
        assert errors["expectation"] <= value + guarantees.expectation(Q, u) + slack
        assert best <= value + guarantees.spread(Q, u) + slack
        assert guarantees.spread(Q, u) <= guarantees.blind_spread(Q, pruned) + slack
        limit = guarantees.ratio(guarantees.condition(Q), problem.n, pruned)
        assert not np.isfinite(limit) or best <= limit * value + slack
    wanda = problem.error(Wanda().run(problem, State(), EXACT).mask)
    limit = guarantees.wanda(problem.G)
    assert not np.isfinite(limit) or wanda <= limit * best + slack


def distribution(u):
    """Every mask that pivotal sampling can draw, and its chance, meeting by meeting."""
    found = {(0, ()): 1.0}
    rest = u[0]
    for j in range(1, len(u)):
        both, after = rest + u[j], {}
        for (left, pruned), chance in found.items():
            if both <= 1:
                ends = (((j, pruned), u[j] / both), ((left, pruned), rest / both))
            else:
                ends = (
                    ((j, (*pruned, left)), (1 - u[j]) / (2 - both)),
                    ((left, (*pruned, j)), (1 - rest) / (2 - both)),
                )
            for state, part in ends:
                after[state] = after.get(state, 0) + chance * part
        found, rest = after, both if both <= 1 else both - 1
    masks = np.zeros((len(found), len(u)))
    for mask, (left, pruned) in zip(masks, found, strict=True):
        mask[list(pruned)] = 1
        mask[left] = round(rest)
    return masks, np.array(list(found.values()))


@pytest.mark.parametrize("seed", range(6))
def test_pivotal_sampling_has_the_means_the_count_and_the_bound(seed):
    problem = random_layer("0.5", rows=1, n=10, seed=seed)
    u, Q = point(problem), guarantees.quadratic(problem)
    masks, chances = distribution(u)
    assert chances.sum() == pytest.approx(1)
    assert (masks.sum(axis=1) == 5).all()
    assert chances @ masks == pytest.approx(u)
    covariance = (masks * chances[:, None]).T @ masks - np.outer(u, u)
    assert (covariance - np.diag(covariance.diagonal())).max() <= 1e-12
    mean = float(chances @ ((masks @ Q) * masks).sum(axis=1))
    assert mean <= u @ Q @ u + guarantees.spread(Q, u) + 1e-12
    drawn = guarantees.pivotal(u, 20_000, np.random.default_rng(seed))
    assert (drawn.sum(axis=1) == 5).all()
    assert drawn.mean(axis=0) == pytest.approx(u, abs=0.02)
    moments = drawn.T.astype(float) @ drawn / len(drawn) - np.outer(u, u)
    assert moments == pytest.approx(covariance, abs=0.02)


@pytest.mark.parametrize(("n", "pruned", "delta"), [(2, 1, 0.1), (8, 3, 1e-3), (10, 5, 2.0)])
def test_the_parity_rows_are_as_said(n, pruned, delta):
    Q, least, minimum = guarantees.parity(n, pruned, delta)
    errors = [Q[np.ix_(chosen, chosen)].sum() for chosen in map(list, combinations(range(n), pruned))]
    assert min(errors) == pytest.approx(least)
    problem = Problem("parity", np.ones((1, n)), Q, np.array([pruned]))
    u = relaxed(problem)
    assert u @ Q @ u == pytest.approx(minimum, rel=1e-6)
    limit = guarantees.ratio(guarantees.condition(Q), n, pruned)
    assert least / minimum <= limit
    assert n > 2 or limit <= 2 * least / minimum  # the condition cannot be spared


@pytest.mark.parametrize(("n", "pruned"), [(3, 1), (4, 2), (4, 5)])
def test_other_counts_are_refused(n, pruned):
    with pytest.raises(ValueError, match="parity"):
        guarantees.parity(n, pruned, 0.1)


def test_a_condition_is_that_of_the_eigenvalues():
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((6, 6)))[0]
    assert guarantees.condition(basis @ np.diag([1, 2, 3, 4, 5, 40]) @ basis.T) == pytest.approx(40)
    assert guarantees.condition(np.ones((3, 3))) == np.inf
    scaled = np.diag([1.0, 1e3, 1e-3, 0.0])  # uncorrelated, and a dead input
    assert guarantees.wanda(scaled) == pytest.approx(1)


def test_a_line_of_the_study_is_what_enumeration_says():
    problem = random_layer("0.5", rows=1, n=10, seed=4)
    line = measured("mini", problem, 0, 1.0, 2.0)
    assert line.optimum == pytest.approx(best_mask(problem)[0], rel=1e-6)
    assert line.relaxed <= line.optimum <= min(line.topk, line.best, line.expectation, line.wanda, line.drawn)
    assert line.best <= line.topk
    assert line.drawn <= line.relaxed + line.spread
    assert line.lemma == pytest.approx(bounds.guaranteed_gaps(problem, 1e300)[0], rel=1e-6)


def test_an_excess_is_of_sums_and_open_rows_are_left_out():
    values = dict.fromkeys(Row.__dataclass_fields__, 0.0)
    lines = [
        Row(**{**values, "family": "mini", "n": 4, "pattern": "0.5", "optimum": least, "topk": topk, "lemma": 6.0})
        for least, topk in ((1.0, 1.5), (3.0, 4.5), (float("inf"), 1.0))
    ]
    [rows] = page.cells(lines).values()
    assert len(rows) == 2
    assert page.excess(rows, "topk") == pytest.approx(0.5)
    assert page.excess(rows, "lemma") == pytest.approx(3.0)
