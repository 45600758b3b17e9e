"""What arrives at a layer: the sums over its inputs, and the target that the dense model sets beside them.

A layer of a pruned model reads ``X̂`` where the dense one reads ``X``. Its output is wrong by ``W(X - X̂)`` before any
of its own weights is pruned, and weights can make good a part of that. With ``H = (X - X̂)X̂ᵀ``, what a ridge regression
of ``W(X - X̂)`` on ``X̂`` explains is ``SX̂``, ``S = W H (G + rI)⁻¹``. The target is then ``Y = (W + βS) X̂``, so ``T =
βSG`` and ``offset = β² diag(S G Sᵀ)`` (``fwbench.problem``). Without a ridge it is ``Y = W X̂ + βW(X - X̂)`` itself,
with ``β = 1`` the dense model's output: what no map of ``X̂`` explains is part of ``offset``.

A layer whose output is added to a stream that is wrong by ``D`` can make good a part of ``D`` too: with ``K = DX̂ᵀ``,
``S = (βW H + γK)(G + rI)⁻¹``, ``T = SG`` and ``offset = diag(S G Sᵀ)`` (``fwbench.pruning.residual``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

PANEL = 256  # columns of one product


class Target(NamedTuple):
    """What a problem holds of its target, float64; nothing where the target is what its own weights give."""

    T: np.ndarray | None = None  # (rows, n)
    offset: np.ndarray | None = None  # (rows,)


@dataclass(frozen=True)
class Arrived:
    """Over tokens, float64 ``(n, n)``: ``G = X̂X̂ᵀ``; ``H = (X - X̂)X̂ᵀ`` if ``X`` is known; ``E = (X - X̂)(X - X̂)ᵀ`` too
    where the sums are exact; ``K = DX̂ᵀ``, ``(rows, n)``, of layers that add to a stream, by name."""

    G: np.ndarray
    H: np.ndarray | None = None
    E: np.ndarray | None = None
    K: Mapping[str, np.ndarray] = field(default_factory=dict)

    def target(
        self,
        W: np.ndarray,
        strength: float,
        ridge: float = 0.0,
        beside: tuple[float, np.ndarray] | None = None,
    ) -> Target:
        """The target of a layer's problem; none where nothing arrives wrong.

        Args:
            W: float32 ``(rows, n)``.
            strength: ``β``.
            ridge: ``r``, relative to the mean diagonal of ``G``; 0 needs exact sums.
            beside: ``γ`` and the layer's ``K``, with a ridge.
        """
        arrives = self.H is not None and strength and self.H.any()
        if beside is not None and not (beside[0] and beside[1].any()):
            beside = None
        if not arrives and beside is None:
            return Target()
        assert self.H is not None
        W = W.astype(np.float64)
        if not ridge:
            assert self.E is not None
            assert beside is None
            return Target(strength * (W @ self.H), strength**2 * ((W @ self.E) * W).sum(axis=1))
        damped = self.G.copy()  # in place from here: of a wide layer each matrix is large
        damped.flat[:: len(damped) + 1] += ridge * float(self.G.diagonal().mean())
        explained = strength * (self.H.T @ W.T)
        if beside is not None:
            explained += beside[0] * beside[1].T
        S = np.linalg.solve(damped, explained).T
        del damped, explained
        T = S @ self.G
        T.setflags(write=False)  # the problem takes it as it is
        return Target(T, (T * S).sum(axis=1))


class ArrivingSum:
    """The sums so far, of the lower triangles only where the matrices are symmetric.

    Args:
        exact: with ``E``, and ``H`` of float64 products; else of float32's, which is enough for a ridge.
    """

    def __init__(self, exact: bool = False) -> None:
        self.tokens, self.exact = 0, exact
        self.G: torch.Tensor | None = None
        self.H: torch.Tensor | None = None
        self.E: torch.Tensor | None = None

    def add(self, X: torch.Tensor, dense: torch.Tensor | None = None) -> None:
        """Add inputs ``(..., n)``, and those that the dense model has in their place."""
        # float64 products: G is then positive semidefinite to 1e-15, and a proof loses nothing. By panels of the
        # lower triangle they cost 1.5 times the full float32 product and no second thread pool beside torch's;
        # scipy's dsyrk took 1.7 to 2.1 times (its threads and torch's fight), a full float64 product 2.3 times.
        X = X.reshape(-1, X.shape[-1]).double()
        self.G = _add_square(self.G, X)
        if dense is not None:
            D = dense.reshape(X.shape).double() - X
            if self.H is None:
                self.H = torch.zeros_like(self.G)
            self.H += D.T @ X if self.exact else D.float().T @ X.float()
            if self.exact:
                self.E = _add_square(self.E, D)
        self.tokens += X.shape[0]

    def arrived(self) -> Arrived:
        """The matrices; the sums are given up for them: of a wide layer they are large."""
        G, H, E = self.G, self.H, self.E
        assert G is not None
        self.G = self.H = self.E = None
        return Arrived(
            _whole(G, self.tokens),
            None if H is None else H.cpu().div_(self.tokens).numpy(),
            None if E is None else _whole(E, self.tokens),
        )


def _add_square(lower: torch.Tensor | None, X: torch.Tensor) -> torch.Tensor:
    """Add ``XᵀX`` of ``X (tokens, n)`` to the lower triangle of a sum, which begins with 0."""
    n = X.shape[1]
    if lower is None:
        lower = torch.zeros(n, n, dtype=torch.float64, device=X.device)
    for start in range(0, n, PANEL):
        end = min(start + PANEL, n)
        lower[start:, start:end].addmm_(X[:, start:].T, X[:, start:end])
    return lower


def _whole(lower: torch.Tensor, tokens: int) -> np.ndarray:
    """The symmetric matrix of a lower triangle, over tokens; read-only, so that problems share it."""
    lower = lower.cpu().div_(tokens)
    n = len(lower)
    for start in range(0, n, PANEL):
        end = min(start + PANEL, n)
        lower[start:end, end:] = lower[end:, start:end].T
        corner = lower[start:end, start:end].tril()
        lower[start:end, start:end] = corner + corner.tril(-1).T
    matrix = lower.numpy().copy()
    matrix.setflags(write=False)
    return matrix
