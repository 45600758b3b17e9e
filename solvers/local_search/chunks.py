"""Masks improved some rows at a time, by a descent that carries each row's Gram product along."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fwbench.problem import Problem
from fwbench.solvers.numerics.threads import numba_threads
from fwbench.stage import Context

CHUNK_ROWS = 64  # between two looks at the clock

Descend = Callable[[slice, np.ndarray, np.ndarray, np.ndarray], None]


def by_rows(problem: Problem, keep: np.ndarray, context: Context, descend: Descend) -> tuple[np.ndarray, str]:
    """The masks that a descent makes; a row for which its own sums lied keeps its mask.

    Args:
        problem: with or without a target.
        keep: bool ``(rows, n)``.
        context: whose deadline ends it between chunks.
        descend: called with rows, their weights, ``(w∘u) G + t`` and pruned indicators ``u``, bool, float64 the rest,
            ``(rows of the chunk, n)``; it overwrites the last two.

    Returns:
        The masks, bool ``(rows, n)``, and why it ended early, else empty.
    """
    W, pruned = problem.W.astype(np.float64), ~keep
    with numba_threads(context.threads):
        for first in range(0, problem.rows, CHUNK_ROWS):
            if context.expired():
                return ~pruned, "deadline"
            rows = slice(first, first + CHUNK_ROWS)
            half = (W[rows] * pruned[rows]) @ problem.G
            if problem.T is not None:
                half += problem.T[rows]
            found = pruned[rows].copy()
            descend(rows, W[rows], half, found)
            worse = problem.row_errors(found, rows) > problem.row_errors(pruned[rows], rows)  # carried along, it
            found[worse] = pruned[rows][worse]  # may have drifted
            pruned[rows] = found
    return ~pruned, ""
