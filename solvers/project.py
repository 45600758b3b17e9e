"""Projections on the positive semidefinite matrices of a batch, ``(rows, n, n)`` float32.

On the CPU by eigendecompositions. A GPU decomposes slowly and multiplies fast: there ``(W + |W|) / 2``, ``|W| = W
sign(W)``, and the sign is Newton's and Schulz's ``X ← 3/2 X - 1/2 X³`` with each step's ``X`` stretched as far as its
spectrum allows (J. Chen and E. Chow, A stable scaling of Newton-Schulz for improving the sign function computation of
a Hermitian matrix, 2014). Eigenvalues that are small beside the largest have no sign yet when it ends, and are as
small an error.
"""

from __future__ import annotations

import math
from functools import cache

import torch

SMALLEST = 1e-4  # of a bound of the largest eigenvalue: from here on a sign is found
CLOSE = 1e-5  # to ±1


def project(W: torch.Tensor, face: torch.Tensor) -> torch.Tensor:
    """Nearest positive semidefinite matrices whose null spaces hold ``face (rows, n, groups)``, orthonormal."""
    W = W - face @ (face.mT @ W)
    W = W - (W @ face) @ face.mT
    W = (W + W.mT) / 2
    return by_eigenvalues(W) if W.device.type == "cpu" else by_products(W)


def by_eigenvalues(W: torch.Tensor) -> torch.Tensor:
    """The positive part of each symmetric matrix, from the smaller half of its spectrum."""
    return torch.stack([_positive(one) for one in W])


def _positive(W: torch.Tensor) -> torch.Tensor:
    values, vectors = torch.linalg.eigh(W)
    first = int((values < 0).sum())
    if first > len(values) // 2:
        part = vectors[:, first:] * values[first:].sqrt()
        return part @ part.T
    part = vectors[:, :first] * (-values[:first]).sqrt()
    return W + part @ part.T


def by_products(W: torch.Tensor) -> torch.Tensor:
    """The positive part of each symmetric matrix, to ``SMALLEST`` of its norm."""
    entry = W.abs().amax(dim=(1, 2), keepdim=True).clamp(min=torch.finfo(W.dtype).tiny)  # so that no power overflows
    X = W / entry
    X = X / (X @ X).square().sum(dim=(1, 2), keepdim=True).clamp(min=1) ** 0.25  # Σλ⁴: above the largest eigenvalue
    for once, cubed in _steps():
        X = torch.baddbmm(X, X, X @ X, beta=once, alpha=cubed)
    positive = torch.baddbmm(W, W, X, beta=0.5, alpha=0.5)
    return (positive + positive.mT) / 2


@cache
def _steps() -> list[tuple[float, float]]:
    """Factors of ``X`` and ``X³`` of each step: what is above ``low`` before it is above the next ``low`` after it."""
    low, steps = SMALLEST, []
    while 1 - low > CLOSE:
        stretch = math.sqrt(3 / (1 + low + low * low))
        steps.append((1.5 * stretch, -0.5 * stretch**3))
        low = 1.5 * stretch * low - 0.5 * (stretch * low) ** 3
    return steps
