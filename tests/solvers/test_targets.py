"""Stages on problems that have a target: against enumeration, a QP solver, and errors computed from the inputs."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from brute import best_mask
from layers import PATTERNS, arriving, begun, hostile_targets, random_layer
from oracles import gradient, group_sums, relaxed_minimum

from fwbench import pipeline, verify
from fwbench.judge import count_reason
from fwbench.problem import Problem
from fwbench.solvers.frank_wolfe import loop
from fwbench.solvers.frank_wolfe.loop_torch import minimise_torch
from fwbench.solvers.frank_wolfe.push import middle
from fwbench.solvers.frank_wolfe.rules import DIRECTION_RULES, STEP_RULES
from fwbench.solvers.frank_wolfe.stage import FrankWolfe
from fwbench.solvers.local_search import swap_torch
from fwbench.solvers.local_search.swap import Swap
from fwbench.solvers.rounding.pipage import pipage
from fwbench.solvers.start.greedy import Greedy
from fwbench.solvers.start.scores import Random
from fwbench.solvers.weight_update.admm import ADMM
from fwbench.solvers.weight_update.alps import ALPS
from fwbench.solvers.weight_update.alternate import Alternate
from fwbench.solvers.weight_update.fistapruner import FISTAPruner
from fwbench.solvers.weight_update.iht import IHT
from fwbench.solvers.weight_update.refit import Refit
from fwbench.solvers.weight_update.reswap import Reswap
from fwbench.solvers.weight_update.sparsegpt import SparseGPT
from fwbench.solvers.weight_update.thanos import Thanos
from fwbench.stage import Context, Role, State, registry

pipeline.load_solvers()
ROOMS = ("start", "rounding", "frank_wolfe", "first_order", "learned", "local_search", "sampling", "weight_update")
EXACT = Context(dtype="float64")
SPECS = {
    "random": ["random"],
    "magnitude": ["magnitude"],
    "wanda": ["wanda"],
    "ria": ["ria"],
    "greedy": ["greedy"],
    "round": [f"fw(steps=50)+round(method={method})" for method in ("topk", "randomised", "expectation")],
    "fw": [
        *(f"fw(variant={name},steps=60)" for name in DIRECTION_RULES),
        *(f"fw(variant=vanilla,step={name},steps=60,rounded=True)" for name in STEP_RULES),
        *("fw(alpha=0.5,fixed=ria,steps=60)", "fw(average=lookahead,steps=60)"),
        *("fw(alpha=0.5,steps=60)", "fw(convexify=shared,steps=60)"),
    ],
    "mirror": ["mirror(steps=60)", "mirror(steps=60,blocks=2)"],
    "pgd": ["pgd(steps=60)"],
    "pdhg": ["pdhg(steps=60)"],
    "splitting": ["splitting+round", "fw(steps=20)+splitting(iterations=24)+round"],
    "bernoulli": ["bernoulli(steps=50)", "fw(steps=20)+bernoulli(steps=20,samples=1)"],
    "momentum": ["momentum(steps=50)", "momentum(steps=50,alpha=0.1,transport=True,batches=3)"],
    "learned_bound": ["random+learned_bound(steps=60)"],
    "unrolled": ["unrolled", "fw(steps=20)+unrolled(steps=3)"],
    "push": ["push(rounds=10)", "push(variant=inface,rounds=10)"],
    "swap": ["random+swap", "random+swap(enough=0.5)"],
    "tabu": ["random+tabu(iterations=200)"],
    "anneal": ["random+anneal(rounds=2,sweeps=30)"],
    "ils": ["random+ils(rounds=5)"],
    "resplit": ["random+resplit", "wanda+resplit(iterations=10,turns=0)"],
    "safeguard": ["random+safeguard"],
    "dsnot": ["random+dsnot"],
    "splice": ["random+splice"],
    "refit": ["random+refit", "random+refit(ridge=0)"],
    "reswap": ["random+reswap", "random+reswap(ridge=0)"],
    "sparsegpt": ["sparsegpt", "random+sparsegpt", "sparsegpt(order=loss,spread=0)"],
    "thanos": ["thanos", "random+thanos"],
    "alps": ["alps", "random+alps"],
    "iht": ["random+iht", "random+iht(accelerated=False)"],
    "fistapruner": ["random+fistapruner"],
    "alternate": ["random+alternate"],
    "admm": ["admm", "random+admm"],
}


def of_rooms(role: Role | None = None) -> list[str]:
    """The stages of these rooms."""
    own = {f"fwbench.solvers.{room}" for room in ROOMS}
    return sorted(
        name
        for name, stage in registry.items()
        if stage.__module__.rpartition(".")[0] in own and role in (None, stage.role)
    )


def masks(problem: Problem) -> list[State]:
    """To begin with: Wanda's and a random one."""
    return [begun(problem, registry["swap"]), Random().run(problem, State(), Context(seed=1))]


