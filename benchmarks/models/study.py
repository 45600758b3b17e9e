"""Which conclusions survive a change of model: Gemma 3 270M measured as SmolLM2-135M was.

    FWBENCH_ACCEPT=gemma python -m benchmarks.models.study methods   masks and updates on sampled rows of three blocks
    FWBENCH_ACCEPT=gemma python -m benchmarks.models.study bounds    Shor's bound of rows, beside the masks of ``fast``
    FWBENCH_ACCEPT=gemma python -m benchmarks.models.study whole     whole models, a process each, by benchmarks.prune
    python -m benchmarks.models.page

Rows, patterns and calibration of ``methods`` and ``bounds`` are those of ``benchmarks.masks``, ``updates`` and
``bounds``, whose figures of SmolLM2 stand in their reports; the blocks lie at the same depths. What SmolLM2 lacks there
is measured alike with ``--model smollm2``. One thread; CPU seconds; what a file holds is not measured again.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.prune import boards
from benchmarks.shared import command
from benchmarks.shared.csv_lines import append, read
from benchmarks.shared.samples import PATTERNS, one_row, place, sampled
from benchmarks.shared.threads import restart_on_one_thread
from fwbench import pipeline
from fwbench.metrics import optimality_gap
from fwbench.problem import Problem
from fwbench.problems.collections import LAYERS
from fwbench.solvers.semidefinite.ladder import row_bound
from fwbench.solvers.semidefinite.row import RowForm

METHODS_CSV, BOUNDS_CSV = "methods.csv", "bounds.csv"
BLOCKS = {"gemma3": "2,8,14", "smollm2": "3,13,23"}
MASKS = ("wanda", "ria", "greedy", "wanda+swap", "greedy+swap", "splitting+swap", "fast", "sparsefw")
UPDATES = ("sparsegpt", "wanda+refit", "admm", "admm+refit", "wanda+swap+refit", "wanda+swap+reswap")
ROWS, BOUNDED, BOUND, PATTERN = 24, 4, "shor", "0.5"
TOKENED = f"{boards.TOKENED}8192"
EVALUATED = 4096  # tokens of each text: half of what SmolLM2 has, as the head of 262,144 words takes most of the time


@dataclass(frozen=True)
class Line:
    """One pipeline on the sampled rows of one layer."""

    model: str
    block: str
    layer: str
    pattern: str
    rows: int
    spec: str
    error: float
    ratio_to_wanda: float
    cpu_seconds: float
    solver: str
    hash: str  # of the problem, shortened

    @property
    def key(self) -> tuple[str, ...]:
        return self.model, self.block, self.layer, self.pattern, self.spec


@dataclass(frozen=True)
class Bound:
    """One row of a layer; ``upper`` is the error of the mask of ``fast``, ``gap`` its distance from the bound."""

    model: str
    block: str
    layer: str
    row: int  # among the sampled ones
    n: int
    upper: float
    lower: float
    gap: float
    converged: bool
    cpu_seconds: float


def plan() -> list[tuple[str, str, str]]:
    """Whole models (mode, pattern, method), the most telling first."""
    one, sequence, good = boards.ONE_SHOT, boards.SEQUENTIAL, f"{boards.CORRECTED}0.3"
    rows = [(boards.DENSE, "", boards.DENSE)]
    for pattern in boards.PATTERNS:
        rows += [(sequence, pattern, f"admm{TOKENED}{good}"), (sequence, pattern, f"admm{TOKENED}")]
        rows += [(one, pattern, f"wanda+swap{TOKENED}"), (one, pattern, f"wanda{TOKENED}")]
        rows += [(sequence, pattern, f"wanda+swap{TOKENED}{good}"), (sequence, pattern, f"wanda+swap{TOKENED}")]
    return rows


def methods(path: Path, problems: Sequence[Problem], model: str, specs: Sequence[str]) -> None:
    """Spec after spec on all problems."""
    known = {line.key for line in read(path, Line)}
    for spec in specs:
        solver = pipeline.resolve(spec)
        for problem in problems:
            if (model, *place(problem.name), spec) in known:
                continue
            pipeline.warm_up(pipeline.Run(problem, solver))
            began = time.process_time()
            result = pipeline.run(problem, solver, threads=1).result
            seconds = time.process_time() - began
            if not result.solved or result.error is None or result.ratio_to_wanda is None:
                raise SystemExit(f"{problem.name}: {spec} failed ({result.reason})")
            found = (result.error, result.ratio_to_wanda, seconds, solver.full, problem.hash[:12])
            append(path, [Line(model, *place(problem.name), problem.rows, spec, *found)])
        print(spec, flush=True)


def bounds(path: Path, problems: Sequence[Problem], model: str, count: int) -> None:
    """The first ``count`` of the sampled rows of each layer."""
    known = {(line.model, line.block, line.layer, line.row) for line in read(path, Bound)}
    for problem in problems:
        block, layer, _ = place(problem.name)
        for row in range(count):
            if (model, block, layer, row) in known:
                continue
            part = one_row(problem, row, problem.n)
            upper = part.error(pipeline.run(part, pipeline.resolve("fast"), threads=1).keep)
            began = time.process_time()
            found = row_bound(BOUND, RowForm.of(part, 0), None)
            lower, seconds = found.proof.bound, time.process_time() - began
            gap = optimality_gap(upper, lower) or 0.0
            line = Bound(model, block, layer, row, problem.n, upper, lower, gap, found.converged, seconds)
            append(path, [line])
        print(problem.name, flush=True)


def whole(out: Path, model: str) -> None:
    """The rows of the plan that are missing, each in a process of its own."""
    for mode, pattern, method in plan():
        if (mode, pattern, method) in boards.read(out / boards.RESULTS_CSV):
            continue
        words = ["--out", str(out), "row", pattern or "-", method, "--mode", mode, "--model", model]
        words += ["--tokens", str(EVALUATED)]
        if subprocess.run([sys.executable, "-m", "benchmarks.prune.boards", *words]).returncode:
            print(f"-- {mode} {pattern} {method}: failed", flush=True)


def main() -> None:
    parser = command.study(__spec__, __doc__)
    parser.add_argument("what", choices=("methods", "bounds", "whole"))
    parser.add_argument("--model", default="gemma3", choices=BLOCKS)
    parser.add_argument("--rows", type=int, help=f"of each layer; {ROWS}, for bounds {BOUNDED}")
    parser.add_argument("--blocks", help="by default three, at the same depths of both models")
    parser.add_argument("--patterns", default=PATTERNS)
    parser.add_argument("--layers", default=",".join(LAYERS))
    parser.add_argument("--specs", nargs="*", default=(*MASKS, *UPDATES))
    options = parser.parse_args()
    restart_on_one_thread()
    split = ((options.blocks or BLOCKS[options.model]).split(","), options.layers.split(","))
    if options.what == "methods":
        problems = list(sampled(split[0], options.patterns.split(","), split[1], options.rows or ROWS, options.model))
        methods(options.out / METHODS_CSV, problems, options.model, options.specs)
    elif options.what == "bounds":
        problems = list(sampled(split[0], [PATTERN], split[1], ROWS, options.model))
        bounds(options.out / BOUNDS_CSV, problems, options.model, options.rows or BOUNDED)
    else:
        whole(options.out, options.model)


if __name__ == "__main__":
    main()
