"""The section of the boards' page on layer error and perplexity: lines of ``study_why`` to Markdown."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

KINDS = {"q": "q, k, v", "k": "q, k, v", "v": "q, k, v", "o": "o", "gate": "gate, up", "up": "gate, up", "down": "down"}
DEPTHS = ("blocks 0 to 9", "blocks 10 to 19", "blocks 20 to 29")
ORDER = (*dict.fromkeys(KINDS.values()), *DEPTHS, "first tokens dense")
NAMES = {"lee": "`lee` (calibration)", "lee-heldout": "`lee.cor`", "wikipedia": "Wikipedia"}
Lines = Sequence[Mapping[str, str]]


def section(folder: Path, boards: Mapping[tuple[str, str, str], Mapping[str, str]], ours: str) -> str:
    """The section, empty where nothing was measured.

    Args:
        folder: of the study's two files.
        boards: rows of ``results.csv``, whose unmixed models the mixed ones stand beside.
        ours: name of our masks there.
    """
    parts = []
    if errors := _read(folder / "why_errors.csv"):
        parts.append(_errors(errors))
    if hybrids := _read(folder / "why_hybrids.csv"):
        parts.append(_hybrids(hybrids, boards, ours))
    return "\n\n".join([HEAD, *parts]) if parts else ""


def _read(path: Path) -> Lines:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _hybrids(lines: Lines, boards: Mapping[tuple[str, str, str], Mapping[str, str]], ours: str) -> str:
    """Perplexities of the mixed models, and how far each is from its base, in per cent."""
    base = {name: boards["one-shot", "0.5", method] for name, method in (("wanda+swap", "wanda+swap"), ("ours", ours))}
    table = [HYBRIDS, "", "| masks of | but the other's in | lee.cor | Wikipedia |", "|---|---|---:|---:|"]
    for name in base:
        table.append(f"| {name} | – | {float(base[name]['lee-heldout']):.2f} | {float(base[name]['wikipedia']):.2f} |")
        for line in sorted(
            (line for line in lines if line["base"] == name), key=lambda line: ORDER.index(line["group"])
        ):
            cells = [name, line["group"]]
            for column, text in (("lee_heldout", "lee-heldout"), ("wikipedia", "wikipedia")):
                value = float(line[column])
                cells.append(f"{value:.2f} ({100 * (value / float(base[name][text]) - 1):+.1f} %)")
            table.append(f"| {' | '.join(cells)} |")
    return "\n".join(table)


def _errors(lines: Lines) -> str:
    """Geometric means of error ratios, by kind of layer and text."""
    table = [ERRORS, "", "| layers | text | ours / Wanda | wanda+swap / Wanda | ours / wanda+swap | ours better in |"]
    table[-1] += " the same, first tokens |"
    table += ["|---|---|" + "---:|" * 5]
    for kind in ("all", *dict.fromkeys(KINDS.values())):
        for text, name in NAMES.items():
            chosen = [line for line in lines if line["text"] == text and kind in ("all", _kind(line["layer"]))]
            if not (whole := [line for line in chosen if line["first"] == "False"]):
                continue
            wanda, swap, ours = (_column(whole, key) for key in ("wanda", "swap", "ours"))
            first = [line for line in chosen if line["first"] == "True"]
            ratios = [ours / wanda, swap / wanda, ours / swap, _column(first, "ours") / _column(first, "swap")]
            means = [f"{np.exp(np.log(ratio).mean()):.3f}" for ratio in ratios]
            cells = [kind, name, *means[:3], f"{(ours < swap).sum()} of {len(whole)}", means[3]]
            table.append(f"| {' | '.join(cells)} |")
    return "\n".join(table)


def _column(lines: Lines, key: str) -> np.ndarray:
    return np.array([float(line[key]) for line in lines])


def _kind(layer: str) -> str:
    return KINDS[layer.rpartition(".")[2].removesuffix("_proj")]


HEAD = """## Why less layer error is not less perplexity

At 0.5, one-shot, `push(rounds=20)+swap` (here `ours`) has less error than `wanda+swap` in nearly every layer, and yet
more perplexity on Wikipedia. By `python benchmarks/study_why.py`, from `why_errors.csv` and `why_hybrids.csv`.

**The error is less on the calibration text, not on Wikipedia.** On the dense model's inputs from each text, the
advantage of `ours` is about half as large on `lee.cor`, news as the calibration is, and gone on Wikipedia: there
`ours` has the greater error in most layers of every kind but o_proj. Most of the advantage over Wanda's masks, too, is
of the calibration text. So layer error and perplexity agree in their order, where the error is measured on the text
that the perplexity is of: the better a solver fits the Gram matrix of 16,384 tokens of one kind of text, the more of
its gain belongs to them alone. More text mends it: see the sections on more calibration tokens, and on how many.

**First tokens bear a part of it.** Every token attends to the first of its window, whose activations are unlike all
others and which is one of 512 in the calibration. `ours` sacrifices its keys and values to the rest more than
`wanda+swap` does. With these restored as in the dense model, both sets gain on Wikipedia, `ours` about twice as much,
and about two fifths of the distance between them is gone.

**By kind and depth**, no single group bears it. Put into the model of `wanda+swap`, the masks of `ours` cost perplexity
on Wikipedia in gate and up, then in q, k and v, and in the last two thirds of the blocks; in down hardly any. Taken
out of the model of `ours`, those of down cost most: the effects do not add up. Only o_proj, where `ours` has less error
on Wikipedia too, is no worse in either. On `lee.cor` hardly any group costs anything."""
ERRORS = """### Layer error on texts that did not calibrate

Ratios of ‖(W − m∘W)X‖² are geometric means over layers. The last column is of the sequences' first tokens alone: one in
512, so nearly without weight in the calibration, although every later token attends to them."""
HYBRIDS = """### Mixed models

Perplexity of a model with one set's masks, and the other's in one group of layers; in brackets, against the unmixed
model. `first tokens dense`: the keys and values of each window's first token are the dense model's, in every block."""
