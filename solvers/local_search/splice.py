"""Splicing: exchange the kept weights of least sacrifice with the pruned ones of most, several at a time.

With ``g = 2Qu + c``, pruning kept ``j`` alone costs ``b_j = Q_jj + g_j`` (the backward sacrifice), and keeping pruned
``i`` alone changes the error by ``a_i = Q_ii - g_i`` (less a forward sacrifice). For each ``s`` up to a size, the ``s``
least ``b`` are exchanged with the ``s`` least ``a``; the best of these exchanges is taken if it lowers the error, and
then again, until none does. (Zhu et al., PNAS 2020, algorithm 2.)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numba
import numpy as np

from fwbench.problem import Problem
from fwbench.solvers.local_search.chunks import by_rows
from fwbench.solvers.numerics.jit import njit
from fwbench.stage import Context, Role, Stage, State, register

RELATIVE_GAIN = 1e-11  # of what a row's weights cost, each alone: less is rounding


@register
@dataclass(frozen=True)
class Splice(Stage):
    """Exchange the ``s`` best candidates of each side at once, for the best ``s``, while that lowers a row's error.

    What differs from the paper: weights are not refitted, as these are masks, so sacrifices are the exact changes of
    single flips; and any gain counts (there is no threshold ``τ``). In N:M patterns a group gives at most one pair, of
    its least ``b`` and its least ``a``, and the ``s`` best pairs are exchanged.
    """

    name: ClassVar[str] = "splice"
    role: ClassVar[Role] = Role.REFINE
    needs_groups: ClassVar[bool] = True
    advice: ClassVar[str] = (
        "For a comparison with best-subset selection; not for a mask to be used: `swap` ends lower and sooner."
    )
    source: ClassVar[str] = "Zhu, Wen, Zhu, Zhang and Wang, A polynomial algorithm for best-subset selection, PNAS 2020"
    size: int = 32  # pairs exchanged at once, at most

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size must be at least 1, got {self.size}")

    def run(self, problem: Problem, state: State, context: Context) -> State:
        diagonal, swaps, evaluated = problem.G.diagonal(), 0, 0

        def descend(rows: slice, W: np.ndarray, half: np.ndarray, pruned: np.ndarray) -> None:
            nonlocal swaps, evaluated
            slack = RELATIVE_GAIN * (W**2 * diagonal).sum(axis=1)
            if problem.linear is not None:
                slack += RELATIVE_GAIN * np.abs(problem.linear[rows]).sum(axis=1)
            counts = _splice(W, problem.G, half, pruned, problem.group, self.size, slack)
            swaps, evaluated = swaps + int(counts[:, 0].sum()), evaluated + int(counts[:, 1].sum())

        keep, stopped = by_rows(problem, state.mask, context, descend)
        after = replace(state, keep=keep, relaxed=None, stopped=stopped)
        return after.count(swaps=swaps, swap_evaluations=evaluated)


@njit(parallel=True)
def _splice(W, G, half, pruned, group, size, slack):
    """Descend each row; ``pruned (rows, n)`` and ``half``, of the gradient of weights, ``(rows, n)``, are updated.

    Returns:
        int64 ``(rows, 2)``: pairs exchanged, and exchanges evaluated.
    """
    counts = np.zeros((W.shape[0], 2), np.int64)
    for row in numba.prange(W.shape[0]):
        w, c, mask = W[row], half[row], pruned[row]
        for _ in range(w.size):  # descents take a few; of rows that cancel, rounding might have no end
            into, out = _pairs(w, G, c, mask, group, size)
            if not into.size:
                break
            trial = c.copy()
            change, best, taken = 0.0, -slack[row], 0
            for s in range(into.size):
                i, j = into[s], out[s]
                change += w[i] * (w[i] * G[i, i] - 2 * trial[i])
                for k in range(w.size):
                    trial[k] -= w[i] * G[i, k]
                change += w[j] * (w[j] * G[j, j] + 2 * trial[j])
                for k in range(w.size):
                    trial[k] += w[j] * G[j, k]
                if change < best:
                    best, taken = change, s + 1
            counts[row, 1] += into.size
            if not taken:
                break
            for s in range(taken):
                i, j = into[s], out[s]
                mask[i], mask[j] = False, True
                for k in range(w.size):
                    c[k] += w[j] * G[j, k] - w[i] * G[i, k]
            counts[row, 0] += taken
    return counts


@njit
def _pairs(w, G, c, pruned, group, size):
    """Pairs to exchange, the best first, at most ``size``: indices to keep and to prune."""
    n = w.size
    a, b = np.full(n, np.inf), np.full(n, np.inf)
    for k in range(n):
        own = w[k] * w[k] * G[k, k]
        if pruned[k]:
            a[k] = own - 2 * w[k] * c[k]
        else:
            b[k] = own + 2 * w[k] * c[k]
    if group == n:
        into, out = np.argsort(a, kind="mergesort"), np.argsort(b, kind="mergesort")
        kept = n - pruned.sum()
        most = min(size, kept, n - kept)
        return into[:most], out[:most]
    groups = n // group
    into, out, value = np.empty(groups, np.int64), np.empty(groups, np.int64), np.empty(groups)
    for g in range(groups):
        first = g * group
        into[g] = first + a[first : first + group].argmin()
        out[g] = first + b[first : first + group].argmin()
        value[g] = a[into[g]] + b[out[g]]
    order = np.argsort(value, kind="mergesort")
    most = min(size, np.isfinite(value).sum())
    return into[order[:most]], out[order[:most]]
