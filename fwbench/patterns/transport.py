"""The transportation problem of transposable N:M: in an ``M x M`` block, ``count`` of each row and of each column.

Its constraint matrix, that of a bipartite graph, is totally unimodular: the polytope ``0 ≤ v ≤ 1`` with these sums has
masks for vertices, so the least sum over masks is the linear programme's (Hoffman and Kruskal 1956). Up to ``M = 4``
all masks are tried (90 for 2:4), beyond it is solved by shortest paths in float64.
"""

from __future__ import annotations

from functools import cache
from itertools import combinations, product
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

Array = Any  # numpy.ndarray or torch.Tensor

ENUMERATED = 4  # largest M whose masks are enumerated
BATCH = 1 << 16  # blocks whose masks are tried at once, to save memory


@cache
def masks(size: int, count: int) -> np.ndarray:
    """All blocks with ``count`` in each row and column, bool ``(masks, size, size)``; those of low indices first."""
    lines = [np.isin(np.arange(size), chosen) for chosen in combinations(range(size), count)]
    found = np.array([block for block in product(lines, repeat=size) if (np.sum(block, axis=0) == count).all()])
    found.setflags(write=False)
    return found


def least(blocks: Array, count: int) -> Array:
    """The mask of least sum of each block; of equal sums, where they are exact and M ≤ 4, the first of :func:`masks`.

    Args:
        blocks: ``(blocks, M, M)``, numpy or torch; infinite entries are shunned or sought before all else.
        count: of each row and each column, in 0..M.

    Returns:
        bool, the shape and device of ``blocks``.
    """
    xp, size = array_namespace(blocks), blocks.shape[-1]
    if count in (0, size):
        return xp.full(blocks.shape, count > 0, dtype=xp.bool, device=device(blocks))
    if size <= ENUMERATED:
        return _least_of_all(blocks, count)
    return xp.asarray(solved(_numpy(blocks), count)[0], device=device(blocks))


def solved(blocks: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mask of least sum of each block by shortest paths, and duals that show it, to rounding.

    With duals ``a`` of rows and ``b`` of columns, *any* numbers, every mask of a block sums to at least ``count (Σa +
    Σb) + Σ min(0, g_ij - a_i - b_j)``; with these the mask does.

    Args:
        blocks: ``(blocks, M, M)``.

    Returns:
        bool ``(blocks, M, M)``, and ``a`` and ``b``, float64 ``(blocks, M)``.
    """
    from fwbench.patterns.transport_numba import solve

    blocks = np.asarray(blocks, np.float64)
    top = np.where(np.isfinite(blocks), np.abs(blocks), 0.0).max(axis=(1, 2), keepdims=True)
    exponent = np.frexp(top)[1]  # in units of each block's largest entry no sum overflows
    costs = np.ascontiguousarray(finite(np.ldexp(blocks, -exponent)))
    pruned, alpha, beta = np.zeros(costs.shape, bool), np.zeros(costs.shape[:2]), np.zeros(costs.shape[:2])
    solve(costs, count, pruned, alpha, beta)
    return pruned, np.ldexp(alpha, exponent[:, 0]), np.ldexp(beta, exponent[:, 0])


def finite(blocks: Array) -> Array:
    """Infinite entries made so large that in each block no finite ones outweigh them."""
    xp = array_namespace(blocks)
    ordinary = xp.isfinite(blocks)
    if bool(xp.all(ordinary)):
        return blocks
    top = xp.max(xp.where(ordinary, xp.abs(blocks), 0.0), axis=(-2, -1), keepdims=True)
    far = 4.0 * blocks.shape[-1] ** 2 * xp.where(top > 0, top, 1.0)
    return xp.where(ordinary, blocks, xp.where(blocks > 0, far, -far))


def _least_of_all(blocks: Array, count: int) -> Array:
    xp, size = array_namespace(blocks), blocks.shape[-1]
    if blocks.dtype != xp.float32 or not bool(xp.all(xp.isfinite(blocks))):
        blocks = xp.astype(blocks, xp.float64)
    flat = xp.reshape(finite(blocks), (-1, size * size))
    every = masks(size, count).reshape(-1, size * size)
    table = xp.asarray(every.T.astype(np.float64), device=device(blocks))
    table = xp.astype(table, flat.dtype)
    parts = [xp.argmin(flat[first : first + BATCH] @ table, axis=1) for first in range(0, flat.shape[0], BATCH)]
    chosen = xp.asarray(every.copy(), device=device(blocks))
    return xp.reshape(xp.take(chosen, xp.concat(parts), axis=0), blocks.shape)


def _numpy(x: Array) -> np.ndarray:
    return x if isinstance(x, np.ndarray) else x.detach().cpu().numpy()