def from_inputs(keep, W, Y, X):
    """``‖Y - ŴX̂‖² / tokens`` of each row."""
    return ((Y - np.where(keep, W, 0).astype(float) @ X) ** 2).sum(axis=1) / X.shape[1]


def neighbours(problem: Problem, keep: np.ndarray):
    """Every mask that one exchange leads to: within a group, over the layer where rows share a count."""
    size, flat = problem.pattern.group_size(problem.shape), keep.ravel()
    for i in np.flatnonzero(~flat):
        for j in np.flatnonzero(flat):
            if i // size == j // size:
                other = flat.copy()
                other[[i, j]] = True, False
                yield other.reshape(keep.shape)


def test_every_stage_of_these_rooms_is_here():
    assert sorted(SPECS) == of_rooms()


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("stage", SPECS)
def test_hostile_targets(stage, pattern):
    """Masks are feasible, what is told is what is judged, and bounds lie below every mask, weights apart."""
    for problem in hostile_targets(pattern, rows=2):
        best, _ = best_mask(problem)
        slack = problem.rounding()
        for spec in SPECS[stage]:
            answer = pipeline.run(problem, pipeline.resolve(spec), seed=1, threads=1)
            found = answer.result
            assert found.reason == count_reason(problem, answer.keep) == "", (spec, problem.name, found.reason)
            assert np.isfinite(found.error), (spec, problem.name)
            told = [moment.upper for moment in found.trace if moment.upper is not None]
            if registry[stage].role is Role.REFINE and told:
                assert told[-1] == pytest.approx(found.error, rel=1e-9, abs=slack), (spec, problem.name)
            if answer.weights is None:
                assert found.error >= best - slack, (spec, problem.name)
            if found.lower_bound is not None:
                assert found.lower_bound <= best + 1e-12 * abs(best), (spec, problem.name)
                assert verify.check(problem, answer.certificate).ok, (spec, problem.name)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("name", of_rooms(Role.REFINE))
def test_refining_never_makes_it_worse(name, pattern):
    short = {"tabu": {"iterations": 100}, "anneal": {"rounds": 1, "sweeps": 20}, "ils": {"rounds": 3}}
    stage = registry[name](**short.get(name, {}))
    for problem in (*hostile_targets(pattern), negative(pattern)):
        for start in masks(problem):
            after = stage.run(problem, start, Context(seed=2))
            assert not count_reason(problem, after.keep), problem.name
            assert problem.error(after.keep) <= problem.error(start.keep) + problem.rounding(start.keep), problem.name


def negative(pattern: str) -> Problem:
    """Errors below 0, as no target has them: ``T`` and ``offset`` of different ones."""
    problem, _, _ = arriving(pattern, wrong=3.0)
    return replace(problem, name="negative", offset=-100 - problem.offset)


@pytest.mark.parametrize("spec", ["tabu(iterations=100)", "anneal(rounds=6,sweeps=20)", "ils(rounds=3)", "swap"])
def test_searches_do_not_depend_on_the_offset(spec):
    """Errors below 0 neither count as better than themselves nor keep a row from being settled."""
    problem, _, _ = arriving("0.5", rows=3, n=8)
    stage, start = pipeline.resolve(f"random+{spec}").stages[-1], masks(problem)[1]
    ours = stage.run(problem, start, Context(seed=2))
    below = stage.run(replace(problem, offset=problem.offset - 1e3), start, Context(seed=2))
    assert np.array_equal(ours.keep, below.keep)
    assert ours.counters == below.counters


# --- masks ------------------------------------------------------------------------------------------------------------


def greedily(problem: Problem, Y: np.ndarray, X: np.ndarray) -> np.ndarray:
    """Remove the weight after which the outputs are nearest to the target, one after another."""
    keep = np.ones(problem.shape, dtype=bool)
    size = problem.pattern.group_size(problem.shape)
    left, groups = problem.counts.copy(), np.arange(keep.size) // size
    while left.any():
        costs = np.full(keep.size, np.inf)
        for i in np.flatnonzero(keep.ravel() & (left[groups] > 0)):
            other = keep.ravel().copy()
            other[i] = False
            row = i // problem.n
            now = other.reshape(keep.shape)[row]
            change = [from_inputs(x, problem.W[row : row + 1], Y[row : row + 1], X)[0] for x in (now, keep[row])]
            costs[i] = change[0] - change[1]
        best = int(costs.argmin())
        keep.ravel()[best] = False
        left[groups[best]] -= 1
    return keep


