"""Which rows and columns of a model's layers the studies measure, and what those parts are called."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from fwbench.problem import Problem
from fwbench.problems.collections import one

BLOCKS = "3,13,23"
PATTERNS = "0.5,0.6,2:4"


def sample(problem: Problem, count: int) -> Problem:
    """``count`` rows of a layer, seeded by its name, in their order; the whole layer if it has no more."""
    if problem.rows <= count:
        return problem
    rng = np.random.default_rng(zlib.crc32(problem.name.encode()))
    rows = np.sort(rng.choice(problem.rows, count, replace=False))
    meta = {**problem.meta, "sampled_rows": " ".join(map(str, rows))}
    return replace(problem.part(rows, f"{problem.name}.r{count}"), meta=meta)


def sampled(
    blocks: Sequence[str], patterns: Sequence[str], layers: Sequence[str], count: int, model: str = "smollm2"
) -> Iterator[Problem]:
    """Samples of ``count`` rows, layer by layer, each under all patterns."""
    for block in blocks:
        for layer in layers:
            _, whole = one(f"{model}/{int(block):02}.{layer}")
            rows = sample(whole, count)
            for pattern in patterns:
                yield replace(rows.with_pattern(pattern), name=f"{rows.name}.{pattern}")


def place(name: str) -> tuple[str, str, str]:
    """(block, matrix, pattern) of a sample by its name."""
    _, block, layer, _, pattern = name.split(".", 4)
    return block, layer, pattern


def one_row(layer: Problem, row: int, n: int) -> Problem:
    """One row as a problem; with fewer columns than the layer's, at random."""
    if n == layer.n:
        return replace(layer.part([row], f"{layer.name}/{row}"), meta={})
    columns = np.sort(np.random.default_rng([row, n]).permutation(layer.n)[:n])
    return Problem(
        f"{layer.name}/{row}/{n}", layer.W[row : row + 1, columns], layer.G[np.ix_(columns, columns)], layer.pattern
    )


def selector_of(name: str) -> str:
    """What loads the layer of that name."""
    return name.replace(".", "/", 1)


def condition(G: np.ndarray) -> float:
    """The largest over the smallest eigenvalue; infinite if rounding makes the latter negative."""
    values = np.linalg.eigvalsh(G)
    return float(values[-1] / values[0]) if values[0] > 0 else float("inf")
