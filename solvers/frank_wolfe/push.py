"""The stage ``push``: from the relaxation towards a mask, by a concave term that grows (graduated nonconvexity)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch

from fwbench import patterns
from fwbench.problem import Problem
from fwbench.solvers.frank_wolfe import loop, rules
from fwbench.stage import Context, Needs, Role, Stage, State, register

VARIANTS = ("vanilla", "inface")


@register
@dataclass(frozen=True)
class Push(Stage):
    """Follow the minimum of ``f(u) + λ Σ Q_ii u_i(1 - u_i)`` to a mask while ``λ`` grows: fractions cost more and more.

    The term is 0 on masks; from some ``λ`` on it makes the objective concave along every exchange, and each minimum a
    mask (Raghavachari 1969). Frank-Wolfe with exact line search follows from one ``λ`` to the next (as in Zaslavskiy,
    Bach and Vert 2009, algorithm 1): ``rounds`` values from ``first`` to ``last``, in geometric progression, at most
    ``steps`` iterations each, one Gram product an iteration. It starts from the relaxed point, or from the middle of
    the polytope where there is none. A heuristic: it proves nothing, and keeps what an earlier stage proved. It leaves
    no trace: the error of each round's mask would cost a product and a rounding.
    """

    version: ClassVar[int] = 2
    name: ClassVar[str] = "push"
    role: ClassVar[Role] = Role.RELAX
    advice: ClassVar[str] = (
        "For the mask to begin swaps with where minutes are there; not for a bound, it proves nothing."
    )
    needs: ClassVar[Needs] = Needs.NOTHING
    uses: ClassVar[tuple[Needs, ...]] = (Needs.POINT,)
    source: ClassVar[str] = "Zaslavskiy, Bach, Vert 2009; Raghavachari 1969"
    rounds: int = 40
    steps: int = 25
    first: float = 0.02
    last: float = 1.5
    variant: str = "vanilla"

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise ValueError(f"unknown variant {self.variant!r}; known: {', '.join(VARIANTS)}")
        if self.rounds < 1 or self.steps < 1:
            raise ValueError("rounds and steps must be positive")
        if not 0 < self.first <= self.last:
            raise ValueError(f"first must be positive and at most last, got {self.first} and {self.last}")

    def supports(self, problem: Problem) -> str | None:
        return rules.declined(problem, self.variant)

    def run(self, problem: Problem, state: State, context: Context) -> State:
        start = middle(problem) if state.relaxed is None else np.asarray(state.relaxed)
        plain = loop.Objective.of(problem, context)
        diagonal = plain.W**2 * plain.G.diagonal()
        u = torch.tensor(start, dtype=plain.W.dtype, device=context.device)
        after = replace(state, stopped="")
        options = loop.LoopOptions(steps=self.steps, variant=self.variant)
        kept = loop.fused(replace(plain, d=diagonal), options)
        for strength in np.geomspace(self.first, self.last, self.rounds):
            if context.expired():
                after = replace(after, stopped="deadline")
                break
            layer = replace(plain, d=float(strength) * diagonal)
            run = loop.minimise(layer, u, options, context, kept)
            u = run.u.clamp(0, 1)
            after = after.count(iterations=run.iterations, **run.counters)
        return replace(after, relaxed=patterns.project(problem.pattern, u.cpu().numpy(), patterns.DRIFT))


def middle(problem: Problem) -> np.ndarray:
    """The point of the polytope whose groups are even, ``(rows, n)``."""
    counts = problem.counts
    size = problem.pattern.group_size(problem.shape)
    return np.repeat(counts / size, size).reshape(problem.shape)