@pytest.mark.parametrize("wrong", [0.1, 3.0])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_greedy_removes_what_costs_least(pattern, wrong):
    problem, Y, X = arriving(pattern, wrong=wrong)
    assert np.array_equal(Greedy().run(problem, State(), Context()).keep, greedily(problem, Y, X))


@pytest.mark.parametrize("n", [12, 48])  # all pairs, and screens
@pytest.mark.parametrize("pattern", PATTERNS)
def test_swaps_end_where_no_exchange_gains(pattern, n):
    for seed, wrong, whole in ((0, 0.3, False), (1, 30.0, False), (2, 0.5, True)):
        problem, Y, X = arriving(pattern, rows=2, n=n, seed=seed, wrong=wrong, whole=whole)
        keep = Swap().run(problem, masks(problem)[1], Context()).keep
        reached = from_inputs(keep, problem.W, Y, X).sum()
        assert problem.error(keep) == pytest.approx(reached, rel=1e-9)
        for other in neighbours(problem, keep):
            assert from_inputs(other, problem.W, Y, X).sum() >= reached * (1 - 1e-9)


@pytest.mark.parametrize("pattern", ["0.5", "2:4", "rows"])
def test_swaps_on_a_device_are_the_kernel_s(pattern):
    for n, whole in ((12, True), (48, False)):
        problem, _, _ = arriving(pattern, rows=4, n=n, whole=whole)
        for start in masks(problem):
            pruned, group = ~start.keep, problem.group
            rest = (problem.W, problem.G, pruned, group, 10**9, 1.0, "cpu", lambda: False, problem.linear)
            swaps, _, _ = swap_torch.descend(*rest)
            expected = Swap().run(problem, start, Context())
            assert np.array_equal(~pruned, expected.keep)
            assert swaps == expected.counters["swaps"]


def test_swaps_end_where_a_linear_term_rules():
    """Ties and terms beside which ``Q`` is rounding, or beyond what float32 holds: the smallest terms are pruned."""
    for size in (1e-30, 1.0, 1e25, 1e45):
        plain = random_layer("0.5", rows=3, n=40, seed=2)
        ties = np.random.default_rng(0).choice([1.0, 1 / 3, -1 / 7], plain.shape) / plain.W.astype(float)
        problem = replace(plain, T=size * ties, offset=np.zeros(3))
        after = Swap().run(problem, masks(problem)[1], Context())
        if size >= 1e25:
            least = np.sort(problem.linear, axis=1)[:, :20].sum()
            assert problem.error(after.keep) == pytest.approx(least, rel=1e-12)
        assert after.counters["swaps"] <= 200


@pytest.mark.parametrize("pattern", PATTERNS)
def test_search_finds_the_optimum(pattern):
    for seed in range(3):
        problem, _, _ = arriving(pattern, rows=2, n=8, seed=seed, wrong=10.0 ** (seed - 1))
        best, _ = best_mask(problem)
        for spec in ("random+tabu(iterations=500)", "random+anneal(rounds=2,sweeps=100)", "random+ils(rounds=30)"):
            found = pipeline.run(problem, pipeline.resolve(spec), seed=1, threads=1).result.error
            if problem.pattern.separable:
                assert found == pytest.approx(best, rel=1e-9), spec
            assert found <= 1.05 * best


@pytest.mark.parametrize("pattern", PATTERNS)
def test_rounding_by_expectation_keeps_its_guarantee(pattern):
    for problem in (*hostile_targets(pattern), arriving(pattern)[0]):
        rng = np.random.default_rng(3)
        W, counts, size = problem.W.astype(float), problem.counts, problem.pattern.group_size(problem.shape)
        u = np.repeat(counts / size, size).reshape(problem.shape)
        u = 0.7 * u + 0.3 * problem.pattern.prune(rng.random(problem.shape))
        own = W**2 * problem.G.diagonal()
        mean = problem.row_errors(u).sum() + (own * u * (1 - u)).sum()
        keep = ~pipage(problem, u)
        assert not count_reason(problem, keep)
        most = len(counts) * own.max() / 2 * (1 / np.arange(1, size + 1)).sum()
        assert problem.error(keep) <= mean + most + problem.rounding(), problem.name


