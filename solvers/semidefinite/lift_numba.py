"""The entrywise work of the alternating directions on a CPU: arrays are read once.

Of ``doubly_nonnegative`` and ``mccormick``. Matrices are float32 and symmetric, of one row of the layer.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from fwbench.solvers.numerics.jit import fast


def row_by_row(kernel: Callable, A: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """``lowered`` or ``lifted`` of each row's matrix."""
    size = t.shape[1] if kernel is lifted else t.shape[1] // 2 + 1
    out = A.new_empty(len(A), size, size)
    for one, own, to in zip(A, t, out, strict=True):
        kernel(one.numpy(), own.numpy(), to.numpy())
    return out


@fast
def prox_entries(P: np.ndarray, C: np.ndarray, M: np.ndarray, relaxation: np.float32, out: np.ndarray) -> None:
    """``relaxation max(P - C - M, 0) + (1 - relaxation) P + M``."""
    rest = np.float32(1) - relaxation
    for i in range(len(P)):
        for j in range(len(P)):
            p, m = P[i, j], M[i, j]
            out[i, j] = relaxation * max(p - C[i, j] - m, np.float32(0)) + rest * p + m


@fast
def lowered(P: np.ndarray, t: np.ndarray, out: np.ndarray) -> None:
    """``Fᵀ P F (n + 1, n + 1)`` of ``P (2n + 1, 2n + 1)``; ``F`` maps ``(1, u)`` to ``t (1, u, 1 - u)``."""
    n = len(out) - 1
    out[0, :] = 0
    corner = np.float64(0)
    for i in range(n):
        a, b = 1 + i, 1 + n + i
        below = np.float32(0)
        for j in range(n):
            complement = t[b] * P[b, 1 + n + j] * t[1 + n + j]
            mixed = t[b] * P[b, 1 + j] * t[1 + j] - complement
            out[a, 1 + j] = t[a] * (P[a, 1 + j] * t[1 + j] - P[a, 1 + n + j] * t[1 + n + j]) - mixed
            out[0, 1 + j] += mixed
            below += complement
        corner += below
        out[0, a] += t[0] * (P[0, a] * t[a] - P[0, b] * t[b])
        corner += 2 * t[0] * P[0, b] * t[b]
    out[0, 0] = t[0] * P[0, 0] * t[0] + corner
    out[1:, 0] = out[0, 1:]


@fast
def lifted(S: np.ndarray, t: np.ndarray, out: np.ndarray) -> None:
    """``F S Fᵀ``, the other way."""
    n = len(S) - 1
    out[0, 0] = t[0] * S[0, 0] * t[0]
    for i in range(n):
        a, b = 1 + i, 1 + n + i
        out[0, a] = out[a, 0] = t[0] * S[0, a] * t[a]
        out[0, b] = out[b, 0] = t[0] * (S[0, 0] - S[0, a]) * t[b]
        rest = S[0, 0] - S[0, a]
        for j in range(n):
            s = S[a, 1 + j]
            out[a, 1 + j] = t[a] * s * t[1 + j]
            out[a, 1 + n + j] = t[a] * (S[0, a] - s) * t[1 + n + j]
            out[b, 1 + j] = t[b] * (S[0, 1 + j] - s) * t[1 + j]
            out[b, 1 + n + j] = t[b] * (rest - S[0, 1 + j] + s) * t[1 + n + j]
