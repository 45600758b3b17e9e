"""Optimal masks by enumeration: the oracle of the exact solvers, for problems small enough."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest

from fwbench.judge import count_reason
from fwbench.patterns import Transposable
from fwbench.problem import Problem
from fwbench.stage import State

LIMIT = 2_000_000  # masks of one row (of the layer, where the pattern does not separate)


def best_mask(problem: Problem) -> tuple[float, np.ndarray]:
    """The least error and a mask ``keep (rows, n)`` that has it, over all masks of the pattern.

    Raises:
        ValueError: there are too many masks to enumerate.
    """
    counts = problem.counts
    W = problem.W.astype(np.float64)
    T = np.zeros_like(W) if problem.T is None else problem.T
    offset = np.zeros(problem.rows) if problem.offset is None else problem.offset
    if isinstance(problem.pattern, Transposable):
        return _best(W, problem.G, T, offset, transposable_masks(problem.pattern, problem.shape))
    if not problem.pattern.separable:
        masks = row_masks(W.size, counts).reshape(-1, *problem.shape)
        return _best(W, problem.G, T, offset, masks)
    best = [
        _best(w[None], problem.G, t[None], own_offset, row_masks(problem.n, own)[:, None, :])
        for w, t, own_offset, own in zip(W, T, offset, counts.reshape(problem.rows, -1), strict=True)
    ]
    return float(sum(error for error, _ in best)), np.concatenate([keep for _, keep in best])


def row_masks(size: int, counts: np.ndarray) -> np.ndarray:
    """All pruned masks of ``size`` weights with ``counts[g]`` pruned in group ``g``: bool ``(masks, size)``."""
    width = size // len(counts)
    choices = [list(combinations(range(g * width, (g + 1) * width), int(count))) for g, count in enumerate(counts)]
    number = int(np.prod([float(len(choice)) for choice in choices]))
    if number > LIMIT:
        raise ValueError(f"{number} masks are too many to enumerate")
    pruned = np.array([[i for part in picked for i in part] for picked in product(*choices)], dtype=np.int64)
    masks = np.zeros((number, size), dtype=bool)
    np.put_along_axis(masks, pruned.reshape(number, -1), True, axis=1)
    return masks


def transposable_masks(pattern: Transposable, shape: tuple[int, int]) -> np.ndarray:
    """All pruned masks of a layer, bool ``(masks, rows, n)``: of N:M in each block those whose columns count alike."""
    (rows, n), of = shape, pattern.of
    blocks = row_masks(of * of, np.full(of, of - pattern.kept)).reshape(-1, of, of)
    blocks = blocks[(blocks.sum(axis=1) == of - pattern.kept).all(axis=1)]
    if len(blocks) ** (rows * n // of**2) > LIMIT:
        raise ValueError("there are too many masks to enumerate")
    bands = [np.concatenate(picked, axis=1) for picked in product(blocks, repeat=n // of)]
    return np.array([np.concatenate(picked) for picked in product(bands, repeat=rows // of)])


def _best(
    W: np.ndarray, G: np.ndarray, T: np.ndarray, offset: np.ndarray, pruned: np.ndarray
) -> tuple[float, np.ndarray]:
    """Least error over ``pruned (masks, rows, n)`` and its mask, True = stays."""
    change = pruned * W
    errors = np.einsum("mri,ij,mrj->m", change, G, change, optimize=True) + offset.sum()
    errors += 2 * np.einsum("mri,ri->m", change, T)
    best = int(errors.argmin())
    return float(errors[best]), ~pruned[best]


def assert_optimal(problem: Problem, after: State, relative: float = 1e-9, absolute: float = 1e-14) -> None:
    """An exact solver's answer is feasible, as good as enumeration's, proven, and its bound the optimum.

    The slack is ``relative`` to the optimum, and ``absolute`` to the layer's output.
    """
    best, _ = best_mask(problem)
    slack = relative * best + absolute * problem.total
    assert not count_reason(problem, after.keep), problem.name
    assert problem.error(after.keep) <= best + slack, problem.name
    assert after.lower == pytest.approx(best, abs=slack), problem.name
    assert after.proven, (problem.name, after.stopped)
    assert after.relaxed is None
