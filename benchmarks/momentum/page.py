"""The page of momentum over streamed Gram matrices, from ``momentum.csv``."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.momentum.study import BLOCK, MOMENTUM_CSV, PATTERN, Measured
from benchmarks.shared import command
from benchmarks.shared.csv_lines import required
from benchmarks.shared.markdown import table, write_page
from fwbench.problems.text import TOKENS

VERDICT = """\
**It does not pay where the Gram fits into memory**: at up to 200 products exact line search with the whole Gram has the
least error in 17 of the 18 cells (the other is within 0.001), and one pass over the text leaves momentum far above
Wanda's mask, from which the open loop's first step leads away. At 1000 products the relaxed and the swapped errors of
`4/(t+8)^(2/3)` are within 2 % of line search. Batches alone are enough, though: on the ill-conditioned o_proj averaged
gradients end at half the relaxed error of the open step with the whole Gram, where the newest Gram alone stalls.
Moving the average along (transport) lowers no relaxed error.
"""


def page(lines: Sequence[Measured]) -> str:
    """The report in Markdown."""
    first = lines[0]
    out = [
        "# Momentum over streamed Gram matrices",
        "",
        f"SmolLM2-135M, block {BLOCK}, {PATTERN} of each row pruned, {first.rows} rows a layer, {TOKENS:,} calibration",
        f"tokens in {first.batches} batches; float32, from Wanda's mask. A product is one of all rows with one Gram;",
        f"methods that stream take the batches in turn, so {first.batches} products are one pass. Errors are on the",
        "mean of all batches, as multiples of Wanda's. All but the line search step by 2 / (t + 2). The numbers are in",
        "[momentum.csv](momentum.csv). Written by `python -m benchmarks.momentum.page`.",
        "",
        "## What was found",
        "",
        VERDICT.rstrip(),
    ]
    for name in dict.fromkeys(line.layer for line in lines):
        own = [line for line in lines if line.layer == name]
        counts = sorted({line.products for line in own})
        cell = {(line.method, line.products): line for line in own}
        for what in ("relaxed", "rounded", "swapped"):
            rows = [
                [method, *(f"{getattr(cell[method, count], what):.3f}" for count in counts)]
                for method in dict.fromkeys(line.method for line in own)
            ]
            out += ["", f"## {name}, {what}", "", table(("products", *map(str, counts)), rows).rstrip()]
    return "\n".join([*out, ""])


def main() -> None:
    out = command.study(__spec__, __doc__).parse_args().out
    lines = required(out / MOMENTUM_CSV, Measured, "benchmarks.momentum.study")
    write_page(out, page(lines))


if __name__ == "__main__":
    main()
