"""The section of the boards' page on allocations: rows of ``allocation`` to Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.prune import allocation_bounds_page, boards
from benchmarks.prune.allocation import ALLOCATION_CSV, ALLOCATIONS, LAYERS_CSV, read
from benchmarks.prune.boards import CORRECTED, ONE_SHOT, RESIDUAL, RESULTS_CSV, TEXTS
from benchmarks.shared.markdown import least_bold, method_cell, table
from fwbench.problems.collections import SHAPES
from fwbench.pruning import Options
from fwbench.pruning.allocation import UNIFORM

BLOCKS = (range(1), range(1, 10), range(10, 20), range(20, 29), range(29, 30))
Rows = Mapping[tuple[str, ...], Mapping[str, str]]
HEAD = """## The same zeros, allocated to layers

`fwbench prune --allocation NAME`: the model has exactly as many zeros as with the same part of each row everywhere, but
not in the same layers. Perplexity on `lee.cor` / Wikipedia; the least of a pattern and method is bold. Error is the sum
over layers as on the boards, and no guide here: `owl` has less of it than uniform and more perplexity, `exact` more and
less. Minutes are the allocation's, CPU; in sequence, the whole command's. The objective and the reach of `exact` were
chosen on the first 2,048 tokens of both texts, at 0.6 (docs/decisions/pruning.md); the others are as published."""
SHARES = """### Where the zeros go

Part of the weights that is pruned, by kind of layer and by block, of the one-shot rows."""


def section(folder: Path) -> str:
    """The section, empty where nothing was measured."""
    if not (rows := read(folder / ALLOCATION_CSV)):
        return ""
    parts = [f"{HEAD}\n\n{_perplexities(_uniform(rows, boards.read(folder / RESULTS_CSV)) | rows)}"]
    if layers := read(folder / LAYERS_CSV):
        parts.append(f"{SHARES}\n\n{_shares(layers)}")
    if bounds := allocation_bounds_page.section(folder):
        parts.append(bounds)
    return "\n\n".join(part.rstrip() for part in parts)


def _uniform(rows: Rows, results: Mapping[tuple[str, str, str], Mapping[str, str]]) -> dict[tuple[str, ...], Any]:
    """The boards' rows of the same modes, patterns and methods, for what is not allocated."""
    found: dict[tuple[str, ...], Any] = {}
    for mode, pattern, method in {key[:3] for key in rows}:
        spec, named, part = method.partition(RESIDUAL)
        name = method if mode == ONE_SHOT else f"{spec}{CORRECTED}{Options.correct:g}{named}{part}"
        if row := results.get((mode, pattern, name)):
            found[mode, pattern, method, UNIFORM] = {
                **row,
                "allocation_full": UNIFORM,
                "allocation_cpu_minutes": "0",
            }
    return found


def _perplexities(rows: Rows) -> str:
    lines = []
    for mode, pattern, method in dict.fromkeys(key[:3] for key in _ordered(rows)):
        chosen = [rows[key] for key in _ordered(rows) if key[:3] == (mode, pattern, method)]
        pairs = [least_bold([float(row[text]) for row in chosen], 2) for text in TEXTS]
        for row, *pair in zip(chosen, *pairs, strict=True):
            one_shot = mode == ONE_SHOT
            minutes = row["allocation_cpu_minutes" if one_shot else "solve_cpu_minutes"]
            cells = (pattern, method_cell(method) + ("" if one_shot else f" ({mode})"), f"`{row['allocation_full']}`")
            lines.append((*cells, *pair, row["error"] if one_shot else "–", f"{float(minutes):.1f}"))
    head = ("pattern", "method", "allocation", "lee.cor", "Wikipedia", "error", "CPU min")
    return table(head, lines, left=3)


def _shares(layers: Rows) -> str:
    lines = {}
    for key in _ordered(layers):
        mode, pattern, _, name = key
        if mode == ONE_SHOT and name != UNIFORM:  # whatever the method: the allocation is made before
            found = {layer: float(share) for layer, share in layers[key].items() if layer.rpartition(".")[2] in SHAPES}
            kinds = [_mean({layer: found[layer] for layer in found if layer.endswith(kind)}) for kind in SHAPES]
            blocks = [_mean({layer: found[layer] for layer in found if _block(layer) in range_}) for range_ in BLOCKS]
            lines[pattern, name] = (pattern, f"`{name}`", *(f"{share:.3f}" for share in kinds + blocks))
    kinds_head = [kind.removesuffix("_proj") for kind in SHAPES]
    blocks_head = [f"blocks {range_[0]} to {range_[-1]}" if range_[1:] else f"block {range_[0]}" for range_ in BLOCKS]
    return table(("pattern", "allocation", *kinds_head, *blocks_head), lines.values(), left=2)


def _block(layer: str) -> int:
    return int(layer.split(".")[1])


def _mean(shares: Mapping[str, float]) -> float:
    """Part of the weights of some layers."""
    sizes = [math.prod(SHAPES[layer.rpartition(".")[2]]) for layer in shares]
    return sum(size * share for size, share in zip(sizes, shares.values(), strict=True)) / sum(sizes)


def _ordered(rows: Rows) -> list[tuple[str, ...]]:
    """Keys by pattern and method, and then in the order of the allocations."""
    return sorted(rows, key=lambda key: (*key[:3], ALLOCATIONS.index(key[3].partition("(")[0]), key[3]))
