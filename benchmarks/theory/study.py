"""Guaranteed beside true gaps of the relaxation and of its roundings, row by row.

    python -m benchmarks.theory.study            measures what reports/theory lacks
    python -m benchmarks.theory.page

``rows.csv``: rows whose least error ``bnb`` proves within ``SECONDS``, planted and of ``mini``; the relaxation by
in-face steps to a gap of 1e-8. ``lemma.csv``: SparseFW's mask, whole problems and layers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.first_order.study import ALPHA_ROWS, PUBLISHED, rows_of
from benchmarks.shared import command
from benchmarks.shared.csv_lines import append, read
from benchmarks.shared.threads import restart_on_one_thread
from benchmarks.theory import guarantees
from fwbench import bounds, pipeline
from fwbench.problem import Problem
from fwbench.problems import registry, synthetic
from fwbench.problems.collections import SHAPES, load
from fwbench.solvers.frank_wolfe.stage import FrankWolfe
from fwbench.solvers.rounding.pipage import NEAR
from fwbench.solvers.rounding.stage import Round
from fwbench.solvers.start.scores import Wanda
from fwbench.stage import Context, State

ROWS_CSV, LEMMA_CSV = "rows.csv", "lemma.csv"
UP_TO = 192  # inputs of problems of `mini` whose optimum is proved
SECONDS = 300.0  # of `bnb` a row
CLOSED = 1e-9  # gap at which an optimum is proved
DRAWN, BEST_OF = 1000, 20
EXACT = Context(dtype="float64")
# of the planted rows: size, condition, pattern; one thing moves at a time
SIZES, CONDITIONS, SHARES = (16, 32, 64, 128), (2.0, 10.0, 100.0, 1000.0, 10000.0), ("0.25", "0.5", "0.75")
MIDDLE = (32, 100.0, "0.5")
PLANTED_ROWS = 4


@dataclass(frozen=True)
class Row:
    """A line of the CSV: a row's errors, then what was guaranteed to be their excess over the relaxation's minimum."""

    family: str
    problem: str
    row: int
    n: int
    pattern: str
    condition: float  # of the inputs; of Q where weights are equal
    optimum: float  # infinite where it is not proved
    relaxed: float
    fractional: int
    topk: float
    drawn: float  # mean of masks drawn one by one
    best: float  # of some of them
    expectation: float
    wanda: float
    lemma: float  # of topk, before anything is solved
    nearest: float  # of topk
    spread: float  # of drawn
    blind: float  # the same, before anything is solved
    pipage: float  # of expectation
    ratio: float  # of the optimum over the relaxation's minimum, from the condition
    wanda_ratio: float  # of Wanda's error over the optimum, from the correlations' condition


@dataclass(frozen=True)
class Guarantee:
    """A problem's sums over its rows, relative to the error of SparseFW's mask without fixed weights."""

    problem: str
    rows: int
    n: int
    guaranteed: float
    proved: float  # the mask's gap to its own proved bound
    true: float  # to the optimum; infinite where that is not known
    error: float


def planted() -> Iterator[tuple[str, Problem]]:
    """Rows of weights 1 and -1, so that the condition is that of Q; and of Gaussian weights on a chain of inputs."""
    n, condition, pattern = MIDDLE
    cells = [(size, condition, pattern) for size in SIZES[:3]]
    cells += [(n, one, pattern) for one in CONDITIONS] + [(n, condition, share) for share in SHARES]
    for size, one, share in dict.fromkeys(cells):
        made = synthetic.ill_conditioned(PLANTED_ROWS, size, one, share, seed=size)
        yield "spectrum", replace(made, name=f"spectrum.n{size:03}.{one:g}.{share}", W=np.sign(made.W))
    for size, share in dict.fromkeys([(size, pattern) for size in SIZES] + [(n, share) for share in SHARES]):
        made = synthetic.correlated(PLANTED_ROWS, size, pattern=share, seed=size)
        yield "correlated", replace(made, name=f"correlated.n{size:03}.{share}")


def real() -> Iterator[Problem]:
    """Those of `mini` that count by row, without a target, up to a size."""
    for _, problem in load("mini"):
        if problem.n <= UP_TO and problem.T is None and problem.pattern.group_size(problem.shape) == problem.n:
            yield problem


def shares(problem: Problem) -> Iterator[Problem]:
    """The problem, and for those of the middle sizes also with other shares pruned."""
    yield problem
    if problem.n in (32, 64):
        for share in SHARES:
            if share != str(problem.pattern):
                yield replace(problem.with_pattern(share), name=f"{problem.name}.as.{share}")


def measured(family: str, row: Problem, number: int, conditioning: float, wanda_ratio: float) -> Row:
    """One row of a problem: solved, relaxed, rounded, and what was promised of it."""
    found = pipeline.run(row, f"wanda+swap+bnb(seconds={SECONDS})", threads=1).result
    proved = found.error is not None and found.lower_bound >= (1 - CLOSED) * found.error
    start = Wanda().run(row, State(), EXACT)
    relaxed = FrankWolfe(gap=1e-8, steps=5000).run(row, start, EXACT).relaxed
    Q, u, pruned = guarantees.quadratic(row), relaxed[0], int(row.counts[0])
    drawn = guarantees.pivotal(u, DRAWN, np.random.default_rng(number)).astype(np.float64)
    minimum = float(row.row_errors(relaxed).sum())
    rounded = [
        row.error(Round(method=method, samples=BEST_OF).run(row, State(relaxed=relaxed), Context(seed=number)).mask)
        for method in ("topk", "randomised", "expectation")
    ]
    values = (
        conditioning,
        found.error if proved else math.inf,
        minimum,
        int(((u > NEAR) & (u < 1 - NEAR)).sum()),
        rounded[0],
        float(((drawn @ Q) * drawn).sum(axis=1).mean()),
        rounded[1],
        rounded[2],
        row.error(start.mask),
        float(bounds.guaranteed_gaps(row, math.inf)[0]),
        guarantees.nearest(Q, pruned, minimum),
        guarantees.spread(Q, u),
        guarantees.blind_spread(Q, pruned),
        guarantees.expectation(Q, u),
        guarantees.ratio(guarantees.condition(Q), row.n, pruned),
        wanda_ratio,
    )
    kept = (value if isinstance(value, int) else float(f"{value:.8g}") for value in values)
    return Row(family, row.name, number, row.n, str(row.pattern), *kept)


def rows(path) -> None:
    done = {(line.problem, line.row) for line in read(path, Row)}
    cases = [*planted(), *(("mini", one) for problem in real() for one in shares(problem))]
    for family, problem in cases:
        missing = [number for number in range(problem.rows) if (problem.name, number) not in done]
        if not missing:
            continue
        of_inputs = guarantees.condition(problem.G), guarantees.wanda(problem.G)
        for number in missing:
            row = replace(problem.part([number], problem.name), meta={})
            append(path, [measured(family, row, number, *of_inputs)])
        print(problem.name, flush=True)


def lemmas(path) -> None:
    done = {line.problem for line in read(path, Guarantee)}
    known = registry.best_known()
    for problem in (*real(), *(rows_of(name, ALPHA_ROWS) for name in SHAPES)):
        if problem.name in done:
            continue
        spec = f"wanda+fw(step=open,steps={PUBLISHED},gap=0.0,variant=vanilla)+round"
        error = problem.error(pipeline.run(problem, spec, threads=1, dtype="float64").keep)
        lower = pipeline.run(problem, "fw(convexify=shared)", threads=1).result.lower_bound
        entry = known.get(problem.hash)
        best = entry.lower if entry is not None and entry.gap is not None and entry.gap < CLOSED else None
        values = (
            bounds.guaranteed_gaps(problem, PUBLISHED).sum() / error,
            1 - lower / error,
            math.inf if best is None else 1 - best / error,
            error,
        )
        append(path, [Guarantee(problem.name, *problem.shape, *(float(f"{value:.6g}") for value in values))])
        print(problem.name, flush=True)


def main() -> None:
    out = command.study(__spec__, __doc__).parse_args().out
    restart_on_one_thread()
    rows(out / ROWS_CSV)
    lemmas(out / LEMMA_CSV)


if __name__ == "__main__":
    main()
