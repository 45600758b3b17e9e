"""Greedy pruning with interactions: remove the weight that now costs least, one after another.

From ``u = 0`` the removal of weight ``i`` of a row costs ``f(u + e_i) - f(u) = Q_ii + 2 (Qu)_i``, exactly; a target
adds its ``c_i``. Removing ``k`` changes the cost of every other ``i`` in its row by ``2 Q_ik``, so a step is one axpy
with row ``k`` of ``G``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numba
import numpy as np

from fwbench.problem import Problem
from fwbench.solvers.numerics.jit import njit
from fwbench.solvers.numerics.threads import numba_threads
from fwbench.stage import Context, Role, Stage, State, register

CHUNK = 100_000_000  # cost updates between two looks at the clock, some 0.1 s a thread


@register
@dataclass(frozen=True)
class Greedy(Stage):
    """Remove the weight that now costs least, one after another, interactions counted."""

    name: ClassVar[str] = "greedy"
    role: ClassVar[Role] = Role.START
    needs_groups: ClassVar[bool] = True
    advice: ClassVar[str] = (
        "For a good mask without parameters or iterations; not as the last word, swaps from Wanda's end lower."
    )
    source: ClassVar[str] = "the greedy (forward) heuristic for binary quadratic programs, Merz and Freisleben 2002"

    def run(self, problem: Problem, state: State, context: Context) -> State:
        W = problem.W.astype(np.float64)
        cost = W * W * problem.G.diagonal()
        if problem.linear is not None:
            cost += problem.linear
        pruned = np.zeros(problem.shape, dtype=bool)
        walk = _by_rows if problem.pattern.separable else _whole_layer
        with numba_threads(context.threads):
            stopped = walk(problem, W, cost, pruned, context)
        iterations = int(pruned.sum())
        if stopped:  # the count must be right: complete by the costs as they now stand
            pruned = problem.pattern.prune(np.where(pruned, -np.inf, cost))
        state = replace(state, keep=~pruned, relaxed=None, stopped=stopped)
        return state.count(iterations=iterations)


def _by_rows(problem: Problem, W: np.ndarray, cost: np.ndarray, pruned: np.ndarray, context: Context) -> str:
    """Fill ``pruned`` row by row, some rows at a time; the reason for an early end."""
    left = problem.counts.reshape(problem.rows, -1).copy()
    start = 0
    while start < problem.rows:
        if context.expired():
            return "deadline"
        work = np.cumsum(left[start:].sum(axis=1) * problem.n)
        stop = start + max(context.threads, int(np.searchsorted(work, CHUNK)))
        _greedy_rows(W[start:stop], problem.G, cost[start:stop], pruned[start:stop], left[start:stop])
        start = stop
    return ""


def _whole_layer(problem: Problem, W: np.ndarray, cost: np.ndarray, pruned: np.ndarray, context: Context) -> str:
    """Fill ``pruned`` over the whole layer, some steps at a time; the reason for an early end."""
    best = cost.argmin(axis=1)
    left = int(problem.counts[0])
    while left:
        if context.expired():
            return "deadline"
        steps = min(left, max(1, CHUNK // (problem.rows + problem.n)))
        _greedy_layer(W, problem.G, cost, pruned, best, steps)
        left -= steps
    return ""


@njit(parallel=True)
def _greedy_rows(W, G, cost, pruned, left):
    """Run each row to its counts.

    ``W, cost, pruned (rows, n)``; ``left (rows, groups of a row)``, how many each group still has to prune. All but
    ``W`` and ``G`` are updated.
    """
    n = W.shape[1]
    groups = left.shape[1]
    size = n // groups
    for row in numba.prange(W.shape[0]):
        for group in range(groups):
            if left[row, group] == 0:
                cost[row, group * size : (group + 1) * size] = np.inf
        for _ in range(left[row].sum()):
            k = _remove(W[row], G, cost[row], pruned[row])
            group = k // size
            left[row, group] -= 1
            if left[row, group] == 0:
                cost[row, group * size : (group + 1) * size] = np.inf


@njit
def _greedy_layer(W, G, cost, pruned, best, steps):
    """Remove ``steps`` weights from the layer; ``best (rows,)`` is each row's cheapest weight."""
    value = np.empty(W.shape[0])
    for row in range(W.shape[0]):
        value[row] = cost[row, best[row]]
    for _ in range(steps):
        row = _first_least(value)
        _remove(W[row], G, cost[row], pruned[row])
        best[row] = _first_least(cost[row])
        value[row] = cost[row, best[row]]


@njit
def _remove(w, G, cost, pruned):
    """Remove a row's cheapest weight, correct the costs of the others, return its index."""
    k = _first_least(cost)
    pruned[k] = True
    cost[k] = np.inf
    twice = 2 * w[k]
    line = G[k]
    for i in range(w.shape[0]):
        cost[i] += twice * w[i] * line[i]
    return k


@njit
def _first_least(x):
    """Index of the smallest entry, the first of equals."""
    k = 0
    for i in range(1, x.shape[0]):
        if x[i] < x[k]:
            k = i
    return k
