"""The section of the boards' page on sequential and one-shot: lines of ``sequence`` to Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from benchmarks.prune.groups import CALIBRATION, NAMES
from benchmarks.prune.sequence import ARRIVING_CSV, LAYERS_CSV, PARTS, SEQUENCE_CSV, Arriving, Errors, Perplexities
from benchmarks.shared.csv_lines import read
from benchmarks.shared.markdown import least_bold, method_cell, table

MODES = ("one-shot", "sequential")
Line = TypeVar("Line", Errors, Arriving)


def section(folder: Path) -> str:
    """The section, empty where nothing was measured."""
    models, layers = read(folder / SEQUENCE_CSV, Perplexities), read(folder / LAYERS_CSV, Errors)
    if not models or not layers:
        return ""
    reached = read(folder / ARRIVING_CSV, Arriving)
    pairs = sorted({(line.pattern, line.method) for line in layers})
    by_text = [(*pair, text) for pair in pairs for text in NAMES]
    by_kind = [(*pair, kind) for pair in pairs for kind in dict.fromkeys(line.kind for line in layers)]
    by_depth = [(*pair, depth) for pair in pairs for depth in dict.fromkeys(line.depth for line in layers)]
    tables = (
        _table("text", [((*key[:2], NAMES[key[2]]), _of(layers, *key), _of(reached, *key)) for key in by_text]),
        _table("layers", [(key, _of(layers, *key[:2], CALIBRATION, key[2]), []) for key in by_kind]),
        _table("layers", [(key, _of(layers, *key[:2], CALIBRATION, key[2]), []) for key in by_depth]),
    )
    return "\n\n".join([HEAD, _perplexities(models), BY_TEXT, tables[0], BY_KIND, tables[1], BY_DEPTH, tables[2]])


def _of(lines: Sequence[Line], pattern: str, method: str, text: str, group: str = "") -> list[Line]:
    """Of a group of layers, by kind or depth, or all."""
    key = (pattern, method, text)
    return [x for x in lines if (x.pattern, x.method, x.text) == key and group in ("", x.kind, x.depth)]


def _perplexities(models: Sequence[Perplexities]) -> str:
    """Both modes side by side; the lesser of a text is bold."""
    heads = [f"{text}, {mode}" for text in NAMES.values() for mode in MODES]
    rows = []
    by_key = {(line.pattern, line.method, line.mode): line for line in models}
    for pattern, method in sorted({(line.pattern, line.method) for line in models}):
        pair = [by_key[pattern, method, mode] for mode in MODES if (pattern, method, mode) in by_key]
        cells = []
        for name in ("lee", "lee_heldout", "wikipedia"):
            cells += least_bold([getattr(line, name) for line in pair], 2)
        if len(pair) == len(MODES):
            rows.append((pattern, method_cell(method), *cells))
    return table(("pattern", "method", *heads), rows, left=2).rstrip()


def _table(last: str, groups: Sequence[tuple[Sequence[str], Sequence[Errors], Sequence[Arriving]]]) -> str:
    """Means over layers; of each pair the lesser error is bold. ``Arriving`` is of the one-shot model."""
    with_other = any(other for _, _, other in groups)
    heads = ["arriving, sequential model", "one-shot model"] if with_other else ["arriving"]
    heads += ["own, sequential", "one-shot", "whole, sequential", "one-shot"]
    rows = []
    for (pattern, method, *rest), lines, other in groups:
        arriving, own, whole, own_one_shot, whole_one_shot = (_mean(lines, part) for part in PARTS)
        cells = [f"{arriving:.3f}"]
        if with_other:
            cells = least_bold([arriving, _mean(other, "arriving")], 3) if other else [*cells, "–"]
        cells += least_bold([own, own_one_shot], 3) + least_bold([whole, whole_one_shot], 3)
        rows.append((pattern, method_cell(method), *rest, *cells))
    return table(("pattern", "method", last, *heads), rows, left=3).rstrip()


def _mean(lines: Sequence[Line], part: str) -> float:
    return float(np.average([getattr(line, part) for line in lines], weights=[line.layers for line in lines]))


HEAD = """## Why masks alone lose in sequence

At 0.6 and 2:4, by `python -m benchmarks.prune.sequence`, from `sequence.csv`, `sequence_layers.csv` and
`sequence_arriving.csv`. It is not that they fit the calibration text: on that text, too, their perplexity is greater in
sequence than one-shot.

What a layer hands on is wrong by `W X − Ŵ X̂ = W (X − X̂) + (W − Ŵ) X̂`: what arrives from the blocks before it, and its
own error. In sequence a layer's solver sees its own error alone, on the inputs `X̂` that are wrong already. It lessens
that, but what arrives is about ten times as large, and a mask that keeps `W X̂` keeps that too: put into the sequential
model, the one-shot model's masks have the greater own error and yet the less whole one, most so in o_proj. Block after
block, more arrives than in the one-shot model. For SparseGPT the difference of the whole is a third as large, and less
arrives in sequence than one-shot: its updates rest on correlations of the inputs that are there, and those of the dense
model's inputs are wrong for them. With a part of what arrives made good (`correct=0.3`) a mask gives up own error, back
to about that of the one-shot model's masks, and less arrives than there, in every kind of layer and at every depth."""
BY_TEXT = """Squared errors in units of `‖W X‖²`, means over all layers; first tokens of windows left out. Own and whole
errors are on the sequential model's inputs, with its own `Ŵ` and with the one-shot model's:"""
BY_KIND = """By kind of layer, on the calibration text, in the sequential model:"""
BY_DEPTH = """By depth, the same:"""
