"""Transportation problems by successive shortest paths, block after block: many small ones, each exact."""

from __future__ import annotations

import numba
import numpy as np


@numba.njit(cache=True, nogil=True)
def solve(costs, count, pruned, alpha, beta):
    """Fill in for each block the mask of least cost, and its duals.

    Row by row one unit more is sent along a shortest path in the residual graph, by Dijkstra on costs that the duals
    keep nonnegative (Edmonds and Karp 1972). A column with room left has a dual of 0.

    Args:
        costs: float64 ``(blocks, M, M)``, finite; count: of each row and each column of a block.
        pruned: bool, as ``costs``, False; alpha, beta: float64 ``(blocks, M)``, zeros, of rows and of columns.
    """
    size = costs.shape[1]
    row_far, column_far = np.empty(size), np.empty(size)
    row_from, column_from = np.empty(size, np.int64), np.empty(size, np.int64)
    row_done, column_done = np.empty(size, np.bool_), np.empty(size, np.bool_)
    filled = np.empty(size, np.int64)
    for block in range(costs.shape[0]):
        cost, mask, a, b = costs[block], pruned[block], alpha[block], beta[block]
        filled[:] = 0
        for source in range(size):
            a[source] = (cost[source] - b).min()
            for _ in range(count):
                row_far[:], column_far[:] = np.inf, np.inf
                row_done[:], column_done[:] = False, False
                row_far[source] = 0.0
                while True:
                    row, column, far = -1, -1, np.inf
                    for k in range(size):
                        if not row_done[k] and row_far[k] < far:
                            row, far = k, row_far[k]
                    for k in range(size):
                        if not column_done[k] and column_far[k] < far:
                            column, far = k, column_far[k]
                    if column >= 0:
                        if filled[column] < count:
                            break
                        column_done[column] = True
                        for k in range(size):
                            if mask[k, column] and not row_done[k]:
                                reach = far + max(a[k] + b[column] - cost[k, column], 0.0)
                                if reach < row_far[k]:
                                    row_far[k], row_from[k] = reach, column
                    else:
                        row_done[row] = True
                        for k in range(size):
                            if not mask[row, k] and not column_done[k]:
                                reach = far + max(cost[row, k] - a[row] - b[k], 0.0)
                                if reach < column_far[k]:
                                    column_far[k], column_from[k] = reach, row
                for k in range(size):
                    if row_done[k]:
                        a[k] += far - row_far[k]
                    if column_done[k]:
                        b[k] -= far - column_far[k]
                filled[column] += 1
                while True:
                    row = column_from[column]
                    mask[row, column] = True
                    if row == source:
                        break
                    column = row_from[row]
                    mask[row, column] = False
