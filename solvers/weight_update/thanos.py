"""Thanos: prune block by block of columns, a row's weights of a block at once, and let what follows make it good.

Of the columns from ``j`` on, Wanda's score of the weights as they are now marks the least as many as are still to be
pruned; those of them in the block at hand go. With ``C = (G_j:,j: + λI)⁻¹`` a row that loses the weights ``q`` moves
by ``-w_q (C_qq)⁻¹ C_q,:``, the least squares under ``w_q = 0`` of all that is left. (Ilin and Richtarik, arXiv
2504.05346.) A target's linear term only moves the weights to begin with: by ``T (G + λI)⁻¹``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from fwbench import patterns
from fwbench.patterns import NM
from fwbench.problem import Problem
from fwbench.solvers.start.scores import input_norms
from fwbench.solvers.weight_update.sparsegpt import inverse_factor
from fwbench.stage import Context, Needs, Role, Stage, State, register

if TYPE_CHECKING:
    import torch

CHUNK_BYTES = 1 << 27  # of the matrices that are solved together


@register
@dataclass(frozen=True)
class Thanos(Stage):
    """Prune by blocks of columns, a row's weights of a block together; an earlier mask is kept if there is one.

    The paper's mask is over the layer, which is pattern ``unstructured:``; elsewhere each row, or group of N:M, is
    marked by itself. What differs: no rows are spared as outliers, as the pattern fixes each count, and the damping is
    SparseGPT's. The paper was read in summaries, so that its block sizes may differ.
    """

    damping: float = 0.01  # relative to the mean diagonal of G; raised where the factorisation fails
    blocksize: int = 128  # columns pruned at once

    name: ClassVar[str] = "thanos"
    role: ClassVar[Role] = Role.UPDATE
    needs_groups: ClassVar[bool] = True
    advice: ClassVar[str] = (
        "For a sweep like `sparsegpt`'s with exact updates of a block; not for the least error: `alps`."
    )
    needs: ClassVar[Needs] = Needs.NOTHING
    uses: ClassVar[tuple[Needs, ...]] = (Needs.MASK,)
    source: ClassVar[str] = "Ilin and Richtarik, Thanos, arXiv 2504.05346"

    def __post_init__(self) -> None:
        if not 0 <= self.damping < float("inf"):
            raise ValueError(f"damping must be a number of at least 0, got {self.damping!r}")
        if self.blocksize < 1:
            raise ValueError(f"blocksize must be at least 1, got {self.blocksize}")

    def run(self, problem: Problem, state: State, context: Context) -> State:
        import torch

        dead = problem.G.diagonal() <= 0
        U = inverse_factor(torch.from_numpy(problem.G.copy()).to(context.device), self.damping)
        W = torch.from_numpy(np.where(dead, 0.0, problem.W.astype(np.float64))).to(context.device)  # the dead go first
        if problem.T is not None:
            W += (torch.from_numpy(problem.T.copy()).to(context.device) @ U.T) @ U
        given = None if state.keep is None else torch.from_numpy(~state.keep).to(context.device)
        pruned, stopped = self._sweep(problem, W, U, given, context)
        mask = pruned.cpu().numpy()
        new = np.where(dead, problem.W, W.cpu().numpy())  # an input that is always zero: any weight is as good
        weights = np.where(mask, 0, new).astype(np.float32)
        return replace(state, keep=~mask, relaxed=None, weights=weights, stopped=stopped)

    def _sweep(
        self, problem: Problem, W: torch.Tensor, U: torch.Tensor, given: torch.Tensor | None, context: Context
    ) -> tuple[torch.Tensor, str]:
        """The pruned mask, and why it ended early; ``W`` is changed."""
        import torch

        norm = torch.from_numpy(input_norms(problem.G)).to(W)
        group = problem.group if isinstance(problem.pattern, NM) else 1
        width, left = -(-self.blocksize // group) * group, problem.counts.copy()
        pruned, first = torch.zeros_like(W, dtype=torch.bool) if given is None else given, 0
        while first < problem.n:
            last = min(first + width, problem.n)
            late = context.expired()
            if late:
                last = problem.n  # one mask for all that is left, and no updates
            if given is None:
                score = W[:, first:].abs() * norm[first:]
                if group > 1:
                    score, counts = score[:, : last - first], np.full(len(W) * (last - first) // group, left[0])
                    grouped = score.reshape(-1, group)
                else:
                    counts, grouped = left, score.reshape(len(left), -1)
                here = patterns.smallest(grouped, counts).reshape(score.shape)[:, : last - first]
                pruned[:, first:last] = here
                if group == 1:
                    left = left - here.reshape(len(left), -1).sum(1).cpu().numpy()
            if late:
                return pruned, "deadline"
            remove(W[:, first:], U[first:last, first:], pruned[:, first:last])
            first = last
        return pruned, ""


def remove(W: torch.Tensor, U: torch.Tensor, pruned: torch.Tensor) -> None:
    """Remove some of the first weights of each row at once; all weights, ``W (rows, m)``, are changed.

    Args:
        W: float64.
        U: the first ``b`` lines, ``(b, m)``, of the upper ``U`` with ``C = Uᵀ U``.
        pruned: bool ``(rows, b)``.
    """
    import torch

    width = pruned.shape[1]
    C = U[:, :width].T @ U[:, :width]
    most = int(pruned.sum(1).max())
    size = max(1, CHUNK_BYTES // (8 * max(1, most) ** 2))
    y = torch.zeros_like(W[:, :width])
    for start in range(0, len(W) if most else 0, size):
        rows = slice(start, start + size)
        index = torch.argsort(pruned[rows].to(torch.int8), dim=1, descending=True, stable=True)[:, :most]
        real = torch.gather(pruned[rows], 1, index)
        system = C[index[:, :, None], index[:, None, :]] * (real[:, :, None] & real[:, None, :])
        system.diagonal(dim1=1, dim2=2)[~real] = 1  # padding
        lost = torch.gather(W[rows, :width], 1, index) * real
        solved = torch.cholesky_solve(lost[:, :, None], torch.linalg.cholesky(system))[:, :, 0]
        y[rows] = y[rows].scatter_(1, index, solved * real)
    W -= (y @ U[:, :width].T) @ U
    W[:, :width][pruned] = 0
