"""The section of the boards' page on layer error and perplexity: lines of ``study_why`` to Markdown."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

KINDS = {"q": "q, k, v", "k": "q, k, v", "v": "q, k, v", "o": "o", "gate": "gate, up", "up": "gate, up", "down": "down"}
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
    if hybrids := _read(folder / "why_hybrids.csv"):
        parts.append(_hybrids(hybrids, boards, ours))
    if errors := _read(folder / "why_errors.csv"):
        parts.append(_errors(errors))
    return "\n\n".join([HEAD, *parts]) if parts else ""


def _read(path: Path) -> Lines:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _hybrids(lines: Lines, boards: Mapping[tuple[str, str, str], Mapping[str, str]], ours: str) -> str:
    """Perplexities of the mixed models, and how far each is from its base, in per cent."""
    base = {name: boards["one-shot", "0.5", method] for name, method in (("wanda+swap", "wanda+swap"), ("ours", ours))}
    table = [HYBRIDS, "", "| masks | but in these layers | lee.cor | Wikipedia |", "|---|---|---:|---:|"]
    for name in base:
        table.append(f"| {name} | – | {float(base[name]['lee-heldout']):.2f} | {float(base[name]['wikipedia']):.2f} |")
        for line in (line for line in lines if line["base"] == name):
            cells = [name, f"{line['group']}: {next(other for other in base if other != name)}"]
            for column, text in (("lee_heldout", "lee-heldout"), ("wikipedia", "wikipedia")):
                value = float(line[column])
                cells.append(f"{value:.2f} ({100 * (value / float(base[name][text]) - 1):+.1f} %)")
            table.append(f"| {' | '.join(cells)} |")
    return "\n".join(table)


def _errors(lines: Lines) -> str:
    """Error of ours in units of wanda+swap's, and both in units of Wanda's, by kind of layer and text."""
    table = [ERRORS, "", "| layers | text | ours / Wanda | wanda+swap / Wanda | ours / wanda+swap | ours better in |"]
    table += ["|---|---|---:|---:|---:|---:|"]
    whole = [line for line in lines if line["first"] == "False"]
    for kind in (*dict.fromkeys(KINDS.values()), "all"):
        for text, name in NAMES.items():
            chosen = [line for line in whole if line["text"] == text and kind in ("all", _kind(line["layer"]))]
            if not chosen:
                continue
            wanda, swap, ours = (np.array([float(line[key]) for line in chosen]) for key in ("wanda", "swap", "ours"))
            ratios = [_mean(ours / wanda), _mean(swap / wanda), _mean(ours / swap)]
            cells = [kind, name, *(f"{ratio:.3f}" for ratio in ratios), f"{(ours < swap).sum()} of {len(chosen)}"]
            table.append(f"| {' | '.join(cells)} |")
    return "\n".join(table)


def _kind(layer: str) -> str:
    return KINDS[layer.rpartition(".")[2].removesuffix("_proj")]


def _mean(ratios: np.ndarray) -> float:
    return float(np.exp(np.log(ratios).mean()))


HEAD = """## Why less layer error is not less perplexity"""
HYBRIDS = """### Mixed models"""
ERRORS = """### Layer error on texts that did not calibrate"""
