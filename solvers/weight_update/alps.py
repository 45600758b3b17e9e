"""ALPS: ADMM with a penalty that grows with the mask's stability, then conjugate gradients on the mask it ends at.

In inputs scaled by ``e = diag(H)^(-1/2)``, ``H = G + λI``, with ``W' = W / e`` and ``H' = e H e``, an iteration is

    V ← (W'_0 H' - Y + ρD) (H' + ρI)⁻¹,    D ← the largest |V + Y/ρ|, the others 0,    Y ← Y + ρ(V - D).

Every third iteration ``ρ`` grows, by 1.3 where at least a tenth of the kept weights has changed since the third before,
by 1.2 where half a percent has, else by 1.1; where none has, the mask is final, and the system ``H'_SS v_S = (W'_0
H')_S`` of each row is solved by conjugate gradients from ``D``, preconditioned by ``diag(H')``, which is 1. (Meng et
al., arXiv 2406.07831, equations 4, 27 and 28, algorithms 1 and 2.) A target adds ``e T`` to ``W'_0 H'``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from fwbench.problem import Problem
from fwbench.stage import Context, Needs, Role, Stage, State, register

if TYPE_CHECKING:
    import torch

EVERY = 3  # iterations between two changes of the penalty
GROWTH = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))  # from which part of the kept weights changed on, by how much


@register
@dataclass(frozen=True)
class ALPS(Stage):
    """Alternate between the weights' least squares and the mask of the largest, ever closer; then refit on the mask.

    On an earlier mask only the refit is left. What differs from the paper: the ridge is relative to the mean diagonal
    of ``G`` (printed is the trace; the authors' code, by an account of it, has the mean), and conjugate gradients have
    a step length for each row, where the paper's have one for all: rows do not interact, so that no row is worse off.
    """

    ridge: float = 0.01  # relative to the mean diagonal of G, towards the trained weights
    rho: float = 0.1  # the first penalty, relative to the scaled diagonal
    iterations: int = 300  # at most, if the mask does not settle before
    gradients: int = 10  # steps of conjugate gradients

    name: ClassVar[str] = "alps"
    role: ClassVar[Role] = Role.UPDATE
    advice: ClassVar[str] = "For errors near `reswap`'s in less time, but for o_proj; not where masks alone may change."
    needs: ClassVar[Needs] = Needs.NOTHING
    uses: ClassVar[tuple[Needs, ...]] = (Needs.MASK,)
    source: ClassVar[str] = "Meng, Behdin, Wang and Mazumder, ALPS, NeurIPS 2024, arXiv 2406.07831"

    def __post_init__(self) -> None:
        if not (0 <= self.ridge < float("inf") and 0 < self.rho < float("inf")):
            raise ValueError(f"ridge must be at least 0 and rho above it, got {self.ridge!r} and {self.rho!r}")
        if self.iterations < 1 or self.gradients < 0:
            raise ValueError(
                f"iterations must be at least 1 and gradients 0, got {self.iterations} and {self.gradients}"
            )

    def run(self, problem: Problem, state: State, context: Context) -> State:
        import torch

        diagonal = problem.G.diagonal()
        alive = diagonal > 0
        H = problem.G.copy()
        H.ravel()[:: problem.n + 1] += self.ridge * float(diagonal.mean())
        scale = np.sqrt(np.where(alive, H.diagonal(), 1.0))
        H = np.where(alive & alive[:, None], H / scale / scale[:, None], 0.0)
        H.ravel()[:: problem.n + 1] = 1.0  # of dead inputs too, whose weights are taken to be zero and go first
        layer = torch.from_numpy(H).to(context.device)
        start = torch.from_numpy(problem.W * scale * alive).to(context.device)
        right = start @ layer
        if problem.T is not None:
            right += torch.from_numpy(np.where(alive, problem.T / scale, 0.0)).to(context.device)
        iterations, stopped = 0, ""
        if state.keep is None:
            D, keep, iterations, stopped = self._search(problem, layer, start, right, context)
        else:
            keep = torch.from_numpy(state.keep.copy()).to(context.device)
            D = start * keep
        D, steps, late = refine(layer, right, D, keep, self.gradients, context)
        mask = keep.cpu().numpy()
        new = np.where(alive, D.cpu().numpy() / scale, problem.W)  # a dead input's weight is as good as any
        weights = np.where(mask, new, 0).astype(np.float32)
        after = replace(state, keep=mask, relaxed=None, weights=weights, stopped=stopped or late)
        return after.count(iterations=iterations, gram_products=iterations + steps)

    def _search(
        self, problem: Problem, H: torch.Tensor, start: torch.Tensor, right: torch.Tensor, context: Context
    ) -> tuple[torch.Tensor, torch.Tensor, int, str]:
        """``D``, its mask, the number of iterations, and why they ended early."""
        import torch

        rho, kept = self.rho, int(start.numel() - problem.pattern.nearest(start).sum())
        values, vectors = torch.linalg.eigh(H)
        D, Y, before = start, torch.zeros_like(start), torch.zeros_like(start, dtype=torch.bool)
        inverse = _inverse(values, vectors, rho)
        for number in range(1, self.iterations + 1):
            if context.expired():
                pruned = problem.pattern.nearest(D)
                return torch.where(pruned, 0, D), ~pruned, number - 1, "deadline"
            V = (right - Y + rho * D) @ inverse
            near = V + Y / rho
            pruned = problem.pattern.nearest(near)
            D = torch.where(pruned, 0, near)
            Y = Y + rho * (V - D)
            if number % EVERY:
                continue
            changed = int((pruned != before).sum())
            if changed == 0:
                break
            rho *= next(factor for part, factor in GROWTH if changed >= part * kept)
            inverse, before = _inverse(values, vectors, rho), pruned
        return D, ~pruned, number, ""


def _inverse(values: torch.Tensor, vectors: torch.Tensor, rho: float) -> torch.Tensor:
    """``(H + ρI)⁻¹`` from the eigenvalues of ``H``, of which rounding may have made some negative."""
    return (vectors / (values.clamp(min=0) + rho)) @ vectors.T


def refine(
    H: torch.Tensor, right: torch.Tensor, V: torch.Tensor, keep: torch.Tensor, steps: int, context: Context
) -> tuple[torch.Tensor, int, str]:
    """Conjugate gradients for ``H_SS v_S = right_S`` of each row, all rows at once.

    Args:
        H: float64 ``(n, n)`` with ones on its diagonal, so that the preconditioner of Jacobi changes nothing.
        right: float64 ``(rows, n)``.
        V: float64 ``(rows, n)``, to begin with; zero outside of the mask.
        keep: bool ``(rows, n)``, the masks ``S``.
        steps: at most.
        context: ends it at its deadline.

    Returns:
        The weights, the number of steps, and why they ended early.
    """
    import torch

    rest = (right - V @ H) * keep
    along, square = rest, (rest * rest).sum(1, keepdim=True)
    for step in range(steps):
        if context.expired():
            return V, step, "deadline"
        product = (along @ H) * keep
        curvature = (along * product).sum(1, keepdim=True)
        length = torch.where(curvature > 0, square / curvature, 0)
        V = V + length * along
        rest = rest - length * product
        last, square = square, (rest * rest).sum(1, keepdim=True)
        along = rest + torch.where(last > 0, square / last, 0) * along
    return V, steps, ""
