"""FISTAPruner: weights under an ℓ1 penalty, rounded to the pattern; the penalty is sought by where errors come from.

``min ‖(w - v) X‖² / 2 + λ‖v‖₁`` is solved by FISTA with the step ``1/L``, ``L`` the largest eigenvalue of the Gram
matrix (Beck and Teboulle 2009); then the smallest of each group are set to zero: ``r``. If rounding, ``‖(v - r) X‖``,
is more than a part of the whole error, ``‖(w - r) X‖``, the weights were not sparse enough and ``λ`` is raised, else it
is lowered: by bisection. (Zhao et al., arXiv 2408.03728.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from fwbench.problem import Problem
from fwbench.solvers.weight_update.descent import Layer
from fwbench.stage import Context, Role, Stage, State, register

LEAST = 1e-6  # of the least penalty that makes all weights zero: where the bisection's interval begins


@register
@dataclass(frozen=True)
class FISTAPruner(Stage):
    """Relax the count to an ℓ1 penalty, round, adapt the penalty, from the best rounded weights again; keep the best.

    It begins with the mask and weights at hand, as published with Wanda's or SparseGPT's. The paper was read in reviews
    and summaries: the ratio of errors, the soft and the hard threshold and the warm start are its own; the interval of
    bisection, in logarithms up to the least penalty that makes all weights zero, the number of rounds, and that each
    row has a penalty of its own (rows that the pattern ties have one) are ours. What reaches a layer wrong, the
    paper's error correction, is the problem's target here.
    """

    rounds: int = 10  # penalties
    steps: int = 20  # of FISTA for each
    ratio: float = 0.3  # of the error's root that may come from rounding

    name: ClassVar[str] = "fistapruner"
    role: ClassVar[Role] = Role.UPDATE
    version: ClassVar[int] = 2  # other answers than version 1 on transposable patterns alone
    advice: ClassVar[str] = "For a comparison with convex relaxations of the weights; not for the least error: `alps`."
    source: ClassVar[str] = "Zhao et al., FISTAPruner, EMNLP 2025, arXiv 2408.03728; Beck and Teboulle 2009"

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.steps < 1:
            raise ValueError(f"rounds and steps must be at least 1, got {self.rounds} and {self.steps}")
        if not 0 < self.ratio < 1:
            raise ValueError(f"ratio must lie between 0 and 1, got {self.ratio!r}")

    def run(self, problem: Problem, state: State, context: Context) -> State:
        layer = Layer.of(problem, context, scaled=False)
        best = layer.begin(state)
        least = layer.errors(best, layer.slope(best))
        offset = np.zeros((problem.rows, 1)) if problem.offset is None else problem.offset[:, None] / layer.size**2
        beyond = layer.tied(torch.from_numpy(offset).to(best))
        most = heaviest(layer)
        low, high = torch.full_like(most, math.log(LEAST)), torch.zeros_like(most)
        steps, stopped = 0, ""
        for _ in range(self.rounds):
            middle = (low + high) / 2
            v, done = lasso(layer, best, most * middle.exp(), self.steps, context)
            steps += done
            if done < self.steps:
                stopped = "deadline"
                break
            rounded = layer.largest(v)
            error = layer.errors(rounded, layer.slope(rounded))
            apart = layer.tied(((rounded - v) @ layer.G * (rounded - v)).sum(1, keepdim=True))
            sparser = apart > self.ratio**2 * (error + beyond)
            low, high = torch.where(sparser, middle, low), torch.where(sparser, high, middle)
            closer = error < least
            best, least = torch.where(closer, rounded, best), torch.where(closer, error, least)
        return layer.end(state, best, stopped).count(iterations=steps, gram_products=steps)


def heaviest(layer: Layer) -> torch.Tensor:
    """The least penalty that makes all weights of a row, and of those that are tied to it, zero, ``(rows, 1)``."""
    return layer.tied(layer.slope(torch.zeros_like(layer.w)).abs().amax(1, keepdim=True), torch.amax)


def lasso(
    layer: Layer, v: torch.Tensor, penalty: torch.Tensor, steps: int, context: Context
) -> tuple[torch.Tensor, int]:
    """FISTA from ``v`` under each row's penalty ``(rows, 1)``: the weights, and for how many steps there was time."""
    y, now = v, 1.0
    for step in range(steps):
        if context.expired():
            return v, step
        moved = y + layer.slope(y) / layer.curvature
        before, v = v, moved.sign() * (moved.abs() - penalty / layer.curvature).clamp(min=0)
        last, now = now, (1 + math.sqrt(1 + 4 * now * now)) / 2
        y = v + (last - 1) / now * (v - before)
    return v, steps
