"""Which ingredients find the best masks: a grid of solvers on sampled rows of real layers, kept in a store.

    python benchmarks/study_masks.py masks.sqlite --rows 24 --tiers start,swap,fw
    python benchmarks/study_masks.py masks.sqlite --rows 24 --blocks 7 --patterns 0.5 --specs 'wanda+swap'
    python benchmarks/report_masks.py masks.sqlite -o reports/masks

Every run goes through ``fwbench.pipeline`` on one thread, so every mask is judged; a run that is in the store is not
repeated, and a kill loses at most the run in progress. Specs with parameters this version does not know are named and
left out. Seconds are the CPU's: the stages' wall time times the process's CPU share during the run.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from fwbench import pipeline
from fwbench.pipeline import Answer, Solver
from fwbench.problem import Problem
from fwbench.problems.collections import LAYERS, one
from fwbench.spec import SpecError
from fwbench.store import Store

BLOCKS = "3,13,23"
PATTERNS = "0.5,0.6,2:4"
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
# One thread, and pools that do not spin beside each other: read when the libraries load
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
}


def sample(problem: Problem, count: int) -> Problem:
    """``count`` rows of a layer, seeded by its name, in their order; the whole layer if it has no more."""
    if problem.rows <= count:
        return problem
    rng = np.random.default_rng(zlib.crc32(problem.name.encode()))
    rows = np.sort(rng.choice(problem.rows, count, replace=False))
    meta = {**problem.meta, "sampled_rows": " ".join(map(str, rows))}
    return Problem(f"{problem.name}.r{count}", problem.W[rows], problem.G, problem.pattern, meta)


def problems(blocks: Sequence[str], patterns: Sequence[str], layers: Sequence[str], count: int) -> Iterator[Problem]:
    """The sampled problems, layer by layer, each under all patterns."""
    for block in blocks:
        for layer in layers:
            _, whole = one(f"smollm2/{int(block):02}.{layer}")
            part = sample(whole, count)
            for pattern in patterns:
                yield replace(part.with_pattern(pattern), name=f"{part.name}.{pattern}")


def lines(specs: Sequence[str]) -> list[Solver]:
    """The specs this version knows; the others are told."""
    found = []
    for spec in specs:
        try:
            found.append(pipeline.resolve(spec))
        except SpecError as error:
            print(f"left out: {error}", flush=True)
    return found


def timed(problem: Problem, line: Solver) -> tuple[Answer, float]:
    """What a solver makes of a problem on one thread, compiled before, and its share of a CPU meanwhile."""
    pipeline.warm_up(line, problem)
    began, cpu = time.perf_counter(), time.process_time()
    outcome = pipeline.run(problem, line, collection="study", threads=1)
    return outcome, min(1.0, (time.process_time() - cpu) / (time.perf_counter() - began))


def solve(problem: Problem, line: Solver, store: Store) -> str:
    """Run one cell on one thread and keep it; a line that says what came of it, empty if it was there already."""
    key = pipeline.key(problem.hash, line, 0, "cpu", "float32")
    held = store.get(key)
    if held is not None and held.solved:
        return ""
    outcome, share = timed(problem, line)
    result = outcome.result
    timing = {"cpu_share": share}
    if result.seconds is not None:
        timing["cpu_seconds"] = result.seconds * share
    outcome = replace(outcome, result=replace(result, timing=timing), certificate=None)
    store.add(outcome, problem=problem)
    if not result.solved:
        return f"{problem.name}  {line.text}  {result.status}: {result.reason}"
    return f"{problem.name}  {line.text}  {result.ratio_to_wanda:.4f}  {timing['cpu_seconds']:.3f} s"


def run(options: argparse.Namespace) -> None:
    tiers = [[spec] for spec in options.specs] or [TIERS[tier] for tier in options.tiers.split(",")]
    with Store(options.store) as store:
        for specs in tiers:
            for line in lines(specs):  # one solver on all problems, then the next: an early end leaves full columns
                started = time.process_time()
                for problem in options.problems:
                    if told := solve(problem, line, store):
                        print(told, flush=True)
                print(f"--- {line.text}: {time.process_time() - started:.0f} s", flush=True)


def main() -> None:
    if any(os.environ.get(name) != value for name, value in ENVIRONMENT.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ENVIRONMENT})
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--blocks", default=BLOCKS)
    parser.add_argument("--layers", default=",".join(LAYERS))
    parser.add_argument("--patterns", default=PATTERNS)
    parser.add_argument("--tiers", default=",".join(TIERS), help=f"of {', '.join(TIERS)}, in the order to be run")
    parser.add_argument("--specs", nargs="*", default=[], help="instead of tiers")
    options = parser.parse_args()
    split = (options.blocks.split(","), options.patterns.split(","), options.layers.split(","))
    options.problems = list(problems(*split, options.rows))
    run(options)


if __name__ == "__main__":
    main()
