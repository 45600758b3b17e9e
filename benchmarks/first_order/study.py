"""Frank-Wolfe beside its first-order rivals; what ``alpha`` is worth.

    python -m benchmarks.first_order.study            measures what reports/first_order lacks
    python -m benchmarks.first_order.page

One thread; seconds are the processor's. ``curves.csv``: the relaxation from Wanda's mask in float64, each method until
its gap is 1e-6 or its steps are spent. ``alpha.csv``: SparseFW as published on rows of block 7, by the
pattern, by the part that is fixed and by what ranks it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from benchmarks.shared import command
from benchmarks.shared.csv_lines import append, read
from benchmarks.shared.samples import sample
from benchmarks.shared.threads import one_thread, restart_on_one_thread
from fwbench import pipeline
from fwbench.problem import Problem
from fwbench.problems.collections import SHAPES, one
from fwbench.result import TracePoint
from fwbench.stage import Context, State

CURVES_CSV, ALPHA_CSV = "curves.csv", "alpha.csv"
PROBLEMS = ("mini/n256.gate_proj.top.0.5", "mini/n384.up_proj.random.0.5", "mini/n384.down_proj.top.0.5")
REAL, ROWS, PATTERN, BLOCK = "q_proj", 32, "0.6", 7
END, STEPS = 1e-6, 1000
METHODS = {  # what the page calls it: the stage
    "fw, vanilla": "fw(variant=vanilla)",
    "fw, vanilla, open loop": "fw(variant=vanilla,step=open)",
    "fw, away": "fw(variant=away)",
    "fw, pairwise": "fw(variant=pairwise)",
    "fw, in-face": "fw",
    "fw, in-face, averaged": "fw(average=polyak)",
    "fw, in-face, lookahead": "fw(average=lookahead)",
    "mirror": "mirror",
    "mirror, 4 blocks at random": "mirror(blocks=4)",
    "projected gradient": "pgd(momentum=False)",
    "FISTA": "pgd",
    "PDHG": "pdhg",
}
ALPHAS = {  # by pattern; in groups that keep two weights no others fix other numbers of them
    "0.5": (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0),
    "0.6": (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0),
    "2:4": (0.0, 0.5, 1.0),
}
RANKS = ("wanda", "ria")
ALPHA_ROWS = 8
PUBLISHED = 2000  # iterations


@dataclass(frozen=True)
class CurvePoint:
    """A line of the CSV: one look at a run."""

    problem: str
    rows: int
    n: int
    method: str
    iterations: int
    products: float  # with G, of all rows
    seconds: float
    primal: float  # of the error above the relaxation's minimum, relative to it
    proved: float  # of the proved bound below it


@dataclass(frozen=True)
class Alpha:
    """A mask of SparseFW."""

    layer: str
    pattern: str
    rows: int
    n: int
    rank: str
    alpha: float
    error: float  # as multiples of Wanda's
    relaxed: float
    swapped: float


@dataclass(frozen=True)
class Clock(Context):
    """A context that tells the processor's time; ``started`` is a time of that clock."""

    def seconds(self) -> float:
        return time.process_time() - self.started


def digits(value: float) -> float:
    """The six of them that the CSV keeps."""
    return float(f"{value:.6g}")


def convergence_problems() -> Iterator[Problem]:
    for selector in PROBLEMS:
        yield one(selector)[1]
    yield rows_of(REAL, ROWS)


def rows_of(name: str, count: int, pattern: str = PATTERN) -> Problem:
    """Some rows of a layer of the block."""
    return sample(one(f"smollm2/{BLOCK:02}.{name}")[1], count).with_pattern(pattern)


def begun(problem: Problem) -> State:
    return pipeline.resolve("wanda").stages[0].run(problem, State(), Context())


def curve(problem: Problem, text: str) -> tuple[Sequence[TracePoint], float]:
    """The looks at a run, and its products an iteration."""
    stage = pipeline.resolve(f"wanda+{text}").stages[1]
    stage = replace(stage, steps=STEPS, gap=END)  # type: ignore[call-arg]
    after = stage.run(problem, begun(problem), Clock(dtype="float64", started=time.process_time()))
    return after.trace, after.counters["gram_products"] / max(after.counters["iterations"], 1)


def minimum(problem: Problem) -> float:
    """Of the relaxation: the best that in-face steps reach."""
    stage = pipeline.resolve("wanda+fw(gap=1e-9,steps=1000)").stages[1]
    return float(problem.row_errors(stage.run(problem, begun(problem), Context(dtype="float64")).relaxed).sum())


def thin(trace: Sequence[TracePoint]) -> list[TracePoint]:
    """Looks at iterations in geometric progression, and the last."""
    kept = {0, trace[-1].iterations} | set(10 * np.geomspace(1, STEPS / 10, 60).round().astype(int))
    return [moment for moment in trace if moment.iterations in kept]


def curves(path) -> None:
    done = {(line.problem, line.method) for line in read(path, CurvePoint)}
    warm = one("mini/n064.v_proj.random.0.5")[1]
    for problem in convergence_problems():
        missing = [name for name in METHODS if (problem.name, name) not in done]
        optimum = minimum(problem) if missing else 0.0
        for name in missing:
            curve(warm, METHODS[name])  # compiles
            trace, each = curve(problem, METHODS[name])
            head = (problem.name, *problem.shape, name)
            lines = []
            for moment in thin(trace):
                primal, proved = (moment.relaxed or 0) / optimum - 1, 1 - (moment.lower or 0) / optimum
                products = each * (moment.iterations or 0)
                values = (products, moment.seconds, primal, proved)
                lines.append(CurvePoint(*head, moment.iterations or 0, *map(digits, values)))
            append(path, lines)
            print(*head, lines[-1].products, lines[-1].seconds, lines[-1].primal, lines[-1].proved, flush=True)


def alphas(path) -> None:
    done = {(line.layer, line.pattern, line.rank, line.alpha) for line in read(path, Alpha)}
    for name, pattern, rank in product(SHAPES, ALPHAS, RANKS):
        missing = [alpha for alpha in ALPHAS[pattern] if (name, pattern, rank, alpha) not in done]
        if not missing:
            continue
        problem = rows_of(name, ALPHA_ROWS, pattern)
        wanda = problem.error(begun(problem).mask)
        for alpha in missing:
            spec = f"{rank}+fw(alpha={alpha},fixed={rank},step=open,steps={PUBLISHED},variant=vanilla)+round"
            found = pipeline.run(problem, spec, threads=1)
            swapped = pipeline.resolve("wanda+swap").stages[1].run(problem, State(keep=found.keep), Context()).mask
            errors = problem.error(found.keep), found.result.relaxed_error, problem.error(swapped)
            head = (name, pattern, *problem.shape, rank, alpha)
            append(path, [Alpha(*head, *(digits(float(error) / wanda) for error in errors))])
            print(*head, flush=True)


def main() -> None:
    out = command.study(__spec__, __doc__).parse_args().out
    restart_on_one_thread()
    one_thread()
    curves(out / CURVES_CSV)
    alphas(out / ALPHA_CSV)


if __name__ == "__main__":
    main()
