"""Every stage on data that no unit fits: it ends within its limit, with a mask of the right count and true bounds.

Each spec runs in a worker process that is killed where it hangs, as users' runs are.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from brute import best_mask
from hypothesis import given, settings
from hypothesis import strategies as st
from layers import extreme_layers, random_layer

from fwbench import bounds, child, contract, pipeline, spec, verify
from fwbench.isolate import Limits, Reply, Worker
from fwbench.judge import count_reason
from fwbench.problem import Problem
from fwbench.result import Proof, Status
from fwbench.solvers.bounds.batch import Device, path_of_batches
from fwbench.solvers.external.qp import BACKENDS
from fwbench.solvers.frank_wolfe import momentum
from fwbench.solvers.frank_wolfe.loop_torch import minimise_torch
from fwbench.solvers.frank_wolfe.objective import LoopOptions, Objective
from fwbench.solvers.frank_wolfe.rules import DIRECTION_RULES, STEP_RULES
from fwbench.solvers.local_search import swap_torch
from fwbench.solvers.semidefinite.ladder import climb
from fwbench.solvers.semidefinite.row import RowForm, row_certificate
from fwbench.stage import Context

SECONDS, GRACE = 2.0, 30.0  # the limit that a stage knows of; on a busy machine it may end long after it
VARIANTS = [f"fw(variant={name},steps=100)" for name in DIRECTION_RULES]
STEPS = [f"fw(variant=vanilla,step={name},steps=50,rounded=True)" for name in STEP_RULES]
FAST = [
    *("magnitude", "wanda", "ria", "random", "greedy", *VARIANTS, *STEPS, "fw(alpha=0.9,steps=50)"),
    *("fw(steps=100,convexify=shared)", "fw(steps=100,convexify=row)", "push", "push(variant=inface)", "splitting"),
    *("mirror(steps=50)", "mirror(steps=50,blocks=2)", "pgd(steps=50)", "pdhg(steps=50)"),
    *("fw(steps=50,average=polyak)", "fw(steps=50,average=lookahead)"),
    *("bernoulli(steps=50)", "momentum(steps=50)", "unrolled", "random+dwave(reads=2,sweeps=5)", "learned_bound"),
    *("fw(steps=50)+round(method=randomised)", "fw(steps=50)+round(method=expectation)", "qp", "qp(backend=piqp)"),
    *("swap", "random+swap(enough=0.5)", "random+safeguard", "random+tabu(iterations=500)", "random+resplit"),
    "random+ils(rounds=5)",
    *("random+dsnot", "random+splice", "thanos", "thanos(damping=0)", "alps", "alps(ridge=0)", "iht", "fistapruner"),
    *("sparsegpt(order=diagonal)", "sparsegpt(order=loss,spread=0)", "alternate"),
    *("random+anneal(rounds=2,sweeps=30)", "refit", "reswap", "reswap(ridge=0)", "sparsegpt", "sparsegpt(damping=0)"),
    *("admm", "admm(damping=0)", "bnb", "bnb(gap=0.05,subtree=10)", "bound(kind=shared)", "bound(kind=shor)"),
    *("bound(kind=dnn,iterations=10)", "bound(kind=mccormick,iterations=10,rows=2)", "bound(kind=best,iterations=2)"),
]
SLOW = [
    *(f"{name}(convexify={kind})" for name in ("gurobi", "scip") for kind in ("none", "shared", "row")),
    *(f"qp(backend={name})" for name in BACKENDS),
    "random+dwave(method=sa,reads=2,sweeps=5)",
    *("fast", "best", "fw(variant=away,step=adaptive,steps=50)", "fw(variant=inface,step=short,steps=50)", "bound"),
    *("bound(kind=triangles,iterations=20)", "bound(kind=pentagons,iterations=20)"),
]


def probe(problem: Problem, text: str) -> pipeline.Answer:
    """In the worker; what numpy warns of is an error, as it is in tests."""
    solver = pipeline.resolve(text)
    pipeline.warm_up(pipeline.Run(random_layer("0.5", n=8), solver))
    child.started()
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        return pipeline.run(problem, solver, seed=1, threads=1, time_limit=SECONDS)


@pytest.fixture(scope="module")
def workers() -> Iterator[list[Worker]]:
    """The worker at hand: a new one takes the place of one that died."""
    held: list[Worker] = []
    yield held
    for worker in held:
        worker.close()


def outcome_of(workers: list[Worker], problem: Problem, text: str) -> pipeline.Answer:
    if not workers or not workers[-1].alive:
        workers.append(Worker([("fwbench.pipeline:load_solvers", ())], threads=1))
    limits = Limits(SECONDS, GRACE, setup_seconds=300)  # kernels may have to be compiled first
    reply = contract._await(workers[-1], (f"{__name__}:probe", problem, text), limits)
    assert isinstance(reply, Reply), (problem.name, text, reply.reason)
    return reply.value


def rounding(problem: Problem, keep: np.ndarray) -> float:
    """What float64 cannot tell of a mask's error: a part of its terms, all taken positive."""
    change = np.abs(problem.W * ~keep).astype(np.float64)
    return 1e-13 * float(((change @ np.abs(problem.G)) * change).sum())


