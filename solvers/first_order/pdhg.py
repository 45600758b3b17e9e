"""The stage ``pdhg``: primal and dual steps on the Lagrangian of the counts, averaged and begun anew."""

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

ENOUGH = 0.2  # of the gap at the last restart, with which the next is due (Applegate et al. 2021)


@register
@dataclass(frozen=True)
class PrimalDual(Stage):
    """Primal-dual hybrid gradient on the counts' Lagrangian, with averages and restarts; no projection in its steps.

    A step is ``u ← clip(u - (∇f(u) + y) / (λ Q_ii))`` and ``y ← y + σ (sums of 2u⁺ - u less the counts)``, in the
    metric of the diagonal of ``Q`` (Condat 2013; Vũ 2013). Every look projects the iterate and the average since the
    last restart on the polytope and takes the one of smaller Frank-Wolfe gap, its certificate as for ``fw``; a row
    begins anew from there when that gap is a fifth of what it was. ``seconds``: 0 for no limit.
    """

    name: ClassVar[str] = "pdhg"
    role: ClassVar[Role] = Role.RELAX
    needs_groups: ClassVar[bool] = True
    advice: ClassVar[str] = (
        "For a comparison with the solvers of large linear and quadratic programs; not for production, where `fw` and "
        "`pgd` need fewer products."
    )
    source: ClassVar[str] = "Chambolle, Pock 2011; Condat 2013; Applegate et al., PDLP, arXiv 2106.04756"
    steps: int = 2000
    gap: float = 1e-4
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if min(self.steps, self.gap, self.seconds) < 0:
            raise ValueError("steps, gap and seconds must not be negative")

    def run(self, problem: Problem, state: State, context: Context) -> State:
        limits = loop.Limits(self.steps, self.gap, self.seconds or math.inf)
        return loop.relax(problem, state, Descent, limits, context, "pdhg")


class Descent(loop.Method):
    """``u`` is in the cube; ``y`` has a multiplier for each group; the means are of all since the last restart."""

    arrays = ("u", "g", "scale", "mean_u", "mean_g")
    columns = ("level", "y", "mean_y", "age", "last_gap", "dual_length")

    def __init__(self, layer: Objective, start: torch.Tensor) -> None:
        super().__init__(layer, start)
        self.constant = 2 * largest_correlation(layer.G)
        widths = self._sums(self.scale)  # of the counts' operator in this metric, squared
        self.dual_length = self.constant / (2 * widths)
        vertex = layer.pattern.prune(self.g)
        lowest = torch.where(vertex, self.g, -torch.inf)  # the highest that the oracle would prune: the multiplier
        self.y = -layer.pattern.groups(lowest).amax(1).clamp(min=-self.g.abs().max()).reshape(self.level.shape)
        self.mean_u, self.mean_g, self.mean_y = self.u, self.g, self.y
        self.age = torch.zeros_like(layer.total(start))
        self.last_gap = torch.full_like(self.age, torch.inf)

    def _sums(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer.pattern.groups(x).sum(1).reshape(self.level.shape)

    def _spread(self, y: torch.Tensor) -> torch.Tensor:
        """A number of each group to its weights."""
        size = self.layer.pattern.group_size((self.u.shape[0], self.u.shape[1]))
        return y.reshape(-1, 1).expand(-1, size).reshape(self.u.shape)

    def step(self) -> None:
        u = (self.u - self.scale * (self.g + self._spread(self.y)) / self.constant).clamp(0, 1)
        excess = self._sums(2 * u - self.u) - self.simplex.counts.reshape(self.level.shape)
        self.y = self.y + self.dual_length * excess
        self.u, self.g = u, self.gradient(u)
        self.age = self.age + 1
        self.mean_u = self.mean_u + (self.u - self.mean_u) / self.age
        self.mean_g = self.mean_g + (self.g - self.mean_g) / self.age
        self.mean_y = self.mean_y + (self.y - self.mean_y) / self.age

    def point(self) -> tuple[torch.Tensor, torch.Tensor]:
        here, g_here, gap_here = self._feasible(self.u)
        mean, g_mean, gap_mean = self._feasible(self.mean_u)
        nearer = gap_mean < gap_here
        u, g, y = (torch.where(nearer, a, b) for a, b in ((mean, here), (g_mean, g_here), (self.mean_y, self.y)))
        gap = torch.minimum(gap_mean, gap_here)
        anew = (gap <= ENOUGH * self.last_gap) & (self.age > 0)
        self.last_gap = torch.where(anew | torch.isinf(self.last_gap), gap, self.last_gap)
        self.u, self.g, self.y = (
            torch.where(anew, u, self.u),
            torch.where(anew, g, self.g),
            torch.where(anew, y, self.y),
        )
        self.mean_u = torch.where(anew, u, self.mean_u)
        self.mean_g = torch.where(anew, g, self.mean_g)
        self.mean_y = torch.where(anew, y, self.mean_y)
        self.age = torch.where(anew, 0.0, self.age)
        return u, g

    def _feasible(self, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The nearest point of the polytope, its gradient and its gap."""
        near, _ = self.simplex.nearest(u, self.scale, torch.zeros_like(self.level))
        g = self.gradient(near)
        return near, g, self.layer.total(g * (near - self.layer.pattern.prune(g).to(g.dtype)))
