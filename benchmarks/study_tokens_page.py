"""The section of the boards' page on calibration tokens and shrinkage: lines of ``study_tokens`` to Markdown."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

TEXTS = ("calibration", "lee_heldout", "wikipedia")
BASE = "wanda"
Lines = Sequence[Mapping[str, str]]
HEAD = """## How many tokens, and shrinkage

Layer errors in units of Wanda's on the same layer, tokens and text, geometric means over {layers} layers (blocks
{blocks}; {rows} rows of each, sampled with a seed; 0.5): on the calibration text, `lee.cor` and Wikipedia, all in the
dense model. Shrinkage s chooses masks by (1 − s)G + s diag(G) (`fwbench prune --shrink`); the errors are on the inputs
as they are."""


def section(path: Path) -> str:
    """The section, empty where nothing was measured."""
    if not path.is_file():
        return ""
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    layers = sorted({line["layer"] for line in lines})
    head = HEAD.format(
        layers=len(layers),
        blocks=", ".join(sorted({layer.split(".")[1] for layer in layers})),
        rows=", ".join(sorted({line["rows"] for line in lines})),
    )
    methods = [method for method in dict.fromkeys(line["method"] for line in lines) if method != BASE]
    cells = [f"{method}, {text.replace('_', '-')}" for text in TEXTS for method in methods]
    table = [f"| tokens | shrinkage | {' | '.join(cells)} |", "|---:|---:|" + "---:|" * len(cells)]
    for tokens, shrink in sorted({(int(line["tokens"]), float(line["shrink"])) for line in lines}):
        chosen = [line for line in lines if (int(line["tokens"]), float(line["shrink"])) == (tokens, shrink)]
        if {line["layer"] for line in chosen} != set(layers):
            continue  # not finished
        values = [f"{_ratio(chosen, method, text):.3f}" for text in TEXTS for method in methods]
        table.append(f"| {tokens:,} | {shrink:g} | {' | '.join(values)} |")
    return "\n\n".join([head, "\n".join(table)])


def _ratio(lines: Lines, method: str, text: str) -> float:
    """Geometric mean over layers of a method's error in units of Wanda's."""
    base = {line["layer"]: float(line[text]) for line in lines if line["method"] == BASE}
    ratios = [float(line[text]) / base[line["layer"]] for line in lines if line["method"] == method]
    return float(np.exp(np.log(ratios).mean()))