def rows_of(problem: Problem) -> list[Problem]:
    if not problem.pattern.separable:
        return [problem]
    counts = problem.counts
    kind = problem.pattern if problem.pattern.group_size(problem.shape) < problem.n else counts[:1]
    return [Problem(problem.name, w[None], problem.G, kind) for w in problem.W]


def assert_honest(problem: Problem, outcome: pipeline.Answer) -> None:
    """A feasible mask, judged; no bound above the optimum, none refuted, nothing called optimal that is not."""
    row = outcome.result
    where = f"{problem.name}, {problem.pattern}, {row.solver}: {row.status} {row.reason}"
    if row.status is Status.SKIPPED:
        assert row.reason, where
        return
    assert row.solved, where
    assert not count_reason(problem, outcome.keep), where
    assert row.proof is not Proof.REFUTED, where
    if row.updates_weights:
        return
    size = 1 if problem.pattern.separable else problem.rows
    optimum = slack = 0.0
    for number, own in enumerate(rows_of(problem)):
        best, mask = best_mask(own)
        keep = outcome.keep[number * size : (number + 1) * size]
        room = 1e-9 * best + rounding(own, mask) + rounding(own, keep)
        assert own.error(keep) >= best - room, (where, number)
        if row.status is Status.OPTIMAL:
            assert own.error(keep) <= best + room, (where, number)
        if outcome.row_bounds:
            assert outcome.row_bounds[number] <= best + 1e-9 * best + rounding(own, mask), (where, number)
        optimum, slack = optimum + best, slack + room
    change = (problem.W * ~outcome.keep).astype(np.longdouble)
    assert row.error == pytest.approx(float(((change @ problem.G) * change).sum()), rel=1e-9, abs=slack), where
    assert row.lower_bound is None or row.lower_bound <= optimum + slack, (where, row.lower_bound, optimum)


def layers(pattern: str) -> list[Problem]:
    return extreme_layers(pattern, n=4 if pattern.startswith("unstructured") else 8)


def run_all(workers: list[Worker], text: str, problems: list[Problem]) -> None:
    for problem in problems:
        assert_honest(problem, outcome_of(workers, problem, text))


@pytest.mark.parametrize("text", FAST)
def test_every_stage_ends_with_a_mask_and_true_bounds(workers, text):
    run_all(workers, text, layers("0.5"))


@pytest.mark.parametrize("pattern", ["2:4", "unstructured:0.4"])
@pytest.mark.parametrize("text", FAST)
def test_so_it_does_in_other_patterns(workers, text, pattern):
    run_all(
        workers, text, [problem for problem in layers(pattern) if "rows 1" in problem.name or "weights" in problem.name]
    )


@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["0.5", "2:4", "unstructured:0.4"])
@pytest.mark.parametrize("text", FAST + SLOW)
def test_the_same_in_every_pattern(workers, text, pattern):
    run_all(workers, text, layers(pattern))


@pytest.mark.parametrize("scale", [1e-30, 1e30])
@pytest.mark.parametrize("pattern", ["0.5", "2:4"])
def test_a_row_of_another_size_costs_the_others_nothing(workers, pattern, scale):
    """``W[1] *= 1e-30`` of three rows of 16, as weight decay leaves it: ``bnb`` never ended, nor did its limit."""
    plain = random_layer(pattern, rows=3, n=16)
    problem = Problem("one row differs", plain.W * np.array([[1], [scale], [1]]), plain.G, pattern)
    answer = outcome_of(workers, problem, "bnb")
    assert (answer.result.status, answer.result.proof) == (Status.OPTIMAL, Proof.VERIFIED), answer.result.reason
    for row, own in enumerate(rows_of(problem)):
        best, _ = best_mask(own)
        assert own.error(answer.keep[row : row + 1]) == pytest.approx(best, rel=1e-9), row
        assert answer.row_bounds[row] == pytest.approx(best, rel=1e-9), row


def test_no_stage_is_left_out():
    stages = {stage.name for text in FAST + SLOW for stage in pipeline.resolve(text).stages}
    known = pipeline.load_solvers().items()
    assert stages == {name for name, kind in known if kind.__module__.startswith("fwbench.solvers.")}
    assert {spec.parse(text).stages[-1].name for text in FAST} >= stages - {"gurobi", "scip"}


# --- a power of two rounds nothing -----------------------------------------------------------------------------------

SCALED = [
    *("wanda+swap", "greedy", "fw", "fw(variant=vanilla,steps=50)", "fw(variant=pairwise,steps=50)", "push"),
    *("fw(steps=50,convexify=row)", "random+tabu(iterations=200)", "random+anneal(rounds=1,sweeps=30)", "bnb"),
    *("random+ils(rounds=3)", "refit", "reswap", "sparsegpt", "admm", "bound(kind=shor)", "qp"),
    *("random+dsnot", "random+splice", "thanos", "alps", "iht", "alternate"),
]


