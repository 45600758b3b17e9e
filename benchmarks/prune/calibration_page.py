"""The section of the boards' page on calibration samples: lines of ``calibration`` to Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks.prune import calibration_layers
from benchmarks.prune.calibration import CALIBRATION_CSV, SAMPLES, Line
from benchmarks.shared.csv_lines import read
from benchmarks.shared.markdown import method_cell, table

TEXTS = ("lee_heldout", "wikipedia")
HEAD = """## Another calibration sample

Mean and standard deviation of the perplexity over {samples} disjoint samples of 8,192 tokens of `lee`, by
`python -m benchmarks.prune.calibration`, and in how many samples a method is ahead of the line above it. A line with
`correct` is in sequence, the others are one-shot."""
LAYERS = """### The same, layer by layer

Error of {rows} sampled rows of {layers} layers, relative to the dense output's energy on the same text (geometric mean
over the layers), mean and standard deviation over the {samples} samples, by
`python -m benchmarks.prune.calibration_layers`; *own* is the sample itself, the other texts are held out. *Ahead in*
is in how many samples a method has less error than the line above it. {order}"""


def section(folder: Path) -> str:
    """Both tables, each left out where nothing was measured; methods that do not have all samples are left out."""
    return "\n\n".join(filter(None, (_perplexities(folder), _layers(folder))))


def _perplexities(folder: Path) -> str:
    by_method: dict[tuple[str, str], dict[int, Line]] = {}
    for line in read(folder / CALIBRATION_CSV, Line):
        by_method.setdefault((line.pattern, line.method), {})[line.sample] = line
    values = {
        key: {text: [getattr(lines[sample], text) for sample in range(SAMPLES)] for text in TEXTS}
        for key, lines in by_method.items()
        if len(lines) == SAMPLES
    }
    if not values:
        return ""
    rows = list(_rows(values, TEXTS, lambda mean, spread: f"{mean:.1f} ± {spread:.1f}"))
    heads = ("pattern", "method", "lee.cor", "ahead in", "Wikipedia", "ahead in")
    return f"{HEAD.format(samples=SAMPLES)}\n\n{table(heads, rows, left=2)}".rstrip()


def _layers(folder: Path) -> str:
    lines = read(folder / calibration_layers.LAYERS_CSV, calibration_layers.Line)
    texts = ("calibration", *TEXTS)
    by_key: dict[tuple[str, str], dict[int, list[calibration_layers.Line]]] = {}
    for line in lines:
        by_key.setdefault((line.pattern, line.method), {}).setdefault(line.sample, []).append(line)
    layers = len({(line.block, line.layer) for line in lines})
    values = {
        key: {
            text: [_mean([getattr(line, text) for line in by_sample[sample]]) for sample in range(SAMPLES)]
            for text in texts
        }
        for key, by_sample in by_key.items()
        if len(by_sample) == SAMPLES and all(len(of_sample) == layers for of_sample in by_sample.values())
    }
    if not values:
        return ""
    rows = list(_rows(values, texts, lambda mean, spread: f"{mean:.4f} ± {spread:.4f}"))
    heads = ("pattern", "method", "own", "ahead in", "lee.cor", "ahead in", "Wikipedia", "ahead in")
    words = LAYERS.format(rows=calibration_layers.ROWS, layers=layers, samples=SAMPLES, order=_order(values))
    return f"{words}\n\n{table(heads, rows, left=2)}".rstrip()


def _mean(values: Sequence[float]) -> float:
    return float(np.exp(np.mean(np.log(values))))


def _order(values: dict[tuple[str, str], dict[str, list[float]]]) -> str:
    """In how many samples the order of the methods is that of their means, text by text."""
    told = []
    for pattern in sorted({key[0] for key in values}):
        found = {key: by_text for key, by_text in values.items() if key[0] == pattern}
        counts = []
        for text in ("calibration", *TEXTS):
            errors = np.array([by_text[text] for by_text in found.values()])
            wanted = errors.mean(axis=1).argsort(kind="stable")
            counts.append(
                sum(np.array_equal(errors[:, sample].argsort(kind="stable"), wanted) for sample in range(SAMPLES))
            )
        told.append(f"{', '.join(map(str, counts))} at {pattern}")
    counted = "; ".join(told)
    return f"All methods are in the order of their means in so many of the {SAMPLES} samples, text by text: {counted}."


def _rows(
    values: dict[tuple[str, str], dict[str, list[float]]], texts: Sequence[str], shown: Callable[[float, float], str]
) -> Iterator[tuple[str, ...]]:
    """A row a method, the worst of a pattern first, by the held-out news."""
    above = None
    for key in sorted(values, key=lambda key: (key[0], -float(np.mean(values[key]["lee_heldout"])))):
        cells = []
        for text in texts:
            own = values[key][text]
            ahead = "–"
            if above is not None and above[0] == key[0]:
                won = sum(one < other for one, other in zip(own, values[above][text], strict=True))
                ahead = f"{won} of {SAMPLES}"
            cells += [shown(float(np.mean(own)), float(np.std(own, ddof=1))), ahead]
        yield (key[0], method_cell(key[1]), *cells)
        above = key
