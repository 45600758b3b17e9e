"""The stage ``pgd``: projected gradients, accelerated with restarts (FISTA), in the metric of the diagonal of ``Q``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from fwbench.problem import Problem
from fwbench.solvers.first_order import loop
from fwbench.solvers.first_order.simplex import largest_correlation
from fwbench.solvers.frank_wolfe.objective import Objective
from fwbench.stage import Context, Role, Stage, State, register

SLACK = 1e-3  # relative: rounding of a curvature
GROW = 1.5  # of the constant where a step shows that it is too small


@register
@dataclass(frozen=True)
class ProjectedGradient(Stage):
    """Projected gradient descent, accelerated, with the exact projection on the capped simplex.

    Lengths are measured by the diagonal of ``Q``: then one constant serves all rows, the largest eigenvalue of the
    inputs' correlations. ``momentum=True`` is FISTA, begun anew in each row whose momentum points uphill; ``False`` is
    plain projected gradient descent. Its Frank-Wolfe gap is the certificate, as for ``fw``. ``seconds``: 0 for no
    limit.
    """

    name: ClassVar[str] = "pgd"
    role: ClassVar[Role] = Role.RELAX
    needs_groups: ClassVar[bool] = True
    advice: ClassVar[str] = (
        "For the relaxation on a device, where `fw(variant=inface)` does not run; not for a CPU, where that is faster."
    )
    source: ClassVar[str] = "Beck, Teboulle 2009 (FISTA); O'Donoghue, Candès 2015; Wang, Lu 2015 (projection)"
    steps: int = 2000
    gap: float = 1e-4
    momentum: bool = True
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if min(self.steps, self.gap, self.seconds) < 0:
            raise ValueError("steps, gap and seconds must not be negative")

    def run(self, problem: Problem, state: State, context: Context) -> State:
        def begin(layer: Objective, start: torch.Tensor) -> loop.Method:
            return Descent(layer, start, self.momentum)

        limits = loop.Limits(self.steps, self.gap, self.seconds or math.inf)
        return loop.relax(problem, state, begin, limits, context, "pgd")


class Descent(loop.Method):
    """``u`` is feasible, ``ahead`` where momentum leads; the gradient is affine, so that one product serves both."""

    arrays = ("u", "g", "scale", "ahead", "g_ahead")
    columns = ("level", "constant", "age")

    def __init__(self, layer: Objective, start: torch.Tensor, momentum: bool) -> None:
        super().__init__(layer, start)
        self.momentum = momentum
        self.ahead, self.g_ahead = self.u, self.g
        self.constant = torch.full_like(layer.total(start), 2 * largest_correlation(layer.G))
        self.most = 2.0 * start.shape[1]  # the trace
        self.age = torch.ones_like(self.constant)

    def step(self) -> None:
        total = self.layer.total
        moved = self.ahead - self.scale * self.g_ahead / self.constant
        u, level = self.simplex.nearest(moved, self.scale, -self.level / self.constant)
        self.level = -level * self.constant
        g = self.gradient(u)
        move = u - self.ahead
        curvature, square = total((g - self.g_ahead) * move), total(move * move / self.scale)
        short = (curvature > (1 + SLACK) * self.constant * square) & (self.constant < self.most)
        self.constant = torch.where(short, (GROW * self.constant).clamp(max=self.most), self.constant)
        last, g_last = self.u, self.g
        uphill = total(-move * (u - last) / self.scale) > 0
        self.u, self.g = torch.where(short, last, u), torch.where(short, g_last, g)
        after = (1 + (1 + 4 * self.age**2).sqrt()) / 2
        again = short | uphill
        beta = torch.where(again, 0.0, (self.age - 1) / after) if self.momentum else torch.zeros_like(self.age)
        self.age = torch.where(again, 1.0, after)
        self.ahead = self.u + beta * (self.u - last)
        self.g_ahead = self.g + beta * (self.g - g_last)
