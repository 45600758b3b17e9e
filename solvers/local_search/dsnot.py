"""Dynamic sparse no training: grow a pruned weight and prune a kept one, cycle by cycle, by signs and not by errors.

As published, ``ε = wX - ŵX`` is what pruning leaves of a row's output. A cycle grows the pruned weight with the largest
``sign(E ε) w_k E[x_k] / Var(x_k)`` and prunes, of the kept weights for which ``sign(E ε) w_j E[x_j] < 0`` (without them
the expected error shrinks), the one with the least Wanda score ``|w_j| ‖x_j‖``.

A Gram matrix holds no means: of ``E[ε]``, ``E[x_k]`` and ``Var(x_k)`` it determines none, but it does determine the
moment ``E[ε x_k]``, which is ``E[ε] E[x_k]`` for an input that does not vary, and ``E[x_k²]``, which is at least
``Var(x_k)``. These stand in their places: weights are grown by ``w_k E[ε x_k] / E[x_k²]^power`` and pruned where ``w_j
E[ε x_j] < 0``. With the residual's Gram product ``c = (w∘u) G + t``, ``t`` of a target, ``E[ε x_k]`` is ``c_k``: the
signs are those of the error's gradient.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numba
import numpy as np

from fwbench.problem import Problem
from fwbench.solvers.local_search.chunks import by_rows
from fwbench.solvers.numerics.jit import njit
from fwbench.solvers.start.scores import wanda_score
from fwbench.stage import Context, Role, Stage, State, register


@register
@dataclass(frozen=True)
class DSnoT(Stage):
    """Exchange one pruned and one kept weight of each row a cycle, chosen by signs; keep each row's best mask.

    What differs from the paper: moments stand for means and variances, which a Gram matrix does not hold; the mask of
    least error is kept, so that a row never ends worse than it began (the paper's last mask may be); and a row ends
    where no weight can be grown or pruned by the rule, or after ``cycles`` (the paper also ends it where ``|E ε|`` is
    below 0.1, which has no counterpart here). In N:M patterns both weights are of one group.
    """

    name: ClassVar[str] = "dsnot"
    role: ClassVar[Role] = Role.REFINE
    needs_groups: ClassVar[bool] = True
    advice: ClassVar[str] = "For a comparison with what SparseSwaps was compared with; not for the least error: `swap`."
    source: ClassVar[str] = "Zhang et al., Dynamic Sparse No Training, ICLR 2024, arXiv 2310.08915"
    cycles: int = 50  # exchanges a row at most
    power: float = 1.0  # of the input's second moment, by which growing is divided

    def __post_init__(self) -> None:
        if self.cycles < 1:
            raise ValueError(f"cycles must be at least 1, got {self.cycles}")
        if not 0 <= self.power <= 2:
            raise ValueError(f"power must lie between 0 and 2, got {self.power!r}")

    def run(self, problem: Problem, state: State, context: Context) -> State:
        diagonal, cycles = problem.G.diagonal(), 0
        score, divisor = wanda_score(problem.W, problem.G), np.where(diagonal > 0, diagonal, 1.0) ** self.power

        def descend(rows: slice, W: np.ndarray, moments: np.ndarray, pruned: np.ndarray) -> None:
            nonlocal cycles
            arrays = (W, problem.G, moments, score[rows], 1 / divisor, pruned)
            cycles += int(_cycle(*arrays, problem.group, self.cycles).sum())

        keep, stopped = by_rows(problem, state.mask, context, descend)
        return replace(state, keep=keep, relaxed=None, stopped=stopped).count(iterations=cycles)


@njit(parallel=True)
def _cycle(W, G, moments, score, inverse, pruned, group, cycles):
    """Run each row's cycles; ``pruned (rows, n)`` ends as the best mask, ``moments`` are used up. Cycles of each row.

    ``moments (rows, n)`` are ``E[ε x_k]``, ``score (rows, n)`` Wanda's, ``inverse (n,)`` what growing is multiplied by.
    """
    done = np.zeros(W.shape[0], np.int64)
    for row in numba.prange(W.shape[0]):
        w, c, mask = W[row], moments[row], pruned[row].copy()
        change, best = 0.0, 0.0
        for _ in range(cycles):
            grown, gone = _pair(w, c, score[row], inverse, mask, group)
            if grown < 0:
                break
            done[row] += 1
            change += w[grown] * (w[grown] * G[grown, grown] - 2 * c[grown])
            for k in range(w.size):
                c[k] -= w[grown] * G[grown, k]
            change += w[gone] * (w[gone] * G[gone, gone] + 2 * c[gone])
            for k in range(w.size):
                c[k] += w[gone] * G[gone, k]
            mask[grown], mask[gone] = False, True
            if change < best:
                best = change
                pruned[row] = mask
    return done


@njit
def _pair(w, c, score, inverse, pruned, group):
    """The weights to grow and to prune, of one group; -1 where there are none. The first of equals."""
    grown, gone, most = -1, -1, 0.0
    for first in range(0, w.size, group):
        candidate = -1
        for j in range(first, first + group):
            if not pruned[j] and w[j] * c[j] < 0 and (candidate < 0 or score[j] < score[candidate]):
                candidate = j
        if candidate < 0:
            continue
        for k in range(first, first + group):
            if pruned[k] and w[k] * c[k] * inverse[k] > most:
                most, grown, gone = w[k] * c[k] * inverse[k], k, candidate
    return grown, gone
