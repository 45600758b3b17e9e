"""The stage ``mirror``: entropic mirror descent on the capped simplex."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from fwbench.problem import Problem
from fwbench.solvers.first_order import loop
from fwbench.solvers.first_order.simplex import FARTHEST, largest_correlation
from fwbench.solvers.frank_wolfe.objective import Objective
from fwbench.solvers.frank_wolfe.push import middle
from fwbench.stage import Context, Role, Stage, State, register

STEPS = ("linesearch", "fixed")
INWARD = 0.1  # of the way from the start to the middle of the polytope: at a vertex the entropy has no slope
FURTHEST_MOVE = 1e4  # of a logit, before the level: float32 still tells thousandths there
GROW, SHRINK = 1.5, 0.5  # of the length, where the end of the direction was not too far, and where it was


@register
@dataclass(frozen=True)
class Mirror(Stage):
    """Entropic mirror descent: ``u ← σ(logit(u) - η g/Q_ii - τ/Q_ii)``, with the ``τ`` at which each group has its sum.

    ``step=linesearch`` goes along the direction that this gives to the minimum or to its end, and ``η`` grows while
    that is the end; ``fixed`` takes ``η = 2 / λ``, ``λ`` the largest eigenvalue of the inputs' correlations, with which
    no step ascends.
    ``blocks=N``: stochastic, a step sees one of ``N`` blocks of the inputs at random (rows of the Gram matrix, an Nth
    of a product), ``η`` falls with the root of the passes, and the point is the average of the iterates.
    Its Frank-Wolfe gap is the certificate, as for ``fw``. ``seconds``: 0 for no limit.
    """

    name: ClassVar[str] = "mirror"
    role: ClassVar[Role] = Role.RELAX
    needs_groups: ClassVar[bool] = True
    advice: ClassVar[str] = (
        "For a loose gap on a device, or as the rival of `fw` in a comparison; not for a tight bound, to which `fw` is "
        "faster."
    )
    source: ClassVar[str] = "Nemirovski, Yudin 1983; Beck, Teboulle 2003; Bauschke, Bolte, Teboulle 2017"
    steps: int = 2000
    gap: float = 1e-4
    step: str = "linesearch"
    blocks: int = 1
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.step not in STEPS:
            raise ValueError(f"unknown step {self.step!r}; known: {', '.join(STEPS)}")
        if self.blocks < 1:
            raise ValueError("blocks must be positive; 1 sees all inputs in every step")
        if min(self.steps, self.gap, self.seconds) < 0:
            raise ValueError("steps, gap and seconds must not be negative")

    def run(self, problem: Problem, state: State, context: Context) -> State:
        def begin(layer: Objective, start: torch.Tensor) -> loop.Method:
            inside = start + INWARD * (torch.tensor(middle(problem)).to(start) - start)
            if self.blocks > 1:
                return StochasticDescent(layer, inside, self.blocks, context.seed)
            return Descent(layer, inside, self.step == "linesearch")

        limits = loop.Limits(self.steps, self.gap, self.seconds or math.inf)
        return loop.relax(problem, state, begin, limits, context, "mirror")


class Descent(loop.Method):
    """With all inputs in every step."""

    arrays = ("u", "g", "scale", "rest")
    columns = ("level", "length")

    def __init__(self, layer: Objective, start: torch.Tensor, search: bool) -> None:
        super().__init__(layer, start)
        self.search = search
        self.rest = 1 - start  # its own, so that what is nearly 1 keeps its digits
        self.length = torch.full_like(layer.total(start), 2 / largest_correlation(layer.G))

    def step(self) -> None:
        least = torch.finfo(self.u.dtype).tiny
        logits = self.u.clamp(min=least).log() - self.rest.clamp(min=least).log()
        logits = logits.clamp(-FARTHEST, FARTHEST)
        pull = self.scale * self.g
        self.length = torch.minimum(self.length, -FURTHEST_MOVE / self.layer.least(-pull.abs()))
        logits, level = self.simplex.entropic(logits - self.length * pull, self.scale, -self.length * self.level)
        self.level = -level / self.length
        ahead = torch.sigmoid(logits)
        move, back = ahead - self.u, torch.sigmoid(-logits) - self.rest
        change = self.gradient(ahead) - self.g
        slope, curvature = -self.layer.total(self.g * move), self.layer.total(change * move)
        if not self.search:
            self.u, self.rest, self.g = ahead, self.rest + back, self.g + change
            return
        inside = (slope < curvature) & (slope > 0)
        part = torch.where(inside, slope / curvature, torch.where(slope > 0, 1.0, 0.0))
        self.u, self.rest, self.g = self.u + part * move, self.rest + part * back, self.g + part * change
        self.length *= torch.where(inside, SHRINK, torch.where(slope > 0, GROW, 1.0))


class StochasticDescent(loop.Method):
    """With a block of the inputs in each step."""

    arrays = ("u", "g", "scale", "logits", "mean")

    def __init__(self, layer: Objective, start: torch.Tensor, blocks: int, seed: int) -> None:
        super().__init__(layer, start)
        self.logits, self.mean = torch.logit(start).clamp(-FARTHEST, FARTHEST), start
        self.blocks, self.random, self.t = min(blocks, start.shape[1]), np.random.default_rng(seed), 0
        self.length = 2 / largest_correlation(layer.G)
        self.waiting: list[np.ndarray] = []

    def estimate(self) -> torch.Tensor:
        """``(w∘u) G`` from the next block of its terms; over a pass of equal blocks the mean is the product."""
        n = self.u.shape[1]
        if not self.waiting:
            self.waiting = np.array_split(self.random.permutation(n), self.blocks)
        inputs = torch.from_numpy(np.sort(self.waiting.pop())).to(self.u.device)
        self.products += len(inputs) / n
        W, G = self.layer.W, self.layer.G
        return (W[:, inputs] * self.u[:, inputs]) @ G[inputs] * (n / len(inputs))

    def step(self) -> None:
        product = self.estimate()
        pull = self.scale * self.layer.gradient(self.u, product)
        most = -FURTHEST_MOVE / self.layer.least(-pull.abs())
        length = most.clamp(max=self.length / math.sqrt(1 + self.t / self.blocks))
        self.logits, level = self.simplex.entropic(self.logits - length * pull, self.scale, -length * self.level)
        self.level = -level / length
        self.u = torch.sigmoid(self.logits)
        self.mean = self.mean + 2 / (self.t + 2) * (self.u - self.mean)
        self.t += 1

    def point(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.mean, self.gradient(self.mean)
