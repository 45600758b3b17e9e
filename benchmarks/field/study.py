"""Every method beside all others: masks, weight updates, and one common refit, on a block of two real models.

    FWBENCH_ACCEPT=gemma python -m benchmarks.field.study bounds    Shor's bound of the first rows of each layer
    FWBENCH_ACCEPT=gemma python -m benchmarks.field.study methods   all methods on the sampled rows of each layer
    python -m benchmarks.field.study memory                         what each method adds at its peak, on one layer
    python -m benchmarks.field.page

One thread, one seed; CPU seconds of the whole pipeline, judging included, after a run on a small problem. Lines
that are missing are added to the CSV files; the refit after a method is timed apart.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from benchmarks.field.methods import METHODS, OTHER, REGROUPED, Method
from benchmarks.shared import command
from benchmarks.shared.csv_lines import append, read
from benchmarks.shared.memory import resident
from benchmarks.shared.samples import PATTERNS, one_row, sampled
from benchmarks.shared.threads import restart_on_one_thread
from fwbench import pipeline
from fwbench.pipeline import Answer, Solver
from fwbench.problem import Problem
from fwbench.problems.collections import LAYERS, one
from fwbench.solvers.semidefinite.ladder import row_bound
from fwbench.solvers.semidefinite.row import RowForm
from fwbench.solvers.start.channels import channel_order
from fwbench.solvers.start.scores import ria_score
from fwbench.stage import Context, Stage, State

METHODS_CSV, BOUNDS_CSV, MEMORY_CSV = "methods.csv", "bounds.csv", "memory.csv"
BLOCKS = {"smollm2": 7, "gemma3": 4}  # at like depths
ROWS, BOUNDED, BOUND = 24, 4, "shor"
FIRST = "0.6"  # the pattern that is measured first, and the only one of memory
OTHER_PATTERNS = "4:8,6:8,8:16"
MEASURED = ("smollm2", "down_proj")  # model and layer of memory


@dataclass(frozen=True)
class Line:
    """One method on the sampled rows of one layer; ratios are to the error of Wanda's mask.

    ``row_errors``: of the mask on the first rows, weights as they were; empty where the inputs are in another order.
    ``refit_ratio``: of the method's mask after the common refit, which took ``refit_seconds`` more.
    """

    model: str
    layer: str
    pattern: str
    rows: int
    spec: str
    error: float
    ratio: float
    row_errors: str
    cpu_seconds: float
    refit_ratio: float
    refit_seconds: float
    solver: str
    hash: str  # of the problem, shortened

    @property
    def problem(self) -> tuple[str, str, str]:
        return self.model, self.layer, self.pattern


@dataclass(frozen=True)
class Bound:
    """A lower bound of one row's error: no mask has less, weights as they were."""

    model: str
    layer: str
    pattern: str
    row: int  # among the sampled ones
    lower: float
    converged: bool
    cpu_seconds: float


@dataclass(frozen=True)
class Peak:
    """What a method adds to a process's memory at its peak, and the size of the layer's Gram matrix, bytes."""

    spec: str
    rows: int
    n: int
    peak: int
    gram: int


@cache
def refit() -> Stage:
    """The common refit of every mask."""
    return pipeline.resolve("wanda+refit").stages[-1]


def problems(model: str, pattern: str) -> Iterator[tuple[str, Problem]]:
    """The sampled rows of each layer of a model's block, by the layer's name."""
    found = sampled([str(BLOCKS[model])], [pattern], LAYERS, ROWS, model)
    return zip(LAYERS, found, strict=True)


def moved(problem: Problem) -> Problem:
    """The problem with its inputs in the order that RIA's scores of the whole layer choose."""
    model, block, layer = problem.name.split(".")[:3]
    _, whole = one(f"{model}/{block}.{layer}")
    order = channel_order(whole.with_pattern(problem.pattern), ria_score(whole.W, whole.G))
    return problem.permuted(order)


def measured(problem: Problem, method: Method) -> tuple[float, float, str, float, float, float, str]:
    """A line's numbers, from ``error`` to ``solver``.

    Raises:
        SystemExit: the method has no answer.
    """
    solver = pipeline.resolve(method.plain)
    warm_up(problem, solver)
    wanda = pipeline.wanda_error(problem)
    began = time.process_time()
    posed = moved(problem) if method.spec.endswith(REGROUPED) else problem
    answer = pipeline.run(posed, solver, threads=1)
    seconds = time.process_time() - began
    if answer.error is None or answer.keep is None or not answer.result.solved:
        raise SystemExit(f"{problem.name}: {method.spec} failed ({answer.result.reason})")
    began = time.process_time()
    weights = refit().run(posed, State(keep=answer.keep), Context()).weights
    refitted = time.process_time() - began
    if weights is None:
        raise SystemExit(f"{problem.name}: no refit after {method.spec}")
    first = posed.mask_errors(answer.keep)[:BOUNDED] if posed is problem else ()
    errors = " ".join(f"{error:.9g}" for error in first)
    ratio = posed.error_of_weights(weights) / wanda
    return answer.error, answer.error / wanda, errors, seconds, ratio, refitted, solver.full


