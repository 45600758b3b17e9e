"""Projections on the positive semidefinite matrices of a batch, ``(rows, n, n)`` float32.

On the CPU by eigenvectors. Alternating directions project one matrix after the other, each near the last and with few
positive eigenvalues: so the space of these is kept, and led to the next matrix's by Chebyshev polynomials, which grow
where eigenvalues are positive (Y. Zhou, Y. Saad, M. Tiago and J. Chelikowsky, Self-consistent-field calculations using
Chebyshev-filtered subspace iteration, J. Comput. Phys. 219, 2006); now and then all eigenvectors are computed.

A GPU decomposes slowly and multiplies fast: there ``(W + |W|) / 2``, ``|W| = W sign(W)``, and the sign is Newton's and
Schulz's ``X ← 3/2 X - 1/2 X³`` with each step's ``X`` stretched as far as its spectrum allows (J. Chen and E. Chow, A
stable scaling of Newton-Schulz for improving the sign function computation of a Hermitian matrix, 2014). Eigenvalues
that are small beside the largest have no sign yet when it ends, and are as small an error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import torch

from fwbench.solvers.numerics import lapack

DEGREE = 6  # of the polynomials: with 3 some rows' bounds lose a thousandth, with 6 none was seen to
AFRESH = 40  # projections from one with all eigenvectors to the next
SPARE = 16  # eigenvectors that are kept beyond those of positive eigenvalues, or as many as a third of these
LARGE = 100  # below it all eigenvectors cost next to nothing
SMALLEST = 1e-4  # of a bound of the largest eigenvalue: from here on a sign is found
CLOSE = 1e-5  # to ±1


class Projection:
    """Nearest positive semidefinite matrices whose null spaces hold ``face (rows, n, groups)``, orthonormal.

    It remembers its last call for matrices near those; others cost more, and are no worse.
    """

    def __init__(self, face: torch.Tensor) -> None:
        self.face = face
        self.parts = [PositivePart() for _ in face]

    def __call__(self, W: torch.Tensor) -> torch.Tensor:
        W = W - self.face @ (self.face.mT @ W)
        W = W - (W @ self.face) @ self.face.mT
        W = (W + W.mT) / 2
        return by_eigenvalues(W, self.parts) if W.device.type == "cpu" else by_products(W)


def by_eigenvalues(W: torch.Tensor, parts: Sequence[PositivePart]) -> torch.Tensor:
    """The positive part of each symmetric matrix."""
    return torch.stack([part(one) for part, one in zip(parts, W, strict=True)])


class PositivePart:
    """``W ↦ Σ max(λ, 0) v vᵀ`` over the eigenpairs of ``W (n, n)``, for matrices that change little by little."""

    def __init__(self) -> None:
        self.left = 0  # calls until all eigenvectors are computed again
        self.low = 0.0  # the least eigenvalue then
        self.values = torch.zeros(0)  # (kept,) ascending, the largest of the last call
        self.vectors = torch.zeros(0, 0)  # (kept, n)

    def __call__(self, W: torch.Tensor) -> torch.Tensor:
        self.left -= 1
        if self.left <= 0 or not self._follow(W):
            self._begin(W)
        positive = self.values > 0
        return lapack.gram(self.vectors[positive] * self.values[positive].sqrt()[:, None])

    def _begin(self, W: torch.Tensor) -> None:
        """By all eigenvectors."""
        n = len(W)
        values, vectors = torch.linalg.eigh(W)
        positive = int((values > 0).sum())
        keep = min(n, positive + max(SPARE, positive // 3))
        self.values, self.vectors, self.low = values[n - keep :], vectors.T[n - keep :].contiguous(), float(values[0])
        self.left = AFRESH if n >= LARGE and keep <= n // 3 else 0

    def _follow(self, W: torch.Tensor) -> bool:
        """From the vectors of the last call; False if that fails, or leaves too few spare ones."""
        low, high = 1.02 * self.low, float(self.values[0])  # the eigenvalues between them are damped
        if low >= high:
            return False
        middle, half = (low + high) / 2, (high - low) / 2
        before, now = self.vectors, torch.add(lapack.product(self.vectors, W), self.vectors, alpha=-middle).div_(half)
        for _ in range(DEGREE - 1):
            before, now = now, torch.add(lapack.product(now, W), now, alpha=-middle).mul_(2 / half).sub_(before)
        now /= now.norm(dim=1, keepdim=True)
        across = now.mT.contiguous()
        factor, info = torch.linalg.cholesky_ex(lapack.product(now, across))
        reduced = lapack.product(lapack.product(now, W), across)
        if int(info) or not bool(reduced.isfinite().all()):
            return False
        solved = torch.linalg.solve_triangular(factor, (reduced + reduced.mT) / 2, upper=False)
        solved = torch.linalg.solve_triangular(factor, solved.mT, upper=False)
        self.values, rotation = torch.linalg.eigh((solved + solved.mT) / 2)
        back = torch.linalg.solve_triangular(factor.mT, rotation, upper=True)
        self.vectors = lapack.product(back.mT.contiguous(), now)
        return int((self.values <= 0).sum()) >= SPARE // 2


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
