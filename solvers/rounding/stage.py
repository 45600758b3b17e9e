"""Rounding: from a fractional point to a mask."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from fwbench.problem import Problem
from fwbench.stage import Context, Role, Stage, State, register, ungrouped

METHODS = ("topk", "randomised", "expectation")


@register
@dataclass(frozen=True)
class Round(Stage):
    """Prune the weights whose relaxed value is largest: the exact count in each group, ties to the lower index.

    That is SparseFW's threshold too (its points may keep fewer until it fills them up; here the count is exact all
    along). ``randomised``: row by row the best of that and of ``samples`` masks drawn with the relaxed values as
    chances.
    ``expectation``: by conditional expectation, pair by pair (pipage rounding), interactions counted; deterministic,
    with a guarantee (``solvers/rounding/pipage.py``).
    """

    name: ClassVar[str] = "round"
    role: ClassVar[Role] = Role.ROUND
    advice: ClassVar[str] = "After a stage that leaves fractions; nothing else makes a mask of them."
    version: ClassVar[int] = 2
    source: ClassVar[str] = "Roux et al., SparseFW, arXiv 2510.13713, section 3; Ageev, Sviridenko 2004"
    method: str = "topk"
    samples: int = 20

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"unknown method {self.method!r}; known: {', '.join(METHODS)}")
        if self.samples < 0:
            raise ValueError(f"samples must not be negative, got {self.samples}")

    def supports(self, problem: Problem) -> str | None:
        return None if self.method == "topk" else ungrouped(problem, f"method={self.method}")

    def run(self, problem: Problem, state: State, context: Context) -> State:
        if state.relaxed is None:
            raise ValueError("there is no fractional point to round")
        u = np.asarray(state.relaxed, np.float64)
        if self.method == "expectation":
            from fwbench.solvers.rounding.pipage import pipage

            return replace(state, keep=~pipage(problem, u, context.threads), relaxed=None)
        pruned = problem.pattern.prune(-u)
        if self.method == "randomised":
            pruned = _best_of(problem, pruned, u, self.samples, context)
        return replace(state, keep=~pruned, relaxed=None)


def _best_of(problem: Problem, best: np.ndarray, u: np.ndarray, samples: int, context: Context) -> np.ndarray:
    """The best of ``best`` and some samples: in each row, or of the layer where rows share a count."""
    rng = np.random.default_rng(context.seed)
    errors = problem.row_errors(best)
    for _ in range(samples):
        if context.expired():
            break
        drawn = systematic(problem, u, rng)
        found = problem.row_errors(drawn)
        better = problem.tied(found) < problem.tied(errors)
        best, errors = np.where(better[:, None], drawn, best), np.where(better, found, errors)
    return best


def systematic(problem: Problem, u: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A mask with the exact counts that prunes each weight with probability ``u (rows, n)`` (Madow 1949).

    In a random order of its group, a weight is pruned if its part of the running sum contains ``θ`` plus an integer.
    """
    groups, counts = problem.pattern.groups(u), problem.counts
    order = np.argsort(rng.random(groups.shape), axis=1)
    ends = np.cumsum(np.take_along_axis(groups, order, axis=1), axis=1)
    ends = np.minimum(ends, counts[:, None])
    ends[:, -1] = counts
    hits = np.floor(ends - rng.random((len(groups), 1)))
    drawn = np.diff(hits, axis=1, prepend=-1.0) > 0
    pruned = np.empty_like(drawn)
    np.put_along_axis(pruned, order, drawn, axis=1)
    return pruned.reshape(u.shape)
