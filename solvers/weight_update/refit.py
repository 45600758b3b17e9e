"""Least-squares refit: the kept weights that answer best for the pruned ones, on a mask that is given.

For one row with kept columns S and pruned columns P the change ``δ`` of the kept weights minimises
``‖(w - ŵ) X‖² / tokens + λ‖δ‖²``: ``(G_SS + λI) δ = G_SP w_P``; a target adds ``t_S`` on the
right. At ``δ = 0`` this is the error of the mask alone, so the refit never raises it, whatever ``λ``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from scipy.linalg import lapack

from fwbench.problem import Problem
from fwbench.stage import Context, Role, Stage, State, register

if TYPE_CHECKING:
    import torch

CHUNK_BYTES = 1 << 27  # of the matrices that are solved together
LEAST_RIDGE = 1e-10  # relative to the mean diagonal: where a singular G begins to be damped
RAISE = 10.0


@register
@dataclass(frozen=True)
class Refit(Stage):
    """Refit the kept weights of each row by least squares."""

    ridge: float = 1e-3  # relative to the mean diagonal of G, towards the trained weights

    name: ClassVar[str] = "refit"
    role: ClassVar[Role] = Role.UPDATE
    advice: ClassVar[str] = (
        "To answer for a mask that is final, by least squares; not for the least error, `reswap` also exchanges."
    )
    source: ClassVar[str] = "least squares on the support, as in Meng et al., ALPS, arXiv 2406.07831, section 3.2"

    def __post_init__(self) -> None:
        if not 0 <= self.ridge < float("inf"):
            raise ValueError(f"ridge must be a number of at least 0, got {self.ridge!r}")

    def run(self, problem: Problem, state: State, context: Context) -> State:
        keep = state.mask
        parts = _one_by_one if context.device == "cpu" else _in_batches
        weights, stopped = np.where(keep, problem.W, 0).astype(np.float64), ""
        for rows, changes in parts(problem, keep, self.ridge, context.device):
            if context.expired():
                stopped = "deadline"  # the rows that are left keep their trained weights
                break
            weights[rows] += changes
        return replace(state, keep=keep, relaxed=None, weights=weights.astype(np.float32), stopped=stopped)


def _one_by_one(problem: Problem, keep: np.ndarray, ridge: float, _: str) -> Iterator[tuple[int, np.ndarray]]:
    """Changes ``(n,)`` row by row, by LAPACK: on a CPU a tenth of the time of torch's batched solve."""
    mean = float(problem.G.diagonal().mean())
    for row, kept in enumerate(keep):
        support = np.flatnonzero(kept)
        change = np.zeros(problem.n)
        if mean > 0 and support.size:
            right = problem.G[support] @ np.where(kept, 0, problem.W[row].astype(np.float64))
            if problem.T is not None:
                right += problem.T[row, support]
            change[support] = _solve(problem.G, support, right, ridge, mean)
        yield row, change


def _solve(G: np.ndarray, support: np.ndarray, right: np.ndarray, ridge: float, mean: float) -> np.ndarray:
    while True:
        A = G[support[:, None], support]
        A.ravel()[:: len(A) + 1] += ridge * mean
        factor, failed = lapack.dpotrf(A.T, lower=1, clean=0, overwrite_a=1)
        if not failed:
            return lapack.dpotrs(factor, right, lower=1)[0]
        ridge = raised(ridge)


def raised(ridge: float) -> float:
    """The next larger ridge.

    Raises:
        ValueError: the last one was ten times the mean diagonal.
    """
    if ridge >= RAISE:
        raise ValueError("the systems of the kept weights cannot be solved, even with a ridge of ten diagonals")
    return max(RAISE * ridge, LEAST_RIDGE)


def _in_batches(
    problem: Problem, keep: np.ndarray, ridge: float, device: str
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Changes ``(some rows, n)``, rows of like counts together: they are padded to the largest of their chunk."""
    import torch

    G, W = (torch.from_numpy(x.astype(np.float64)).to(device) for x in (problem.G, problem.W))
    mask = torch.from_numpy(keep.copy()).to(device)
    T = None if problem.T is None else torch.from_numpy(problem.T.copy()).to(device)
    order = np.argsort(keep.sum(1), kind="stable")
    most = int(keep.sum(1).max(initial=1)) or 1
    size = max(1, CHUNK_BYTES // (8 * most * most))
    for start in range(0, problem.rows, size):
        rows = order[start : start + size]
        here = torch.from_numpy(rows).to(device)
        yield rows, change(G, W[here], mask[here], ridge, None if T is None else T[here]).cpu().numpy()


def change(
    G: torch.Tensor, W: torch.Tensor, keep: torch.Tensor, ridge: float, T: torch.Tensor | None = None
) -> torch.Tensor:
    """Best change of the kept weights, float64 ``(rows, n)``, zero where pruned.

    Args:
        G: float64 ``(n, n)``.
        W: float64 ``(rows, n)``, the trained weights.
        keep: bool ``(rows, n)``.
        ridge: relative to the mean diagonal of ``G``; raised tenfold until every row's system can be factorised.
        T: float64 ``(rows, n)``, of a problem that has a target.

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
    answer = torch.where(keep, 0, W) @ G
    right = torch.gather(answer if T is None else answer + T, 1, index) * valid
    while True:
        damped = A.clone()
        damped.diagonal(dim1=1, dim2=2).add_(ridge * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not bool(failed.any()):
            break
        ridge = raised(ridge)
    found = torch.cholesky_solve(right[:, :, None], lower)[:, :, 0]
    return torch.zeros_like(W).scatter_(1, index, torch.where(valid, found, 0))
