"""The section of the boards' page on sequential and one-shot: lines of ``study_sequence`` to Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from csv_lines import read
from study_sequence import PARTS, SEQUENCE, SEQUENCE_LAYERS, Errors, Perplexities

MODES = ("one-shot", "sequential")
TEXTS = {"lee": "`lee` (calibration)", "lee-heldout": "`lee.cor`", "wikipedia": "Wikipedia"}


def section(folder: Path) -> str:
    """The section, empty where nothing was measured."""
    models, layers = read(folder / SEQUENCE, Perplexities), read(folder / SEQUENCE_LAYERS, Errors)
    if not models or not layers:
        return ""
    kinds = list(dict.fromkeys(line.kind for line in layers))
    pairs = sorted({(line.pattern, line.method) for line in layers})
    return "\n\n".join(
        [
            HEAD,
            "\n".join(_perplexities(models)),
            BY_TEXT,
            "\n".join(
                _errors(
                    ("pattern", "method", "text"),
                    [
                        ((*pair, TEXTS[text]), [x for x in layers if (x.pattern, x.method, x.text) == (*pair, text)])
                        for pair in pairs
                        for text in TEXTS
                    ],
                )
            ),
            BY_KIND,
            "\n".join(
                _errors(
                    ("pattern", "method", "layers"),
                    [
                        (
                            (*pair, kind),
                            [x for x in layers if (x.pattern, x.method, x.text, x.kind) == (*pair, "lee", kind)],
                        )
                        for pair in pairs
                        for kind in kinds
                    ],
                )
            ),
        ]
    )


def _perplexities(models: Sequence[Perplexities]) -> list[str]:
    """Both modes side by side; the lesser of a text is bold."""
    heads = [f"{text}, {mode}" for text in TEXTS.values() for mode in MODES]
    table = [f"| pattern | method | {' | '.join(heads)} |", "|---|---|" + "---:|" * len(heads)]
    by_key = {(line.pattern, line.method, line.mode): line for line in models}
    for pattern, method in sorted({(line.pattern, line.method) for line in models}):
        pair = [by_key.get((pattern, method, mode)) for mode in MODES]
        if None in pair:
            continue
        cells = []
        for name in ("lee", "lee_heldout", "wikipedia"):
            values = [getattr(line, name) for line in pair]
            cells += [f"**{value:.2f}**" if value == min(values) else f"{value:.2f}" for value in values]
        table.append(f"| {pattern} | {method} | {' | '.join(cells)} |")
    return table


def _errors(keys: Sequence[str], groups: Sequence[tuple[Sequence[str], Sequence[Errors]]]) -> list[str]:
    """Means over layers; of each pair of modes the lesser error is bold."""
    heads = ("arriving", "own, sequential", "own, one-shot", "whole, sequential", "whole, one-shot")
    table = [f"| {' | '.join((*keys, *heads))} |", "|---|---|---|" + "---:|" * len(heads)]
    for key, lines in groups:
        weight = np.array([line.layers for line in lines])
        arriving, own, whole, own_other, whole_other = (
            float(np.average([getattr(line, part) for line in lines], weights=weight)) for part in PARTS
        )
        cells = [f"{arriving:.3f}"]
        for a, b in ((own, own_other), (whole, whole_other)):
            cells += [f"**{a:.3f}**" if a < b else f"{a:.3f}", f"**{b:.3f}**" if b < a else f"{b:.3f}"]
        table.append(f"| {' | '.join((*key, *cells))} |")
    return table


HEAD = """## Why masks alone lose in sequence"""
BY_TEXT = """By text, all layers but those of"""
BY_KIND = """By kind of layer, on the calibration text:"""