# --- relaxations ------------------------------------------------------------------------------------------------------


def started(problem: Problem) -> State:
    return begun(problem, registry["fw"])


@pytest.mark.parametrize("variant", DIRECTION_RULES)
@pytest.mark.parametrize("pattern", ["0.5", "unstructured:0.4", "2:4", "rows"])
def test_variants_reach_the_minimum_of_a_qp_solver(pattern, variant):
    slack = 3e-3 if variant == "vanilla" else 1e-5  # which zigzags
    for seed, wrong in ((0, 0.3), (1, 5.0)):
        problem, _, _ = arriving(pattern, rows=2, n=24, seed=seed, wrong=wrong)
        minimum, _ = relaxed_minimum(problem)
        after = FrankWolfe(variant=variant, steps=3000, gap=1e-7).run(problem, started(problem), EXACT)
        value = problem.row_errors(after.relaxed).sum()
        assert minimum * (1 - 1e-6) <= value <= minimum * (1 + slack)
        assert after.trace[-1].relaxed == pytest.approx(value, rel=1e-6)
        assert minimum * (1 - 2 * slack) <= after.lower <= minimum * (1 + 1e-9)
        assert after.trace[-1].lower == pytest.approx(after.lower, rel=1e-6)
        assert verify.check(problem, after.certificate).ok


@pytest.mark.parametrize("pattern", ["0.5", "unstructured:0.4", "2:4"])
def test_convexified_it_reaches_the_minimum_too(pattern):
    problem, _, _ = arriving(pattern, rows=2, n=24)
    e = 0.9 * np.linalg.eigvalsh(problem.G)[0]
    minimum, _ = relaxed_minimum(problem, e)
    layer = loop.Objective.of(problem, EXACT, problem.W.astype(float) ** 2 * e)
    start = torch.tensor(middle(problem))
    for variant in ("inface", "bpcg", "vanilla"):
        run = loop.minimise(layer, start, loop.LoopOptions(steps=3000, variant=variant, gap=1e-7, correct=20), EXACT)
        assert run.trace[-1].relaxed == pytest.approx(minimum, rel=3e-3 if variant == "vanilla" else 1e-6)
        assert float(run.bound.sum()) <= minimum * (1 + 1e-9)


@pytest.mark.parametrize("variant", ["vanilla", "dicg"])
@pytest.mark.parametrize("pattern", ["0.5", "unstructured:0.4", "2:4"])
def test_torch_and_the_kernels_agree(pattern, variant):
    problem = arriving(pattern, rows=3, n=16)[0]
    problem = replace(problem, W=problem.W * np.float32(2.0**-40), T=problem.T * 2.0**-40)  # in a range of its own
    problem = replace(problem, offset=problem.offset * 2.0**-80)
    for step in STEP_RULES:
        options = loop.LoopOptions(steps=25, step=step, variant=variant, rounded=True)
        layer = loop.Objective.of(problem, EXACT)
        assert (layer.unit != 1).all()
        u = torch.tensor(middle(problem))
        ours, theirs = loop.minimise(layer, u, options, EXACT), minimise_torch(layer, u, options, EXACT)
        np.testing.assert_allclose(ours.u, theirs.u, atol=1e-9)
        np.testing.assert_allclose(ours.bound, theirs.bound, rtol=1e-9)
        for one, two in zip(ours.trace, theirs.trace, strict=True):
            assert (one.upper, one.lower, one.relaxed) == pytest.approx((two.upper, two.lower, two.relaxed), rel=1e-9)
        assert ours.trace[-1].relaxed == pytest.approx(problem.row_errors(ours.u).sum(), rel=1e-9)
        rounded = problem.error(~problem.pattern.prune(-ours.u.numpy()))
        assert ours.trace[-1].upper == pytest.approx(rounded, rel=1e-9)


@pytest.mark.parametrize("variant", ["vanilla", "inface"])
def test_it_stops_at_a_gap_relative_to_the_error(variant):
    for problem in (arriving("0.5", n=24)[0], negative("0.5")):
        after = FrankWolfe(variant=variant, gap=0.02, steps=5000).run(problem, started(problem), EXACT)
        assert after.counters["iterations"] < 1000
        value, g = problem.row_errors(after.relaxed), gradient(problem, after.relaxed)
        gaps = (g * after.relaxed).sum(axis=1) - np.where(problem.pattern.prune(g), g, 0).sum(axis=1)
        assert (gaps <= 0.02 * np.abs(value) * (1 + 1e-6)).all()


