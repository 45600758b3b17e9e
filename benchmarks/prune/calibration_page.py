"""The section of the boards' page on calibration samples: lines of ``calibration`` to Markdown."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.prune.calibration import CALIBRATION_CSV, SAMPLES, Line
from benchmarks.shared.csv_lines import read
from benchmarks.shared.markdown import method_cell, table

TEXTS = ("lee_heldout", "wikipedia")
HEAD = """## Another calibration sample

Mean and standard deviation of the perplexity over {samples} disjoint samples of 8,192 tokens of `lee`, by
`python -m benchmarks.prune.calibration`, and in how many samples a method is ahead of the line above it. A line with
`correct` is in sequence, the others are one-shot."""


def section(folder: Path) -> str:
    """The section, empty where nothing was measured; methods that do not have all samples are left out."""
    by_method: dict[tuple[str, str], dict[int, Line]] = {}
    for line in read(folder / CALIBRATION_CSV, Line):
        by_method.setdefault((line.pattern, line.method), {})[line.sample] = line
    whole = {key: lines for key, lines in by_method.items() if len(lines) == SAMPLES}
    if not whole:
        return ""
    order = sorted(whole, key=lambda key: (key[0], -np.mean([line.lee_heldout for line in whole[key].values()])))
    rows, above = [], None
    for key in order:
        cells = []
        for text in TEXTS:
            values = [getattr(line, text) for line in whole[key].values()]
            ahead = "–"
            if above is not None and above[0] == key[0]:
                others = [getattr(whole[above][sample], text) for sample in whole[key]]
                ahead = f"{sum(own < other for own, other in zip(values, others, strict=True))} of {SAMPLES}"
            cells += [f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}", ahead]
        rows.append((key[0], method_cell(key[1]), *cells))
        above = key
    heads = ("pattern", "method", "lee.cor", "ahead in", "Wikipedia", "ahead in")
    return f"{HEAD.format(samples=SAMPLES)}\n\n{table(heads, rows, left=2)}".rstrip()
