"""Which weight update leaves the least error: pipelines with updates on the sampled rows of the mask study.

    python -m benchmarks.updates.study         lines that are missing are added to updates.csv
    python -m benchmarks.updates.page

Every answer is judged: the error is that of the float32 weights on the layer's own inputs. One thread; CPU seconds.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.shared import command
from benchmarks.shared.csv_lines import append, read
from benchmarks.shared.samples import BLOCKS, PATTERNS, place, sampled
from benchmarks.shared.threads import restart_on_one_thread
from fwbench import pipeline
from fwbench.problems.collections import LAYERS

UPDATES_CSV = "updates.csv"
SPECS = (
    "sparsegpt",
    "wanda+refit",
    "wanda+admm",
    "admm",
    "admm+refit",
    "wanda+swap+refit",
    "fast+refit",
    "wanda+swap+reswap",
    "admm+reswap",
    "fast+reswap",
)


@dataclass(frozen=True)
class Line:
    """One pipeline on the sampled rows of one layer."""

    block: str
    layer: str
    pattern: str
    rows: int
    spec: str
    error: float
    ratio_to_wanda: float
    cpu_seconds: float
    solver: str
    hash: str

    @property
    def problem(self) -> tuple[str, str, str]:
        return self.block, self.layer, self.pattern


def run(folder: Path, blocks: str, patterns: str, rows: int, specs: Sequence[str]) -> None:
    """Spec after spec on all problems; what the file holds is not repeated."""
    path = folder / UPDATES_CSV
    known = {(line.problem, line.spec) for line in read(path, Line)}
    every = list(sampled(blocks.split(","), patterns.split(","), LAYERS, rows))
    for spec in specs:
        solver = pipeline.resolve(spec)
        for problem in every:
            if (place(problem.name), spec) in known:
                continue
            pipeline.warm_up(pipeline.Run(problem, solver))
            began = time.process_time()
            result = pipeline.run(problem, solver, threads=1).result
            seconds = time.process_time() - began
            if not result.solved or result.error is None or result.ratio_to_wanda is None:
                raise SystemExit(f"{problem.name}: {spec} failed ({result.reason})")
            found = (result.error, result.ratio_to_wanda, seconds, solver.full, problem.hash[:12])
            append(path, [Line(*place(problem.name), problem.rows, spec, *found)])
        print(spec, flush=True)


def main() -> None:
    parser = command.study(__spec__, __doc__)
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--blocks", default=BLOCKS)
    parser.add_argument("--patterns", default=PATTERNS)
    parser.add_argument("--specs", nargs="*", default=SPECS)
    options = parser.parse_args()
    restart_on_one_thread()
    run(options.out, options.blocks, options.patterns, options.rows, options.specs)


if __name__ == "__main__":
    main()
