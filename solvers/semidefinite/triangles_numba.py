"""The numba kernels of ``triangles``: products of three weights, their multipliers, and the search for violated ones.

Of a triple ``i < j < k`` corner 0 is the product that is 1 on masks where all are equal, and corner 1, 2 or 3 that
where ``i``, ``j`` or ``k`` is unlike two that are equal; else each is 0 (``fwbench.verify.products``). They are linear
in the relaxed ``Y = (1, u)(1, u)ᵀ``.
"""

from __future__ import annotations

import numpy as np

from fwbench.solvers.numerics.jit import njit
from fwbench.verify.products import CORNERS

BINS = 4096  # of violations
SLACK = 1e-5  # more than the rounding of one
SIGN = (CORNERS[:, [0, 0, 1]] * CORNERS[:, [1, 2, 2]]).astype(np.float32)  # [corner]: of the pairs ij, ik, jk


@njit(nogil=True)
def value(P: np.ndarray, unit: np.ndarray, i: int, j: int, k: int, corner: int) -> float:
    """A product in ``Y = P * unit * unit[:, None]``; ``i``, ``j`` and ``k`` count from the border on."""
    ij, ik, jk = P[i, j] * unit[i] * unit[j], P[i, k] * unit[i] * unit[k], P[j, k] * unit[j] * unit[k]
    a, b, c = P[0, i] * unit[0] * unit[i], P[0, j] * unit[0] * unit[j], P[0, k] * unit[0] * unit[k]
    single = (np.float32(1) - a - b - c, a, b, c)[corner]
    return single + SIGN[corner, 0] * ij + SIGN[corner, 1] * ik + SIGN[corner, 2] * jk


@njit(nogil=True)
def ascend(
    P: np.ndarray, unit: np.ndarray, triple: np.ndarray, corner: np.ndarray, step: np.ndarray, multiplier: np.ndarray
) -> None:
    """``multiplier - step value``, where that is positive, in place."""
    for m in range(len(multiplier)):
        i, j, k = triple[m, 0] + 1, triple[m, 1] + 1, triple[m, 2] + 1
        multiplier[m] = max(multiplier[m] - step[m] * value(P, unit, i, j, k, corner[m]), np.float32(0))


@njit(nogil=True)
def subtract(
    C: np.ndarray, unit: np.ndarray, triple: np.ndarray, corner: np.ndarray, multiplier: np.ndarray, scale: float
) -> None:
    """Take from ``C`` the symmetric ``T`` whose ``⟨T, P⟩`` is the sum of the products times multiplier and scale."""
    for m in range(len(multiplier)):
        if multiplier[m] == 0:
            continue
        amount = np.float32(scale) * multiplier[m]
        half = amount / np.float32(2)
        i, j, k = triple[m, 0] + 1, triple[m, 1] + 1, triple[m, 2] + 1
        pairs = ((i, j), (i, k), (j, k))
        for pair in range(3):
            a, b = pairs[pair]
            part = SIGN[corner[m], pair] * half * unit[a] * unit[b]
            C[a, b] -= part
            C[b, a] -= part
        single = (i, j, k)
        for at in range(3):
            if corner[m] == 0 or corner[m] == at + 1:
                own = (-half if corner[m] == 0 else half) * unit[0] * unit[single[at]]
                C[0, single[at]] -= own
                C[single[at], 0] -= own
        if corner[m] == 0:
            C[0, 0] -= amount * unit[0] * unit[0]


@njit(nogil=True)
def least_product(u: np.ndarray, U: np.ndarray, i: int, j: int, k: int) -> tuple[int, float]:
    """The corner of a triple with the least product, and that product's negative.

    Two of a triple's products add up to two of a pair's, which McCormick's multipliers push above zero: so one at most
    is violated by much.
    """
    a, b, c = U[i, j], U[i, k], U[j, k]
    corner, amount = 0, u[i] + u[j] + u[k] - 1 - a - b - c
    for other, value in ((1, a + b - c - u[i]), (2, a + c - b - u[j]), (3, b + c - a - u[k])):
        if value > amount:
            corner, amount = other, value
    return corner, amount


@njit(nogil=True, fastmath={"reassoc", "contract", "nsz", "nnan"})
def most_violated(u: np.ndarray, U: np.ndarray, i: int, j: int) -> float:
    """The greatest such amount over ``k > j``, to rounding, of several ``k`` at once."""
    most, a, single = np.float32(-1), U[i, j], u[i] + u[j]
    minus, plus = U[i, j] - u[i], U[i, j] - u[j]
    across, below = U[i, j + 1 :], U[j, j + 1 :]
    third = u[j + 1 :]
    for k in range(len(third)):
        b, c = across[k], below[k]
        first = max(single + third[k] - np.float32(1) - a - b - c, minus + b - c)
        most = max(most, max(first, max(plus + c - b, b + c - a - third[k])))
    return float(most)


@njit(nogil=True)
def count(u: np.ndarray, U: np.ndarray, above: float, bins: np.ndarray) -> None:
    """How many triples are violated by how much: by more than ``above``, in bins of equal width up to 1."""
    n = len(u)
    for i in range(n):
        for j in range(i + 1, n):
            if most_violated(u, U, i, j) > above - SLACK:
                for k in range(j + 1, n):
                    _, amount = least_product(u, U, i, j, k)
                    if amount > above:
                        bins[min(int(amount * len(bins)), len(bins) - 1)] += 1


@njit(nogil=True)
def collect(
    u: np.ndarray, U: np.ndarray, above: float, least: int, triple: np.ndarray, corner: np.ndarray, amount: np.ndarray
) -> None:
    """Write those of the bins from ``least`` on."""
    n, found = len(u), 0
    lowest = max(above, least / BINS) - SLACK
    for i in range(n):
        for j in range(i + 1, n):
            if most_violated(u, U, i, j) > lowest:
                for k in range(j + 1, n):
                    of, by = least_product(u, U, i, j, k)
                    if by > above and min(int(by * BINS), BINS - 1) >= least:
                        triple[found, 0], triple[found, 1], triple[found, 2] = i, j, k
                        corner[found], amount[found] = of, by
                        found += 1
