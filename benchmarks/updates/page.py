"""The page of weight updates, from ``updates.csv``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.shared import command
from benchmarks.shared.csv_lines import required
from benchmarks.shared.markdown import method_cell, table, write_page
from benchmarks.shared.samples import PATTERNS
from benchmarks.updates.study import SPECS, UPDATES_CSV, Line
from fwbench.metrics import shifted_geometric_mean as mean


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
        shown = [f"{mean(line.ratio_to_wanda for line in part):.3f}" if part else "–" for part in parts]
        wins = sum(line.error <= best[line.problem] * (1 + 1e-6) for line in own)
        seconds = sum(line.cpu_seconds for line in own) / sum(line.rows for line in own)
        return [method_cell(spec), *shown, f"{wins} of {len(own)}", f"{1000 * seconds:.0f}"]

    def order(spec: str) -> float:
        return mean(line.ratio_to_wanda for line in lines if line.spec == spec)

    head = ("pipeline", "all", *PATTERNS.split(","), "o_proj", "gate_proj", "down_proj", "least error in")
    head += ("CPU ms a row",)
    missing = [spec for spec in specs if spec not in full]
    note = f"\nNot yet run on all problems: {', '.join(missing)}.\n" if missing else ""
    return (
        HEAD.format(problems=len(names), patterns=PATTERNS.replace(",", ", "))
        + table(head, map(cells, sorted(full, key=order)))
        + note
    )


HEAD = """# Which weight update leaves the least error

{problems} problems: 24 rows of each of the seven matrices of blocks 3, 13 and 23 of SmolLM2-135M, patterns {patterns},
the same rows as in [reports/masks](../masks/index.md). Error is ‖(W − Ŵ)X‖² / tokens with the updated weights, in units
of Wanda's without update; means are geometric. CPU time is of the whole pipeline, judging included, one thread on a
machine that others loaded. `reswap` exchanges pruned and kept weights as long as that lowers the error left after the
refit. Layer error is not perplexity: [reports/prune](../prune/index.md) has whole models. Written by
`python -m benchmarks.updates.page` from [updates.csv](updates.csv).

"""


def main() -> None:
    out = command.study(__spec__, __doc__).parse_args().out
    lines = required(out / UPDATES_CSV, Line, "benchmarks.updates.study")
    write_page(out, page(lines))


if __name__ == "__main__":
    main()
