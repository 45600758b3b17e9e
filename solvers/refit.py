"""Least-squares refit: the kept weights that answer best for the pruned ones, on a mask that is given.

For one row with kept columns S and pruned columns P the change ``δ`` of the kept weights minimises
``‖(w - ŵ) X‖² / tokens + λ‖δ‖²``: ``(G_SS + λI) δ = G_SP w_P``. At ``δ = 0`` this is the error of the mask alone,
so the refit never raises it, whatever ``λ``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from fwbench.problem import Problem
from fwbench.solvers.scores import keep_highest, wanda_score
from fwbench.stage import Context, Role, Stage, State, register

if TYPE_CHECKING:
    import torch

CHUNK_BYTES = 1 << 27  # of the matrices that are solved together
LEAST_RIDGE = 1e-10  # relative to the mean diagonal: where a singular G begins to be damped
RAISE = 10.0


@register
@dataclass(frozen=True)
class Refit(Stage):
    """Refit the kept weights of each row by least squares; on Wanda's mask where none is given."""

    ridge: float = 1e-3  # relative to the mean diagonal of G, towards the trained weights

    name: ClassVar[str] = "refit"
    role: ClassVar[Role] = Role.UPDATE
    source: ClassVar[str] = "least squares on the support, as in Meng et al., ALPS, arXiv 2406.07831, section 3.2"

    def __post_init__(self) -> None:
        if not 0 <= self.ridge < float("inf"):
            raise ValueError(f"ridge must be a number of at least 0, got {self.ridge!r}")

    def run(self, problem: Problem, state: State, context: Context) -> State:
        import torch

        keep = state.keep if state.keep is not None else keep_highest(problem, wanda_score(problem.W, problem.G))
        G = torch.from_numpy(problem.G.copy()).to(context.device)
        W = torch.from_numpy(problem.W.astype(np.float64)).to(context.device)
        mask = torch.from_numpy(keep.copy()).to(context.device)
        new = torch.where(mask, W, 0)
        # rows of like counts together: they are padded to the largest of their chunk
        order = torch.from_numpy(np.argsort(keep.sum(1), kind="stable")).to(context.device)
        most = int(keep.sum(1).max(initial=1)) or 1
        size = max(1, CHUNK_BYTES // (8 * most * most))
        stopped = ""
        for start in range(0, problem.rows, size):
            if context.expired():
                stopped = "deadline"  # the rows that are left keep their trained weights
                break
            rows = order[start : start + size]
            new[rows] += change(G, W[rows], mask[rows], self.ridge)
        weights = new.to("cpu", torch.float32).numpy()
        return replace(state, keep=keep, relaxed=None, weights=weights, stopped=stopped)


def change(G: torch.Tensor, W: torch.Tensor, keep: torch.Tensor, ridge: float) -> torch.Tensor:
    """Best change of the kept weights, float64 ``(rows, n)``, zero where pruned.

    Args:
        G: float64 ``(n, n)``.
        W: float64 ``(rows, n)``, the trained weights.
        keep: bool ``(rows, n)``.
        ridge: relative to the mean diagonal of ``G``; raised tenfold until every row's system can be factorised.

    Raises:
        ValueError: no ridge below the diagonal itself is enough.
    """
    import torch

    mean = float(G.diagonal().mean())
    most = int(keep.sum(1).max())
    if mean <= 0 or most == 0:
        return torch.zeros_like(W)
    index = torch.argsort(keep.to(torch.int8), dim=1, descending=True, stable=True)[:, :most]  # kept first, in order
    valid = torch.gather(keep, 1, index)
    pairs = valid[:, :, None] & valid[:, None, :]
    A = torch.where(pairs, G[index[:, :, None], index[:, None, :]], 0)
    A.diagonal(dim1=1, dim2=2)[~valid] = mean  # padding
    right = torch.gather(torch.where(keep, 0, W) @ G, 1, index) * valid
    while True:
        damped = A.clone()
        damped.diagonal(dim1=1, dim2=2).add_(ridge * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not bool(failed.any()):
            break
        ridge = max(RAISE * ridge, LEAST_RIDGE)
        if ridge > RAISE:
            raise ValueError("the systems of the kept weights cannot be solved, even with a ridge of ten diagonals")
    found = torch.cholesky_solve(right[:, :, None], lower)[:, :, 0]
    return torch.zeros_like(W).scatter_(1, index, torch.where(valid, found, 0))
