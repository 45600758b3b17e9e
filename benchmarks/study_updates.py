"""Which weight update leaves the least error: pipelines with updates on the sampled rows of the mask study.

    python benchmarks/study_updates.py run reports/updates     lines that are missing are added to updates.csv
    python benchmarks/study_updates.py page reports/updates    index.md

Every answer is judged: the error is that of the float32 weights on the layer's own inputs. One thread; CPU seconds.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

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
FIELDS = ("block", "layer", "pattern", "rows", "spec", "error", "ratio_to_wanda", "cpu_seconds", "solver", "hash")
Line = Mapping[str, str]


def read(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def run(folder: Path, blocks: str, patterns: str, rows: int, specs: Sequence[str]) -> None:
    """Spec after spec on all problems; what the file holds is not repeated."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "updates.csv"
    known = {(line["block"], line["layer"], line["pattern"], line["spec"]) for line in read(path)}
    every = list(problems(blocks.split(","), patterns.split(","), LAYERS, rows))
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        if not known:
            writer.writeheader()
        for spec in specs:
            line = pipeline.resolve(spec)
            for problem in every:
                _, block, layer, _, pattern = problem.name.split(".", 4)
                if (block, layer, pattern, spec) in known:
                    continue
                pipeline.warm_up(line, problem)
                began = time.process_time()
                result = pipeline.run(problem, line, threads=1).result
                seconds = time.process_time() - began
                if not result.solved or result.error is None or result.ratio_to_wanda is None:
                    raise SystemExit(f"{problem.name}: {spec} failed ({result.reason})")
                values = (block, layer, pattern, problem.rows, spec, f"{result.error:.6g}")
                values += (f"{result.ratio_to_wanda:.6g}", f"{seconds:.4g}", line.full, problem.hash[:12])
                writer.writerow(dict(zip(FIELDS, values, strict=True)))
                file.flush()
            print(spec, flush=True)


def mean(lines: Sequence[Line]) -> float:
    """The geometric mean of the ratios to Wanda; NaN of nothing."""
    return float(np.exp(np.mean([np.log(float(line["ratio_to_wanda"])) for line in lines]))) if lines else float("nan")


def page(lines: Sequence[Line]) -> str:
    specs = [spec for spec in SPECS if any(line["spec"] == spec for line in lines)]
    names = {(line["block"], line["layer"], line["pattern"]) for line in lines}
    full = [spec for spec in specs if sum(line["spec"] == spec for line in lines) == len(names)]
    best = {}
    for line in lines:
        if line["spec"] in full:
            key = (line["block"], line["layer"], line["pattern"])
            best[key] = min(best.get(key, np.inf), float(line["error"]))

    def cells(spec: str) -> list[str]:
        own = [line for line in lines if line["spec"] == spec]
        chosen: list[Callable[[Line], bool]] = [lambda line: True]
        chosen += [lambda line, p=p: line["pattern"] == p for p in PATTERNS.split(",")]
        chosen += [lambda line, name=name: line["layer"] == name for name in ("o_proj", "gate_proj", "down_proj")]
        ratios = [mean([line for line in own if choice(line)]) for choice in chosen]
        wins = sum(
            float(line["error"]) <= best[line["block"], line["layer"], line["pattern"]] * (1 + 1e-6) for line in own
        )
        seconds = sum(float(line["cpu_seconds"]) for line in own) / sum(int(line["rows"]) for line in own)
        shown = ["–" if np.isnan(ratio) else f"{ratio:.3f}" for ratio in ratios]
        return [f"`{spec}`", *shown, f"{wins} of {len(own)}", f"{1000 * seconds:.0f}"]

    def order(spec: str) -> float:
        return mean([line for line in lines if line["spec"] == spec])

    head = ("pipeline", "all", *PATTERNS.split(","), "o_proj", "gate_proj", "down_proj", "least error in")
    head += ("CPU ms a row",)
    table = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
    table += [f"| {' | '.join(cells(spec))} |" for spec in sorted(full, key=order)]
    missing = [spec for spec in specs if spec not in full]
    note = f"\n\nNot yet run on all problems: {', '.join(missing)}." if missing else ""
    return HEAD.format(problems=len(names), patterns=PATTERNS.replace(",", ", ")) + "\n".join(table) + note + "\n"


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
        text = page(read(options.folder / "updates.csv"))
        (options.folder / "index.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
