"""Which ingredients find the best masks: a grid of solvers on sampled rows of real layers, kept in a store.

    python -m benchmarks.masks.grid masks.sqlite --rows 24 --tiers start,swap,fw
    python -m benchmarks.masks.grid masks.sqlite --rows 24 --blocks 7 --patterns 0.5 --specs 'wanda+swap'
    python -m benchmarks.masks.page masks.sqlite

Every run goes through ``fwbench.pipeline`` on one thread, so every mask is judged; a run that is in the store is not
repeated, and a kill loses at most the run in progress. Specs with parameters this version does not know are named and
left out. Seconds are the CPU's: the stages' wall time times the process's CPU share during the run.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.shared import command
from benchmarks.shared.samples import BLOCKS, PATTERNS, sampled
from benchmarks.shared.threads import restart_on_one_thread
from benchmarks.shared.timing import timed
from fwbench import pipeline
from fwbench.pipeline import Solver
from fwbench.problem import Problem
from fwbench.problems.collections import LAYERS
from fwbench.spec import SpecError
from fwbench.store import Store

SHARED = "fw(convexify=shared)"
STEPS = 500  # of every variant in the tier ``variants``

VARIANTS = {  # step rules of each, at equal iterations
    "vanilla": ("open", "short", "linesearch", "adaptive"),
    "pairwise": ("short", "linesearch", "adaptive"),
    "away": ("linesearch",),
    "bpcg": ("linesearch",),
    "dicg": ("linesearch",),
    "inface": ("linesearch",),
}
TIERS = {  # cheap ones first; a run's stage records also hold the error after each of its stages
    "start": ("wanda", "ria", "greedy"),
    "swap": ("sparseswaps", "wanda+swap(enough=0.1)", "greedy+swap"),
    "fw": ("sparsefw", "sparsefw+swap", "fw+swap", "fw+round(method=randomised)+swap"),
    "push": ("push(rounds=20)+swap", "fast", "push+swap", "fw+push+swap"),
    "search": (
        "wanda+swap+tabu(iterations=3000)",
        "greedy+swap+tabu(iterations=3000)",
        "push+swap+safeguard+tabu(iterations=3000)",
        "push+swap+safeguard+ils",
        "push+swap+safeguard+tabu(iterations=20000)",
        "push+swap+safeguard+tabu(iterations=100000)",
        "best",
        "push+swap+safeguard+anneal(rounds=5)",
    ),
    "variants": tuple(
        f"fw(variant={variant},step={step},steps={STEPS},gap=0.0)+swap"
        for variant, rules in VARIANTS.items()
        for step in rules
    ),
    "rounding": (
        "fw+round(method=expectation)+swap",
        f"{SHARED}+swap",
        f"{SHARED}+round(method=randomised)+swap",
        f"{SHARED}+round(method=expectation)+swap",
        f"{SHARED}+push+swap",
        "fw(convexify=row)+swap",
    ),
    "longest": ("greedy+swap+tabu(iterations=200000)",),  # from elsewhere, for longer
}


def lines(specs: Sequence[str]) -> list[Solver]:
    """The specs this version knows; the others are told."""
    found = []
    for spec in specs:
        try:
            found.append(pipeline.resolve(spec))
        except SpecError as error:
            print(f"left out: {error}", flush=True)
    return found


def solve(problem: Problem, solver: Solver, store: Store) -> str:
    """Run one cell on one thread and keep it; a line that says what came of it, empty if it was there already."""
    key = pipeline.Run(problem, solver).key
    held = store.get(key)
    if held is not None and held.solved:
        return ""
    outcome, share = timed(problem, solver)
    result = outcome.result
    timing = {"cpu_share": share}
    if result.seconds is not None:
        timing["cpu_seconds"] = result.seconds * share
    outcome = replace(outcome, result=replace(result, timing=timing), certificate=None)
    store.add(outcome, problem=problem)
    if not result.solved:
        return f"{problem.name}  {solver.text}  {result.status}: {result.reason}"
    return f"{problem.name}  {solver.text}  {result.ratio_to_wanda:.4f}  {timing['cpu_seconds']:.3f} s"


def run(options: argparse.Namespace) -> None:
    tiers = [[spec] for spec in options.specs] or [TIERS[tier] for tier in options.tiers.split(",")]
    with Store(options.store) as store:
        for specs in tiers:
            for solver in lines(specs):  # one solver on all problems, then the next: an early end leaves full columns
                started = time.process_time()
                for problem in options.problems:
                    if told := solve(problem, solver, store):
                        print(told, flush=True)
                print(f"--- {solver.text}: {time.process_time() - started:.0f} s", flush=True)


def main() -> None:
    parser = command.parser(__spec__, __doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--blocks", default=BLOCKS)
    parser.add_argument("--layers", default=",".join(LAYERS))
    parser.add_argument("--patterns", default=PATTERNS)
    parser.add_argument("--tiers", default=",".join(TIERS), help=f"of {', '.join(TIERS)}, in the order to be run")
    parser.add_argument("--specs", nargs="*", default=[], help="instead of tiers")
    options = parser.parse_args()
    restart_on_one_thread()
    split = (options.blocks.split(","), options.patterns.split(","), options.layers.split(","))
    options.problems = list(sampled(*split, options.rows))
    run(options)


if __name__ == "__main__":
    main()
