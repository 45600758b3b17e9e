"""Every stage on data that no unit fits: it ends within its limit, with a mask of the right count and true bounds.

Each spec runs in a worker process that is killed where it hangs, as users' runs are.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
import pytest
from brute import best_mask
from hypothesis import given, settings
from hypothesis import strategies as st
from layers import extreme_layers, random_layer

from fwbench import contract, isolate, pipeline, spec
from fwbench.isolate import Answer, Limits, Worker
from fwbench.judge import count_reason
from fwbench.problem import Problem
from fwbench.result import Proof, Status

SECONDS, GRACE = 2.0, 30.0  # the limit that a stage knows of; on a busy machine it may end long after it
FAST = """
magnitude wanda ria random greedy
fw fw(variant=vanilla,steps=100) fw(variant=away,steps=100) fw(variant=pairwise,steps=100) fw(variant=bcg,steps=100)
fw(variant=bpcg,steps=100) fw(variant=dicg,steps=100) fw(variant=vanilla,step=open,steps=50,rounded=True)
fw(variant=vanilla,step=short,steps=50) fw(variant=vanilla,step=adaptive,steps=50) fw(alpha=0.9,steps=50)
fw(steps=100,convexify=shared) fw(steps=100,convexify=row) fw(steps=50)+round(method=randomised)
fw(steps=50)+round(method=expectation) push push(variant=inface) swap random+swap(enough=0.5) random+safeguard
random+tabu(iterations=500) random+anneal(rounds=2,sweeps=30) random+ils(rounds=5)
refit reswap reswap(ridge=0) sparsegpt sparsegpt(damping=0) admm admm(damping=0) bnb bnb(gap=0.05,subtree=10)
qp qp(backend=piqp) bound(kind=shared) bound(kind=shor) bound(kind=dnn,iterations=10) bound(kind=best,iterations=2)
bound(kind=mccormick,iterations=10,rows=2) bound(kind=triangles,iterations=20) bound(kind=pentagons,iterations=20)
""".split()
SLOW = """
gurobi gurobi(convexify=shared) gurobi(convexify=row) scip scip(convexify=shared) scip(convexify=row) fast best
qp(backend=cvxpy) qp(backend=highs) qp(backend=osqp) qp(backend=proxqp) qp(backend=scs)
fw(variant=away,step=adaptive,steps=50) fw(variant=inface,step=short,steps=50) bound
""".split()


def probe(problem: Problem, text: str) -> pipeline.Outcome:
    """In the worker; what numpy warns of is an error, as it is in tests."""
    line = pipeline.resolve(text)
    pipeline.warm_up(line, random_layer("0.5", n=8))
    isolate.started()
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        return pipeline.run(problem, line, seed=1, threads=1, time_limit=SECONDS)


@pytest.fixture(scope="module")
def workers() -> Iterator[list[Worker]]:
    """The worker at hand: a new one takes the place of one that died."""
    held: list[Worker] = []
    yield held
    for worker in held:
        worker.close()


def outcome_of(workers: list[Worker], problem: Problem, text: str) -> pipeline.Outcome:
    if not workers or not workers[-1].alive:
        workers.append(Worker([("fwbench.pipeline:load_solvers", ())], threads=1))
    limits = Limits(SECONDS, GRACE, setup_seconds=300)  # kernels may have to be compiled first
    reply = contract._await(workers[-1], (f"{__name__}:probe", problem, text), limits)
    assert isinstance(reply, Answer), (problem.name, text, reply.reason)
    return reply.value


def rounding(problem: Problem, keep: np.ndarray) -> float:
    """What float64 cannot tell of a mask's error: a part of its terms, all taken positive."""
    change = np.abs(problem.W * ~keep).astype(np.float64)
    return 1e-13 * float(((change @ np.abs(problem.G)) * change).sum())


def rows_of(problem: Problem) -> list[Problem]:
    if not problem.pattern.separable:
        return [problem]
    counts = problem.pattern.counts(problem.shape)
    kind = problem.pattern if problem.pattern.group_size(problem.shape) < problem.n else counts[:1]
    return [Problem(problem.name, w[None], problem.G, kind) for w in problem.W]


def assert_honest(problem: Problem, outcome: pipeline.Outcome) -> None:
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
    assert row.error == pytest.approx(problem.error(outcome.keep), rel=1e-9, abs=slack), where
    assert row.lower_bound is None or row.lower_bound <= optimum + slack, (where, row.lower_bound, optimum)


def run_all(workers: list[Worker], text: str, pattern: str) -> None:
    n = 4 if pattern.startswith("unstructured") else 8
    for problem in extreme_layers(pattern, n=n):
        assert_honest(problem, outcome_of(workers, problem, text))


@pytest.mark.parametrize("text", FAST)
def test_every_stage_ends_with_a_mask_and_true_bounds(workers, text):
    run_all(workers, text, "0.5")


@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["0.5", "2:4", "unstructured:0.4"])
@pytest.mark.parametrize("text", FAST + SLOW)
def test_the_same_in_every_pattern(workers, text, pattern):
    run_all(workers, text, pattern)


def test_no_stage_is_left_out():
    stages = {stage.name for text in FAST + SLOW for stage in pipeline.resolve(text).stages}
    assert stages == set(pipeline.load_solvers())
    assert {spec.parse(text).stages[-1].name for text in FAST} >= stages - {"gurobi", "scip"}
