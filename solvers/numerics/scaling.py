"""Powers of two that bring rows and layers into the range of float32 and of what proofs store; they round nothing.

An error goes with the square of the weights, so numbers in float32 underflow or overflow where float64 does not.
"""

from __future__ import annotations

import math

import numpy as np

from fwbench.verify.rounding import FARTHEST

ORDINARY = 2.0**60  # what a row's errors may be in float32 and in what proofs store, and one over what they may be


def scale_for(size: float) -> float:
    """A power of two for the weights of a row whose errors are of this ``size``: times it they are ordinary.

    1 where they are so already.
    """
    if not size > 0 or 1 / ORDINARY <= size <= ORDINARY:
        return 1.0
    return math.ldexp(1.0, min(max(-(math.frexp(size)[1] // 2), -FARTHEST), FARTHEST))


def in_range(
    W: np.ndarray, diagonal: np.ndarray, separable: bool, *terms: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Powers of two ``rows (rows, 1)`` and ``columns (n,)`` that bring a layer into the range of float32.

    ``W * rows * columns`` and ``G / columns / columns[:, None]`` have the same masks, and errors times ``rows²``. All
    are 1 where weights and inputs are ordinary. A column is 0 where the weights of an input that is always zero would
    overflow: ``G`` holds nothing there.

    Args:
        diagonal: of ``G``, ``(n,)``.
        separable: rows are independent; else they are scaled alike.
        terms: ``(rows, n)`` each, what else has to be in range: what convexifies each row, its linear term.
    """
    root = np.sqrt(np.maximum(diagonal, 0.0))
    sizes = np.array([float((np.abs(w) * root).max()) ** 2 for w in W])  # one by one: a layer in float64 is large
    for term in terms:
        if term is not None:
            sizes = np.maximum(sizes, np.abs(term).max(axis=1))
    rows = np.array([[scale_for(size)] for size in (sizes if separable else np.full(len(W), sizes.max()))])
    columns = np.array([1 / scale_for(size) for size in diagonal])
    dead = np.flatnonzero(diagonal <= 0)
    columns[dead[np.abs(W[:, dead] * rows).max(axis=0) > math.sqrt(ORDINARY)]] = 0.0
    return rows, columns
