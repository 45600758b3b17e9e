"""SparseGPT: prune column by column, and let the columns that follow make good the error (optimal brain surgeon).

With ``U`` the upper Cholesky factor of the inverse, ``(G + λI)⁻¹ = Uᵀ U``, pruning column ``j`` of a row costs
``w_j² / U_jj²`` and moves the columns after it by ``-(w_j / U_jj) U_j,j+1:`` (Frantar and Alistarh, arXiv 2301.00774,
algorithm 1). The kept weights change too, so its errors stand on the board of weight updates.
A target's linear term only moves the weights to begin with: by ``T (G + λI)⁻¹``.

Columns need not go from left to right. Those that go first find most others to make good what they lose, so that
``order=loss`` takes first what will lose most (ROSE: Su and Wang, arXiv 2603.05878).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from fwbench import patterns
from fwbench.patterns import NM, Array, Transposable, Unstructured
from fwbench.problem import Problem
from fwbench.stage import Context, Needs, Role, Stage, State, register

if TYPE_CHECKING:
    import torch

ORDERS = ("natural", "diagonal", "loss")
LEAST_DAMPING = 1e-10  # relative to the mean diagonal: where a singular G begins to be damped
RAISE = 10.0


@register
@dataclass(frozen=True)
class SparseGPT(Stage):
    """Prune by blocks of columns, and update the later columns of each row; an earlier mask is kept if there is one.

    ``order=diagonal`` takes inputs of large variance first. ``order=loss`` is ROSE's: what pruning would lose is
    estimated for each column; the columns of a block are taken in descending order of their losses, blocks in that of
    theirs, but only where the blocks' losses range over more than ``spread`` of their mean; else the order is natural.
    In N:M patterns, transposable or not, the blocks are the groups. The paper's formulas of the estimate and of the
    range could not be read, only summaries: here a weight costs ``w² / C_jj``, ``C = (G + λI)⁻¹``, those count that
    would be pruned of their block by this cost, or that the earlier mask prunes, and a block's loss is the mean of its
    columns'.
    """

    damping: float = 0.01  # relative to the mean diagonal of G; raised where the factorisation fails
    blocksize: int = 128  # columns whose mask is chosen at once
    order: str = "natural"  # or diagonal, loss
    spread: float = 0.5  # of order=loss

    name: ClassVar[str] = "sparsegpt"
    role: ClassVar[Role] = Role.UPDATE
    advice: ClassVar[str] = (
        "For weights updated in one sweep, `order=loss` where columns differ; not for the least error: `alps`."
    )
    needs: ClassVar[Needs] = Needs.NOTHING
    uses: ClassVar[tuple[Needs, ...]] = (Needs.MASK,)
    source: ClassVar[str] = (
        "Frantar and Alistarh, SparseGPT, ICML 2023, arXiv 2301.00774; Su and Wang, arXiv 2603.05878"
    )

    def __post_init__(self) -> None:
        if not 0 <= self.damping < float("inf"):
            raise ValueError(f"damping must be a number of at least 0, got {self.damping!r}")
        if self.blocksize < 1:
            raise ValueError(f"blocksize must be at least 1, got {self.blocksize}")
        if self.order not in ORDERS:
            raise ValueError(f"order must be one of {', '.join(ORDERS)}, got {self.order!r}")
        if not self.spread >= 0:
            raise ValueError(f"spread must be at least 0, got {self.spread!r}")

    def run(self, problem: Problem, state: State, context: Context) -> State:
        if self.order == "natural":
            return self._sweep(problem, state, context)
        order = self._order(problem, state)
        keep = None if state.keep is None else state.keep[:, order]
        found = self._sweep(problem.permuted(order), replace(state, keep=keep), context)
        assert found.weights is not None
        keep, weights = np.empty(problem.shape, bool), np.empty(problem.shape, np.float32)
        keep[:, order], weights[:, order] = found.mask, found.weights
        return replace(found, keep=keep, weights=weights)

    def _order(self, problem: Problem, state: State) -> np.ndarray:
        """Columns in the order in which they are swept, ``(n,)``; the groups of N:M stay together."""
        import torch

        group = problem.group if isinstance(problem.pattern, NM | Transposable) else 1
        if self.order == "diagonal":
            return _descending(problem.G.diagonal(), group)
        width = group if group > 1 else self.blocksize
        U = inverse_factor(torch.from_numpy(problem.G.copy()), self.damping)
        loss = problem.W.astype(np.float64) ** 2 / (U**2).sum(0).numpy()
        starts = range(0, problem.n, width)
        if state.keep is not None:
            gone = ~state.keep
        elif group > 1:
            gone = problem.pattern.prune(loss)
        else:
            ends = [min(first + width, problem.n) for first in starts]
            gone = np.hstack([_choose(loss[:, a:b], problem, a, b) for a, b in zip(starts, ends, strict=True)])
        column = (loss * gone).sum(axis=0)
        block = np.array([column[first : first + width].mean() for first in starts])
        if np.ptp(block) <= self.spread * block.mean():
            return np.arange(problem.n)
        return _descending(column, width)

    def _sweep(self, problem: Problem, state: State, context: Context) -> State:
        import torch

        G = torch.from_numpy(problem.G.copy()).to(context.device)
        W, U = problem.W.astype(np.float64), inverse_factor(G, self.damping)
        if problem.T is not None:
            factor = U.cpu().numpy()
            W += (problem.T @ factor.T) @ factor
        given = ~state.keep if state.keep is not None else None
        if context.device == "cpu":  # numpy: torch would start its threads for each small column
            pruned, new = _sweep(W, U.numpy(), problem, self.blocksize, given)
        else:
            mask = torch.from_numpy(given).to(context.device) if given is not None else None
            found = _sweep(torch.from_numpy(W).to(context.device), U, problem, self.blocksize, mask)
            pruned, new = (array.cpu().numpy() for array in found)
        dead = problem.G.diagonal() <= 0
        new = np.where(dead, problem.W, new)  # an input that is always zero: its weight is as good as any
        weights = np.where(pruned, 0, new).astype(np.float32)
        return replace(state, keep=~pruned, relaxed=None, weights=weights)


def _descending(value: np.ndarray, width: int) -> np.ndarray:
    """Columns in descending order of their values within blocks, blocks in that of their means; ``(n,)``."""
    blocks = [np.arange(first, min(first + width, len(value))) for first in range(0, len(value), width)]
    inside = [block[np.argsort(-value[block], kind="stable")] for block in blocks]
    first = np.argsort([-value[block].mean() for block in blocks], kind="stable")
    return np.concatenate([inside[block] for block in first])


def inverse_factor(G: torch.Tensor, damping: float) -> torch.Tensor:
    """``U`` upper triangular with ``(G + λI)⁻¹ = Uᵀ U``, float64 ``(n, n)``; ``λ = damping · mean(diag G)``.

    ``λ`` is raised tenfold until the factorisation succeeds; inputs that are always zero get a diagonal of 1.

    Raises:
        ValueError: no damping below the diagonal itself is enough.
    """
    import torch

    H = G.clone()
    diagonal = H.diagonal()
    dead = diagonal <= 0
    diagonal[dead] = 1
    mean = float(G.diagonal().mean())
    eye = torch.eye(len(G), dtype=G.dtype, device=G.device)
    while True:
        # R upper with H = R Rᵀ: a Cholesky factor from the last column to the first. Then U = R⁻¹, without H⁻¹
        lower, failed = torch.linalg.cholesky_ex((H + damping * mean * eye).flip(0, 1))
        if not int(failed):
            return torch.linalg.solve_triangular(lower.flip(0, 1), eye, upper=True)
        damping = max(RAISE * damping, LEAST_DAMPING)
        if damping > RAISE:
            raise ValueError("G cannot be factorised, even damped by ten times its mean diagonal")


def _sweep(W: Array, U: Array, problem: Problem, blocksize: int, given: Array | None) -> tuple[Array, Array]:
    """All blocks of columns from the left: the pruned mask and the changed weights, ``(rows, n)`` each.

    Arrays are numpy's or torch's. Inputs that are always zero are taken to have weights of zero: they go first.
    """
    W = W * 1.0  # a copy
    for column in np.flatnonzero(problem.G.diagonal() <= 0):
        W[:, int(column)] = 0
    pruned = W != W if given is None else given  # a mask of nothing, to be filled
    group = problem.pattern.of if isinstance(problem.pattern, NM | Transposable) else 1
    width = -(-blocksize // group) * group
    for first in range(0, problem.n, width):
        last = min(first + width, problem.n)
        if given is None and group == 1:
            pruned[:, first:last] = _choose((W[:, first:last] / U.diagonal()[first:last]) ** 2, problem, first, last)
        errors = W[:, first:last] * 0
        for j in range(first, last):
            if given is None and group > 1 and j % group == 0:
                score = (W[:, j : j + group] / U.diagonal()[j : j + group]) ** 2
                pruned[:, j : j + group] = problem.pattern.prune(score)
            error = W[:, j] * pruned[:, j] / U[j, j]
            W[:, j:last] -= error[:, None] * U[j, j:last]
            errors[:, j - first] = error
        W[:, last:] -= errors @ U[first:last, last:]
    return pruned, W


def _choose(score: Array, problem: Problem, first: int, last: int) -> Array:
    """Mask of a block of columns: its share of each count, so that the blocks add up to the pattern's exactly."""
    counts = problem.counts
    share = np.round(counts * (last / problem.n)) - np.round(counts * (first / problem.n))
    if isinstance(problem.pattern, Unstructured):
        return patterns.smallest(score.reshape(1, -1), share.astype(np.int64)).reshape(score.shape)
    return patterns.smallest(score, share.astype(np.int64))