@pytest.mark.parametrize("pattern", ["0.5", "unstructured:0.4", "2:4"])
def test_push_ends_at_a_point_of_the_polytope_near_a_good_mask(pattern):
    for seed in range(3):
        problem, _, _ = arriving(pattern, rows=2, n=8, seed=seed, wrong=1.0)
        best, _ = best_mask(problem)
        u = registry["push"]().run(problem, State(), Context()).relaxed
        sums = group_sums(problem.pattern, problem.shape) @ u.ravel()
        np.testing.assert_allclose(sums, problem.counts, atol=1e-4)
        assert problem.error(~problem.pattern.prune(-u)) <= 1.2 * best


# --- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ridge", [0.0, 1e-3, 1.0])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_refit_is_the_least_squares_of_the_target(pattern, ridge):
    """Rows of the inputs, and below them the ridge as more tokens, whose target is the trained weights."""
    problem, Y, X = arriving(pattern)
    keep = masks(problem)[0].keep
    more = np.sqrt(ridge * problem.G.diagonal().mean() * X.shape[1]) * np.eye(problem.n)
    expected = np.zeros(problem.shape)
    for row, kept in enumerate(keep):
        A, b = np.hstack([X, more])[kept].T, np.concatenate([Y[row], more @ problem.W[row]])
        expected[row, kept] = np.linalg.lstsq(A, b, rcond=None)[0]
    found = Refit(ridge=ridge).run(problem, State(keep=keep), Context()).weights
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_refit_in_batches_is_the_same():
    from fwbench.solvers.weight_update import refit

    problem, _, _ = arriving("rows", rows=5)
    keep = masks(problem)[0].keep
    alone = dict(refit._one_by_one(problem, keep, 1e-3, "cpu"))
    for rows, changes in refit._in_batches(problem, keep, 1e-3, "cpu"):
        np.testing.assert_allclose(changes, [alone[row] for row in rows], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("stage", [Refit(), Refit(ridge=0.0), Reswap(), Reswap(ridge=0.0), Reswap(ridge=1.0)], ids=str)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_weights_are_never_worse_than_their_mask(pattern, stage):
    for problem in hostile_targets(pattern):
        start = masks(problem)[0]
        after = stage.run(problem, start, Context())
        assert not count_reason(problem, after.keep), problem.name
        before, found = problem.error(start.keep), problem.error_of_weights(after.weights)
        assert found <= before * (1 + 1e-6) + 1e-7 * problem.offset.sum(), problem.name


@pytest.mark.parametrize("pattern", PATTERNS)
def test_swaps_under_refitted_weights_gain_and_end_at_the_refit(pattern):
    problem, _, _ = arriving(pattern, rows=4, n=24)
    start = masks(problem)[1]
    after = Reswap().run(problem, start, Context())
    before, again = (Refit().run(problem, state, Context()) for state in (start, State(keep=after.keep)))
    np.testing.assert_allclose(after.weights, again.weights, rtol=1e-4, atol=1e-5)
    assert problem.error_of_weights(after.weights) < 0.95 * problem.error_of_weights(before.weights)


def test_nothing_pruned_the_updates_answer_for_what_arrives():
    problem, Y, X = arriving("0.0", n=8)
    whole = np.ones(problem.shape, dtype=bool)
    scale = np.sqrt(problem.G.diagonal())
    for stage, ridge in (
        (SparseGPT(damping=0.1), 0.1 * np.mean(scale**2)),
        (ADMM(damping=0.1, iterations=200), 0.1 * scale**2),
    ):
        found = stage.run(problem, State(keep=whole), Context()).weights
        normal = X @ X.T / X.shape[1] + np.diag(np.broadcast_to(ridge, 8))
        expected = np.linalg.solve(normal, (Y @ X.T / X.shape[1] + problem.W * ridge).T).T
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        assert problem.error_of_weights(found) < problem.offset.sum()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_updates_are_better_than_without_the_target(pattern):
    """Weights that answer for what arrives are nearer to the target than those that answer for what is pruned alone."""
    problem, _, _ = arriving(pattern, rows=4, n=24, wrong=1.0)
    plain = replace(problem, T=None, offset=None)
    for stage in (SparseGPT(), Thanos(), ADMM(), ALPS(), Refit(), Reswap(), IHT(), FISTAPruner(), Alternate()):
        start = masks(problem)[0]
        aware, blind = (problem.error_of_weights(stage.run(one, start, Context()).weights) for one in (problem, plain))
        assert aware < blind
