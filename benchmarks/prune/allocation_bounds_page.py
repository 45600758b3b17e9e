"""The section of the boards' page on what no allocation is below: lines of ``allocation_bounds`` to Markdown."""

from __future__ import annotations

from pathlib import Path

from benchmarks.prune.allocation_bounds import CURVES_CSV, GAPS_CSV, SHOWN, Gap, Point
from benchmarks.shared.csv_lines import read
from benchmarks.shared.markdown import table
from fwbench import metrics
from fwbench.report import text

HEAD = """### What no allocation is below

`--allocation "exact(bounds=true)"` on three blocks at 0.6, all others dense: parts of the loss by 512 tokens, Gram
matrices of 16,384, 16 rows of each layer. The blocks' zeros are divided among their layers, each within 0.15 of 0.6;
what is summed is the predicted rise of the loss in nats. *These sparsities*: proved for all masks, with the layers'
sparsities as allocated; *any*: for all allocations within reach and all masks. The gap is that of `fast`'s masks to the
last; where the two bounds are near each other it is the masks' and the relaxation's, not the budgets'. *Equal* rows
have one sparsity in each layer. [Shor's bound](../learned/index.md) is tighter (0.77 of masks'
errors where the trained diagonal has 0.63), for some thirty times the time, and holds at one count only."""
CURVES = """Lower and upper curves of the 16 rows, in units of Wanda's error at 0.6: proved bound / `fast` / Wanda.
Seven points make a curve, and it holds at every sparsity."""


def section(folder: Path) -> str:
    """The section, empty where nothing was measured."""
    gaps, points = read(folder / GAPS_CSV, Gap), read(folder / CURVES_CSV, Point)
    if not gaps:
        return ""
    return f"{HEAD}\n\n{_gaps(gaps)}\n{CURVES}\n\n{_curves(points)}".rstrip()


def _gaps(gaps: list[Gap]) -> str:
    head = ("blocks", "rows", "Wanda's masks", "`fast`", "bound, these sparsities", "bound, any", "gap", "CPU s")
    lines = [
        (
            gap.blocks.replace(" ", ", "),
            gap.rows,
            *(f"{value:.4f}" for value in (gap.wanda, gap.upper, gap.lower_here, gap.lower)),
            text.percent(metrics.optimality_gap(gap.upper, gap.lower)),
            f"{gap.seconds:.0f}",
        )
        for gap in gaps
    ]
    return table(head, lines, left=2)


def _curves(points: list[Point]) -> str:
    layers: dict[str, dict[float, Point]] = {}
    for point in points:
        layers.setdefault(point.layer.partition(".")[2], {})[point.sparsity] = point
    lines = []
    for layer, own in layers.items():
        unit = own[0.6].wanda
        cells = [[own[s].lower, own[s].upper, own[s].wanda] for s in SHOWN]
        lines.append((layer, *(" / ".join(f"{value / unit:.3f}" for value in cell) for cell in cells)))
    return table(("layer", *(f"at {sparsity:g}" for sparsity in SHOWN)), lines)
