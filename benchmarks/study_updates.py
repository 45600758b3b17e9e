"""Which weight update leaves the least error: pipelines with updates on the sampled rows of the mask study.

    python benchmarks/study_updates.py run reports/updates     lines that are missing are added to updates.csv
    python benchmarks/study_updates.py page reports/updates    index.md

Every answer is judged: the error is that of the float32 weights on the layer's own inputs. One thread; CPU seconds.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from csv_lines import append, read
from md_table import table

from fwbench import pipeline
from fwbench.problems.collections import LAYERS

from study_masks import BLOCKS, ENVIRONMENT, PATTERNS, problems  # isort: skip

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
    path = folder / "updates.csv"
    known = {(line.problem, line.spec) for line in read(path, Line)}
    every = list(problems(blocks.split(","), patterns.split(","), LAYERS, rows))
    for spec in specs:
        line = pipeline.resolve(spec)
        for problem in every:
            _, block, layer, _, pattern = problem.name.split(".", 4)
            if ((block, layer, pattern), spec) in known:
                continue
            pipeline.warm_up(line, problem)
            began = time.process_time()
            result = pipeline.run(problem, line, threads=1).result
            seconds = time.process_time() - began
            if not result.solved or result.error is None or result.ratio_to_wanda is None:
                raise SystemExit(f"{problem.name}: {spec} failed ({result.reason})")
            found = (result.error, result.ratio_to_wanda, seconds, line.full, problem.hash[:12])
            append(path, [Line(block, layer, pattern, problem.rows, spec, *found)])
        print(spec, flush=True)


def mean(lines: Sequence[Line]) -> float:
    """The geometric mean of the ratios to Wanda."""
    return float(np.exp(np.mean([np.log(line.ratio_to_wanda) for line in lines])))


def page(lines: Sequence[Line]) -> str:
    specs = [spec for spec in SPECS if any(line.spec == spec for line in lines)]
    names = {line.problem for line in lines}
    full = [spec for spec in specs if sum(line.spec == spec for line in lines) == len(names)]
    best: dict[tuple[str, str, str], float] = {}
    for line in lines:
        if line.spec in full:
            best[line.problem] = min(best.get(line.problem, np.inf), line.error)

    def cells(spec: str) -> list[str]:
        own = [line for line in lines if line.spec == spec]
        parts = [own, *([line for line in own if line.pattern == p] for p in PATTERNS.split(","))]
        parts += [[line for line in own if line.layer == name] for name in ("o_proj", "gate_proj", "down_proj")]
        shown = [f"{mean(part):.3f}" if part else "–" for part in parts]
        wins = sum(line.error <= best[line.problem] * (1 + 1e-6) for line in own)
        seconds = sum(line.cpu_seconds for line in own) / sum(line.rows for line in own)
        return [f"`{spec}`", *shown, f"{wins} of {len(own)}", f"{1000 * seconds:.0f}"]

    def order(spec: str) -> float:
        return mean([line for line in lines if line.spec == spec])

    head = ("pipeline", "all", *PATTERNS.split(","), "o_proj", "gate_proj", "down_proj", "least error in")
    head += ("CPU ms a row",)
    missing = [spec for spec in specs if spec not in full]
    note = f"\n\nNot yet run on all problems: {', '.join(missing)}." if missing else ""
    return (
        HEAD.format(problems=len(names), patterns=PATTERNS.replace(",", ", "))
        + table(head, map(cells, sorted(full, key=order)))
        + note
        + "\n"
    )


HEAD = """# Which weight update leaves the least error

{problems} problems: 24 rows of each of the seven matrices of blocks 3, 13 and 23 of SmolLM2-135M, patterns {patterns},
the same rows as in [reports/masks](../masks/index.md). Error is ‖(W − Ŵ)X‖² / tokens with the updated weights, in units
of Wanda's without update; means are geometric. CPU time is of the whole pipeline, judging included, one thread on a
machine that others loaded. `reswap` exchanges pruned and kept weights as long as that lowers the error left after the
refit. Layer error is not perplexity: [reports/prune](../prune/index.md) has whole models. Written by
`benchmarks/study_updates.py` from [updates.csv](updates.csv).

"""


def main() -> None:
    if any(os.environ.get(name) != value for name, value in ENVIRONMENT.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ENVIRONMENT})
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "page"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--blocks", default=BLOCKS)
    parser.add_argument("--patterns", default=PATTERNS)
    parser.add_argument("--specs", nargs="*", default=SPECS)
    options = parser.parse_args()
    if options.command == "run":
        run(options.folder, options.blocks, options.patterns, options.rows, options.specs)
    else:
        text = page(read(options.folder / "updates.csv", Line))
        (options.folder / "index.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