@pytest.mark.parametrize("text", SCALED)
@settings(max_examples=8)
@given(
    rows=st.lists(st.integers(-95, 95), min_size=3, max_size=3), inputs=st.integers(-45, 45), seed=st.integers(0, 99)
)
def test_scales_change_no_mask(text, rows, inputs, seed):
    """Rows and inputs times powers of two: the same masks, errors and bounds times their squares."""
    plain = random_layer("0.5", rows=3, n=12, seed=seed)
    scale = np.ldexp(1.0, rows)
    scaled = Problem("scaled", plain.W * scale[:, None], plain.G * 4.0**inputs, "0.5")
    before, after = (pipeline.run(problem, pipeline.resolve(text), seed=seed, threads=1) for problem in (plain, scaled))
    assert after.result.solved, after.result.reason
    assert np.array_equal(before.keep, after.keep)
    if before.weights is not None:
        assert after.weights == pytest.approx(before.weights * scale[:, None], rel=1e-6)
    unit = scale**2 * 4.0**inputs
    if before.row_bounds:
        assert after.row_bounds == pytest.approx(unit * before.row_bounds, rel=1e-6)
    assert (after.result.status, after.result.proof) == (before.result.status, before.result.proof)


# --- what no spec leads to -------------------------------------------------------------------------------------------


EACH_PATTERN = pytest.mark.parametrize("pattern", ["0.5", "2:4", "unstructured:0.5"])


def assert_in_polytope(problem: Problem, u: torch.Tensor) -> None:
    """Half of each group, to float32's rounding."""
    assert bool(((u >= 0) & (u <= 1)).all()), problem.name
    sums = problem.pattern.groups(u.numpy()).sum(axis=1)
    assert sums == pytest.approx(problem.counts, abs=1e-3), problem.name


@EACH_PATTERN
@pytest.mark.parametrize("variant", ["vanilla", "dicg"])
@pytest.mark.parametrize("step", STEP_RULES)
def test_the_loop_for_a_device(variant, step, pattern):
    """In torch: a point of the polytope, and bounds of the problem's own size."""
    for problem in layers(pattern):
        layer, start = Objective.of(problem, Context(), None), torch.full(problem.shape, 0.5)
        run = minimise_torch(layer, start, LoopOptions(steps=30, variant=variant, step=step, rounded=True), Context())
        assert_in_polytope(problem, run.u)
        optimum = sum(best_mask(own)[0] for own in rows_of(problem))
        room = rounding(problem, np.zeros(problem.shape, bool)) + 1e-5 * problem.total  # of float32
        assert all(moment.lower <= optimum + room for moment in run.trace), problem.name
        assert run.trace[0].upper >= optimum - room, problem.name


@EACH_PATTERN
@pytest.mark.parametrize("transport", [False, True])
def test_momentum(transport, pattern):
    for problem in layers(pattern):
        W, G = torch.tensor(problem.W), torch.tensor(problem.G)
        for u in momentum.iterates(W, [G] * 10, problem.pattern, middle(W), momentum.Averaging(transport=transport)):
            assert_in_polytope(problem, u)


def middle(W: torch.Tensor) -> torch.Tensor:
    return torch.full_like(W, 0.5)


@pytest.mark.parametrize("pattern", ["0.5", "2:4"])
def test_swaps_for_a_device(pattern):
    for problem in layers(pattern):
        start = ~problem.pattern.prune(np.random.default_rng(0).random(problem.shape))
        pruned, group = ~start, problem.pattern.group_size(problem.shape)
        swap_torch.descend(problem.W, problem.G, pruned, group, 10**6, 1.0, "cpu", lambda: False)
        assert not count_reason(problem, ~pruned), problem.name
        assert problem.error(~pruned) <= problem.error(start) * (1 + 1e-9) + rounding(problem, start), problem.name


@pytest.mark.parametrize("pattern", ["0.5", "2:4"])
@pytest.mark.parametrize("kind", ["shor", "dnn", "mccormick"])
def test_bounds_in_batches(kind, pattern):
    for problem in layers(pattern):
        rows = [row for row in range(problem.rows) if RowForm.of(problem, row).free]
        if not rows:
            continue
        shared = bounds.certificate(problem, np.full(problem.shape, 0.5))
        forms = [RowForm.of(problem, row) for row in rows]
        found = climb(path_of_batches(kind, 5), forms, [None] * len(rows), Device("cpu"))
        proofs = {row: one.proof for row, one in zip(rows, found, strict=True)}
        checked = verify.check(problem, row_certificate(shared, proofs, 0.0, "batch"))
        assert checked.ok, (problem.name, checked.reason)
        for row, own in enumerate(rows_of(problem)):
            best, mask = best_mask(own)
            assert checked.rows[row] <= best * (1 + 1e-9) + rounding(own, mask), (problem.name, row)
