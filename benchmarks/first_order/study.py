"""Frank-Wolfe beside its first-order rivals; what ``alpha`` is worth; SparseFW's guarantee beside the true gap.

    python -m benchmarks.first_order.study            measures what reports/first_order lacks
    python -m benchmarks.first_order.page

One thread; seconds are the processor's. ``curves.csv``: the relaxation from Wanda's mask in float64, each method until
its gap is 1e-6 or its steps are spent. ``alpha.csv``: SparseFW as published on rows of block 7, by the
part that is fixed and by what ranks it. ``lemma.csv``: its theory's guarantee beside the gaps of its masks.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.shared import command
from benchmarks.shared.csv_lines import append, read
from benchmarks.shared.samples import sample
from benchmarks.shared.threads import one_thread, restart_on_one_thread
from fwbench import bounds, pipeline
from fwbench.problem import Problem
from fwbench.problems import registry
from fwbench.problems.collections import SHAPES, load, one
from fwbench.result import TracePoint
from fwbench.stage import Context, State

CURVES_CSV, ALPHA_CSV, LEMMA_CSV = "curves.csv", "alpha.csv", "lemma.csv"
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
ALPHAS = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
RANKS = ("wanda", "ria")
ALPHA_ROWS = 8
PUBLISHED = 2000  # iterations
LEMMA_UP_TO = 192  # inputs of problems of `mini` whose optimum is proved


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
    rows: int
    n: int
    rank: str
    alpha: float
    error: float  # as multiples of Wanda's
    relaxed: float
    swapped: float


@dataclass(frozen=True)
class Guarantee:
    """A layer's sums over its rows, relative to the error of SparseFW's mask without fixed weights."""

    problem: str
    rows: int
    n: int
    guaranteed: float
    proved: float  # the mask's gap to its own proved bound
    true: float  # to the optimum; infinite where that is not known
    error: float


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


def rows_of(name: str, count: int) -> Problem:
    """Some rows of a layer of the block."""
    return sample(one(f"smollm2/{BLOCK:02}.{name}")[1], count).with_pattern(PATTERN)


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
    done = {(line.layer, line.rank, line.alpha) for line in read(path, Alpha)}
    for name in SHAPES:
        problem = rows_of(name, ALPHA_ROWS)
        wanda = problem.error(begun(problem).mask)
        for rank in RANKS:
            for alpha in ALPHAS:
                if (name, rank, alpha) in done:
                    continue
                spec = f"{rank}+fw(alpha={alpha},fixed={rank},step=open,steps={PUBLISHED},variant=vanilla)+round"
                found = pipeline.run(problem, spec, threads=1)
                swapped = pipeline.resolve("wanda+swap").stages[1].run(problem, State(keep=found.keep), Context()).mask
                errors = problem.error(found.keep), found.result.relaxed_error, problem.error(swapped)
                line = Alpha(name, *problem.shape, rank, alpha, *(digits(float(error) / wanda) for error in errors))
                append(path, [line])
                print(line, flush=True)


def guarantees(path) -> None:
    done = {line.problem for line in read(path, Guarantee)}
    known = registry.best_known()
    small = (problem for _, problem in load("mini") if problem.n <= LEMMA_UP_TO and problem.T is None)
    by_row = (problem for problem in small if problem.pattern.group_size(problem.shape) == problem.n)
    for problem in (*by_row, *(rows_of(name, ALPHA_ROWS) for name in SHAPES)):
        if problem.name in done:
            continue
        spec = f"wanda+fw(step=open,steps={PUBLISHED},gap=0.0,variant=vanilla)+round"
        error = problem.error(pipeline.run(problem, spec, threads=1, dtype="float64").keep)
        lower = pipeline.run(problem, "fw(convexify=shared)", threads=1).result.lower_bound
        entry = known.get(problem.hash)
        best = entry.lower if entry is not None and entry.gap is not None and entry.gap < 1e-9 else None
        values = (
            bounds.guaranteed_gaps(problem, PUBLISHED).sum() / error,
            1 - lower / error,
            float("inf") if best is None else 1 - best / error,
            error,
        )
        line = Guarantee(problem.name, *problem.shape, *(digits(float(value)) for value in values))
        append(path, [line])
        print(line, flush=True)


def main() -> None:
    out = command.study(__spec__, __doc__).parse_args().out
    restart_on_one_thread()
    one_thread()
    curves(out / CURVES_CSV)
    alphas(out / ALPHA_CSV)
    guarantees(out / LEMMA_CSV)


if __name__ == "__main__":
    main()