def warm_up(problem: Problem, solver: Solver) -> None:
    """Compile what a method and the refit need, on a problem of few weights."""
    pipeline.warm_up(pipeline.Run(problem, solver))
    pipeline.warm_up(pipeline.Run(problem, pipeline.resolve("wanda+refit")))


def chosen(method: Method, pattern: str) -> bool:
    """Whether a method is measured there."""
    if method.spec.endswith(REGROUPED) and ":" not in pattern:
        return False
    return pattern in PATTERNS.split(",") or method.spec in OTHER


def methods(path: Path, model: str, pattern: str, wanted: Sequence[Method]) -> None:
    """Method after method on all layers."""
    known = {(line.problem, line.spec) for line in read(path, Line)}
    layers = list(problems(model, pattern))
    for method in wanted:
        for layer, problem in layers:
            where = model, layer, pattern
            if (where, method.spec) in known or not chosen(method, pattern):
                continue
            error, ratio, rows, seconds, after, more, solver = measured(problem, method)
            found = (error, ratio, rows, seconds, after, more, solver, problem.hash[:12])
            append(path, [Line(*where, problem.rows, method.spec, *found)])
        print(model, pattern, method.spec, f"{time.process_time():.0f} s", flush=True)


def bounds(path: Path, model: str, pattern: str) -> None:
    """Of the first rows of each layer."""
    known = {(line.model, line.layer, line.pattern, line.row) for line in read(path, Bound)}
    for layer, problem in problems(model, pattern):
        for row in range(BOUNDED):
            if (model, layer, pattern, row) in known:
                continue
            began = time.process_time()
            found = row_bound(BOUND, RowForm.of(one_row(problem, row, problem.n), 0), None)
            seconds = time.process_time() - began
            append(path, [Bound(model, layer, pattern, row, found.proof.bound, found.converged, seconds)])
        print(model, pattern, layer, f"{time.process_time():.0f} s", flush=True)


def peak(problem: Problem, spec: str) -> int:
    """Bytes that a run adds at its peak to a process that has compiled the method."""
    solver = pipeline.resolve(spec)
    warm_up(problem, solver)
    small = problem.part(np.arange(2), "small")
    ran: Answer = pipeline.run(replace(small, W=small.W[:, :64], G=small.G[:64, :64]), solver, threads=1)
    del ran
    gc.collect()
    base = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the high-water mark begins anew
    pipeline.run(problem, solver, threads=1)
    return resident("VmHWM") - base


def memory(path: Path, wanted: Sequence[Method]) -> None:
    """Method after method, each in a process of its own."""
    known = {line.spec for line in read(path, Peak)}
    model, layer = MEASURED
    [problem] = sampled([str(BLOCKS[model])], [FIRST], [layer], ROWS, model)
    for method in wanted:
        if method.spec in known or method.spec.endswith(REGROUPED):
            continue
        with get_context("spawn").Pool(1) as pool:
            found = pool.apply(peak, (problem, method.plain))
        append(path, [Peak(method.spec, problem.rows, problem.n, found, problem.G.nbytes)])
        print(method.spec, found, flush=True)


def main() -> None:
    parser = command.study(__spec__, __doc__)
    parser.add_argument("what", choices=("bounds", "methods", "memory"))
    parser.add_argument("--models", default=",".join(BLOCKS))
    parser.add_argument("--patterns", default=f"{FIRST},2:4,0.5,{OTHER_PATTERNS}")
    parser.add_argument("--specs", nargs="*", help="all by default")
    options = parser.parse_args()
    restart_on_one_thread()
    wanted = [method for method in METHODS if options.specs is None or method.spec in options.specs]
    if options.what == "memory":
        memory(options.out / MEMORY_CSV, wanted)
        return
    for pattern in options.patterns.split(","):
        for model in options.models.split(","):
            if options.what == "methods":
                methods(options.out / METHODS_CSV, model, pattern, wanted)
            elif pattern in PATTERNS.split(","):
                bounds(options.out / BOUNDS_CSV, model, pattern)


if __name__ == "__main__":
    main()
