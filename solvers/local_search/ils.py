"""Iterated local search: kick the best mask of each row by a few random swaps, descend again, keep what is better."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from fwbench.problem import Problem
from fwbench.stage import Context, Role, Stage, State, register

MOST = 1_000_000  # rounds when the time alone is to end it


@register
@dataclass(frozen=True)
class IteratedLocalSearch(Stage):
    """Iterated local search over 1-swap optima: ``rounds`` kicks of ``kicks`` random swaps, each followed by ``swap``.

    A kick starts from the row's best mask and is forgotten unless its descent ends lower. ``seconds`` ends it earlier
    or, with ``rounds=0``, alone. It finds less than ``tabu`` in the same time, and is here to be compared with.
    """

    name: ClassVar[str] = "ils"
    role: ClassVar[Role] = Role.REFINE
    needs_groups: ClassVar[bool] = True
    advice: ClassVar[str] = "For a simple rival of `tabu`; not for results, `tabu` is ahead of it at equal time."
    source: ClassVar[str] = "Lourenco, Martin, Stuetzle 2003"
    rounds: int = 100
    kicks: int = 6
    seconds: float = float("inf")

    def __post_init__(self) -> None:
        if self.rounds < 0 or self.kicks < 1:
            raise ValueError("rounds must not be negative, and kicks at least 1")
        if not self.seconds > 0 or (self.rounds == 0 and self.seconds == float("inf")):
            raise ValueError("seconds must be positive, and finite where rounds is 0")

    def run(self, problem: Problem, state: State, context: Context) -> State:
        from fwbench.solvers.local_search import anneal_numba, swap_numba

        end = context.seconds() + self.seconds
        group = problem.group
        descent = swap_numba.Descent(problem.W, problem.G, group, context.threads, linear=problem.linear)
        unlimited = np.iinfo(np.int64).max
        counts = {"iterations": 0, "swaps": 0, "swap_evaluations": 0}

        def late() -> bool:
            return context.expired() or context.seconds() >= end

        def errors(pruned: np.ndarray) -> np.ndarray:
            return anneal_numba.errors(descent.W, problem.G, pruned, problem.T, problem.offset)

        def descend(pruned: np.ndarray, expired: Callable[[], bool]) -> bool:
            done, evaluated, cut = descent.descend_all(pruned, unlimited, expired)
            counts["swaps"] += done
            counts["swap_evaluations"] += evaluated
            return not cut

        best = ~state.mask
        descend(best, context.expired)
        error = errors(best)
        trace = [context.point(float(error.sum()))]
        for number in range(self.rounds or MOST):
            found = kicked(best, group, self.kicks, [context.seed, number])
            if late() or not descend(found, late):
                break
            counts["iterations"] += problem.rows
            reached = errors(found)
            better = reached < error
            best[better], error[better] = found[better], reached[better]
            trace.append(context.point(float(error.sum())))
        stopped = "deadline" if context.expired() else ""
        if not problem.pattern.separable and not stopped:
            done, evaluated, stopped = descent.exchange(best, unlimited, context.expired)
            counts["swaps"] += done
            counts["swap_evaluations"] += evaluated
            trace.append(context.point(problem.error(~best)))
        return replace(state, keep=~best, stopped=stopped, trace=(*state.trace, *trace)).count(**counts)


def kicked(pruned: np.ndarray, group: int, kicks: int, seed: list[int]) -> np.ndarray:
    """``pruned (rows, n)`` after random swaps within groups; a row's depend on the seed and its index alone."""
    pruned, rows = pruned.copy(), np.arange(len(pruned))
    groups = np.arange(pruned.shape[1]) // group
    for kick in range(kicks):
        i = _any(pruned, [*seed, kick, 0])
        j = _any(~pruned & (groups == groups[i][:, None]), [*seed, kick, 1])
        swaps = pruned[rows, i] & ~pruned[rows, j] & (groups[i] == groups[j])
        pruned[rows[swaps], i[swaps]], pruned[rows[swaps], j[swaps]] = False, True
    return pruned


def _any(allowed: np.ndarray, seed: list[int]) -> np.ndarray:
    """An allowed index of each row at random; an arbitrary one where none is."""
    return np.where(allowed, np.random.default_rng(seed).random(allowed.shape), -1.0).argmax(axis=1)
