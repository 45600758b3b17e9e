"""ADMM: weights that answer for the pruned ones, and a mask that grows while they do.

With inputs scaled to norm 1 (``G' = G / (s sᵀ)``, ``W' = W s``, ``s_j = ‖X_j‖``), damped, each iteration prunes the
smallest ``|W' + U|``, projects ``Z = (W' + U)∘m``, and solves ``W' ← (W'_0 G' + ρ(Z - U)) (G' + ρI)⁻¹``; in the first
iterations the pruned count rises to the pattern's by a cubic law. (Boža, arXiv 2401.02938, algorithms 1 and 2.)
A target adds ``T' = T / s`` to ``W'_0 G'``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from fwbench.problem import Problem
from fwbench.stage import Context, Needs, Role, Stage, State, register

if TYPE_CHECKING:
    import torch


@register
@dataclass(frozen=True)
class ADMM(Stage):
    """Alternate between the weights' least squares and their mask; an earlier mask is kept if there is one."""

    damping: float = 0.1  # relative to the mean diagonal of the scaled G
    rho: float = 1.0  # penalty, in the same unit
    iterations: int = 20
    gradual: int = 15  # iterations over which the mask grows

    name: ClassVar[str] = "admm"
    role: ClassVar[Role] = Role.UPDATE
    advice: ClassVar[str] = (
        "For mask and weights at once in little time, the best buy in `prune`; not where weights must stay as they are."
    )
    needs: ClassVar[Needs] = Needs.NOTHING
    uses: ClassVar[tuple[Needs, ...]] = (Needs.MASK,)
    source: ClassVar[str] = "Boža, Fast and Effective Weight Update for Pruned LLMs, TMLR 2024, arXiv 2401.02938"

    def __post_init__(self) -> None:
        if not (0 <= self.damping < float("inf") and 0 < self.rho < float("inf")):
            raise ValueError(f"damping must be at least 0 and rho above it, got {self.damping!r} and {self.rho!r}")
        if self.iterations < 1 or self.gradual < 0:
            raise ValueError(f"iterations must be at least 1, got {self.iterations} ({self.gradual} gradual)")

    def run(self, problem: Problem, state: State, context: Context) -> State:
        import torch

        norm = np.sqrt(np.maximum(problem.G.diagonal(), 0.0))
        alive = norm > 0
        scale = np.where(alive, norm, 1.0)
        G = torch.from_numpy(problem.G / scale / scale[:, None]).to(context.device)
        start = torch.from_numpy(problem.W * norm).to(context.device)  # float64
        G += self.damping * float(alive.mean()) * torch.eye(problem.n, dtype=G.dtype, device=G.device)
        given = torch.from_numpy(~state.keep).to(context.device) if state.keep is not None else None
        target = start @ G  # the right-hand side of the weights' least squares
        if problem.T is not None:
            target += torch.from_numpy(problem.T / scale).to(context.device)
        pruned, W, stopped = self._iterate(problem, G, start, target, given, context)
        keep = ~pruned.cpu().numpy()
        new = np.where(alive, W.cpu().numpy() / scale, problem.W)  # a dead input's weight is as good as any
        weights = np.where(keep, new, 0).astype(np.float32)
        return replace(state, keep=keep, relaxed=None, weights=weights, stopped=stopped)

    def _iterate(
        self,
        problem: Problem,
        G: torch.Tensor,
        start: torch.Tensor,
        target: torch.Tensor,
        given: torch.Tensor | None,
        context: Context,
    ) -> tuple[torch.Tensor, torch.Tensor, str]:
        """Pruned mask, ``W' + U`` at the end, and why it ended early."""
        import torch

        eye = torch.eye(len(G), dtype=G.dtype, device=G.device)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(G + self.rho * eye))
        W, U = start, torch.zeros_like(start)
        pruned, share, stopped = given, 0.0, ""
        for number in range(self.iterations):
            if context.expired():
                stopped = "deadline"
                break
            if given is None and share < 1:
                share = 1 - (1 - min(1.0, (number + 1) / max(self.gradual, 1))) ** 3
                pruned = problem.pattern.nearest(W + U, share)
            assert pruned is not None
            Z = torch.where(pruned, 0, W + U)
            U = U + W - Z
            W = (target + self.rho * (Z - U)) @ inverse
        if given is None and share < 1:  # it ended before the mask had grown
            pruned = problem.pattern.nearest(W + U)
        assert pruned is not None
        return pruned, W + U, stopped
