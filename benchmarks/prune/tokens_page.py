"""The section of the boards' page on calibration tokens and shrinkage: lines of ``tokens`` to Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.prune.tokens import TOKENS_CSV, Line
from benchmarks.shared.csv_lines import read
from benchmarks.shared.markdown import method_cell, table
from fwbench.metrics import shifted_geometric_mean

TEXTS = ("calibration", "lee_heldout", "wikipedia")
BASE = "wanda"
HEAD = """## How many tokens, and shrinkage

Layer errors in units of Wanda's on the same layer, tokens and text, geometric means over {layers} layers (blocks
{blocks}; {rows} rows of each, sampled with a seed; 0.5): on the calibration text, `lee.cor` and Wikipedia, all in the
dense model. Shrinkage s chooses masks by (1 − s)G + s diag(G) (`fwbench prune --shrink`); the errors are on the inputs
as they are."""


def section(folder: Path) -> str:
    """The section, empty where nothing was measured."""
    if not (lines := read(folder / TOKENS_CSV, Line)):
        return ""
    layers = sorted({line.layer for line in lines})
    head = HEAD.format(
        layers=len(layers),
        blocks=", ".join(sorted({layer.split(".")[1] for layer in layers})),
        rows=", ".join(sorted({str(line.rows) for line in lines})),
    )
    columns = [(method, text) for text in TEXTS for method in dict.fromkeys(line.method for line in lines)]
    columns = [(method, text) for method, text in columns if method != BASE]
    rows = []
    for tokens, shrink in sorted({(line.tokens, line.shrink) for line in lines}):
        chosen = [line for line in lines if (line.tokens, line.shrink) == (tokens, shrink)]
        if {line.layer for line in chosen} == set(layers):  # finished
            rows.append((f"{tokens:,}", f"{shrink:g}", *(f"{_ratio(chosen, *column):.3f}" for column in columns)))
    names = (f"{method_cell(method)}, {text.replace('_', '-')}" for method, text in columns)
    return f"{head}\n\n{table(('tokens', 'shrinkage', *names), rows, left=0)}".rstrip()


def _ratio(lines: Sequence[Line], method: str, text: str) -> float:
    """Geometric mean over layers of a method's error in units of Wanda's."""
    base = {line.layer: getattr(line, text) for line in lines if line.method == BASE}
    return shifted_geometric_mean(getattr(line, text) / base[line.layer] for line in lines if line.method == method)
