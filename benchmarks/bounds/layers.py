"""Bounds of every row of whole layers by one diagonal for all rows: the plain relaxation (none) and the shared ``e``.

    python -m benchmarks.bounds.layers 'smollm2/03.*' 'smollm2/13.*' 'smollm2/23.*'
    python -m benchmarks.bounds.page

The bounds of the rows are those that ``fwbench.verify`` proves from the solver's certificate; their gaps are against
the masks of ``PRESET``. One CSV line a layer and kind; seconds are the solver's CPU seconds of one thread. What is in
the CSV is not computed again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.shared import command
from benchmarks.shared.csv_lines import append, read
from benchmarks.shared.threads import one_thread
from benchmarks.shared.timing import timed
from fwbench import pipeline
from fwbench.presets import PRESETS
from fwbench.problem import Problem
from fwbench.problems.collections import load

KINDS = {"plain": "fw", "shared": "fw(convexify=shared)"}
PRESET = PRESETS["fast"]
LAYERS_CSV = "layers.csv"


@dataclass(frozen=True)
class LayerGaps:
    """A line of the CSV; the gaps are quartiles over the rows, ``upper`` and ``lower`` sums."""

    problem: str
    hash: str  # shortened
    rows: int
    n: int
    kind: str
    low: float
    median: float
    high: float
    upper: float
    lower: float
    seconds: float
    masks: str  # where upper comes from


def solve(problem: Problem, kind: str, upper: np.ndarray) -> LayerGaps:
    """The rows' proved bounds of a kind against errors ``upper (rows,)``."""
    solver = pipeline.resolve(KINDS[kind])
    outcome, share = timed(problem, solver)
    if not outcome.row_bounds or outcome.result.seconds is None:
        raise SystemExit(f"{problem.name}: {solver.text} proved nothing ({outcome.result.reason})")
    lower = np.array(outcome.row_bounds)
    gaps = 1 - lower[upper > 0] / upper[upper > 0]
    low, median, high = np.quantile(gaps, (0.25, 0.5, 0.75)).tolist()
    sums = float(upper.sum()), float(lower.sum()), outcome.result.seconds * share
    return LayerGaps(problem.name, problem.hash[:12], problem.rows, problem.n, kind, low, median, high, *sums, PRESET)


def main() -> None:
    parser = command.study(__spec__, __doc__)
    parser.add_argument("problems", nargs="+", help="as for 'fwbench run'")
    options = parser.parse_args()
    path = options.out / LAYERS_CSV
    done = {(line.problem, line.kind) for line in read(path, LayerGaps)}
    one_thread()
    for selector in options.problems:
        for _, problem in load(selector):
            kinds = [kind for kind in KINDS if (problem.name, kind) not in done]
            if not kinds:
                continue
            keep = pipeline.run(problem, pipeline.resolve(PRESET), threads=1).keep
            if keep is None:
                raise SystemExit(f"{problem.name}: {PRESET} gave no mask")
            upper = problem.row_errors(~keep)
            for kind in kinds:
                line = solve(problem, kind, upper)
                append(path, [line])
                print(f"{line.problem} {kind}: median gap {line.median:.2%}, {line.seconds:.1f} s", flush=True)


if __name__ == "__main__":
    main()
