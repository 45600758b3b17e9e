"""The section of the boards' page on layer error and perplexity: lines of ``perplexity`` to Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.prune.groups import DEPTHS, KINDS, NAMES, group_of
from benchmarks.prune.perplexity import ERRORS_CSV, FIRST, HYBRIDS_CSV, Errors, Hybrid
from benchmarks.shared.csv_lines import read
from benchmarks.shared.markdown import method_cell, table
from fwbench.metrics import shifted_geometric_mean

ORDER = (*KINDS, *DEPTHS, FIRST)


def section(folder: Path, boards: Mapping[tuple[str, str, str], Mapping[str, str]], ours: str) -> str:
    """The section, empty where nothing was measured.

    Args:
        folder: of the study's two files.
        boards: rows of ``results.csv``, whose unmixed models the mixed ones stand beside.
        ours: name of our masks there.
    """
    parts = []
    if errors := read(folder / ERRORS_CSV, Errors):
        parts.append(_errors(errors))
    if hybrids := read(folder / HYBRIDS_CSV, Hybrid):
        parts.append(_hybrids(hybrids, boards, ours))
    return "\n\n".join([HEAD, *parts]) if parts else ""


def _hybrids(lines: Sequence[Hybrid], boards: Mapping[tuple[str, str, str], Mapping[str, str]], ours: str) -> str:
    """Perplexities of the mixed models, and how far each is from its base, in per cent."""
    base = {name: boards["one-shot", "0.5", method] for name, method in (("wanda+swap", "wanda+swap"), ("ours", ours))}
    rows = []
    for name, whole in base.items():
        unmixed = [float(whole[text]) for text in ("lee-heldout", "wikipedia")]
        rows.append((label := method_cell(name), "–", *(f"{value:.2f}" for value in unmixed)))
        for line in sorted((line for line in lines if line.base == name), key=lambda line: ORDER.index(line.group)):
            pairs = zip((line.lee_heldout, line.wikipedia), unmixed, strict=True)
            cells = (f"{value:.2f} ({100 * (value / own - 1):+.1f} %)" for value, own in pairs)
            rows.append((label, line.group, *cells))
    head = ("masks of", "but the other's in", "lee.cor", "Wikipedia")
    return f"{HYBRIDS}\n\n{table(head, rows, left=2)}".rstrip()


def _errors(lines: Sequence[Errors]) -> str:
    """Geometric means of error ratios, by kind of layer and text."""
    rows = []
    for kind in ("all", *KINDS):
        for text, name in NAMES.items():
            chosen = [line for line in lines if line.text == text and kind in ("all", group_of(line.layer)[0])]
            if not (whole := [line for line in chosen if not line.first]):
                continue
            wanda, swap, ours = (_column(whole, key) for key in ("wanda", "swap", "ours"))
            first = [line for line in chosen if line.first]
            ratios = [ours / wanda, swap / wanda, ours / swap, _column(first, "ours") / _column(first, "swap")]
            means = [f"{shifted_geometric_mean(ratio):.3f}" for ratio in ratios]
            rows.append((kind, name, *means[:3], f"{(ours < swap).sum()} of {len(whole)}", means[3]))
    head = ("layers", "text", "ours / Wanda", "SparseSwaps / Wanda", "ours / SparseSwaps", "ours better in")
    return f"{ERRORS}\n\n{table((*head, 'the same, first tokens'), rows, left=2)}".rstrip()


def _column(lines: Sequence[Errors], key: str) -> np.ndarray:
    return np.array([getattr(line, key) for line in lines])


HEAD = """## Why less layer error is not less perplexity

At 0.5, one-shot, `push(rounds=20)+swap` (here `ours`) has less error than `SparseSwaps` in nearly every layer, and yet
more perplexity on Wikipedia. By `python -m benchmarks.prune.perplexity`, from `why_errors.csv` and `why_hybrids.csv`.

**The error is less on the calibration text, not on Wikipedia.** On the dense model's inputs from each text, the
advantage of `ours` is about half as large on `lee.cor`, news as the calibration is, and gone on Wikipedia: there
`ours` has the greater error in most layers of every kind but o_proj. Most of the advantage over Wanda's masks, too, is
of the calibration text. So layer error and perplexity agree in their order, where the error is measured on the text
that the perplexity is of: the better a solver fits the Gram matrix of 16,384 tokens of one kind of text, the more of
its gain belongs to them alone. More text mends it: see the sections on more calibration tokens, and on how many.

**First tokens bear a part of it.** Every token attends to the first of its window, whose activations are unlike all
others and which is one of 512 in the calibration. `ours` sacrifices its keys and values to the rest more than
`SparseSwaps` does. With these restored as in the dense model, both sets gain on Wikipedia, `ours` about twice as much,
and about two fifths of the distance between them is gone.

**By kind and depth**, no single group bears it. Put into the model of `SparseSwaps`, the masks of `ours` cost
perplexity on Wikipedia in gate and up, then in q, k and v, and in the last two thirds of the blocks; in down hardly
any. Taken out of the model of `ours`, those of down cost most: the effects do not add up. Only o_proj, where `ours` has
less error on Wikipedia too, is no worse in either. On `lee.cor` hardly any group costs anything."""
ERRORS = """### Layer error on texts that did not calibrate

Ratios of ‖(W − m∘W)X‖² are geometric means over layers. The last column is of the sequences' first tokens alone: one in
512, so nearly without weight in the calibration, although every later token attends to them."""
HYBRIDS = """### Mixed models

Perplexity of a model with one set's masks, and the other's in one group of layers; in brackets, against the unmixed
model. `first tokens dense`: the keys and values of each window's first token are the dense model's, in every block."""
