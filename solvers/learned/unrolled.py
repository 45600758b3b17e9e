"""The stage ``unrolled``: a fixed number of accelerated projected steps whose lengths and scalings are trained.

With ``D_i = Σ_j |Q_ij|``, ``diag(D) - Q ⪰ 0``. Step ``t`` is, in the metric of ``1 / s``,

    u ← Π(y - s∘∇f(y)),   y = u + β_t (u - before),   s_i = γ_t / (2 D_i) (D_i / Q_ii)^{a_t},

so that its fixed points are the minimisers whatever the weights are, and for ``γ = 1``, ``a = 0``, ``β = 0`` the error
falls. ``γ_t``, ``a_t``, ``β_t`` are three trained numbers a step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch

from fwbench import patterns
from fwbench.problem import Problem
from fwbench.solvers.frank_wolfe.objective import Objective
from fwbench.solvers.learned import weights
from fwbench.stage import Context, Role, Stage, State, register

HALVINGS = 50  # of the bracket of a multiplier
LEAST = 1e-4  # of D_i that Q_ii counts as, where it is less

Groups = Callable[[torch.Tensor], torch.Tensor]


@register
@dataclass(frozen=True)
class Unrolled(Stage):
    """A few accelerated projected gradient steps with trained lengths, momenta and diagonal scalings.

    Trained like an unrolled network: the relaxed error after the last step, while the Frank-Wolfe gap of each step has
    to be below the last one's on the mean, held by multipliers (primal and dual). ``steps``: of those trained, the
    first so many, one product with the Gram matrix each, one to begin with and one at the end: rows whose error is not
    lower than where they began go back there. It proves nothing.
    """

    name: ClassVar[str] = "unrolled"
    role: ClassVar[Role] = Role.RELAX
    needs_groups: ClassVar[bool] = True
    advice: ClassVar[str] = (
        "For comparing trained steps, or for a rounded point in very few products; not to prune: at equal time "
        "`fw(variant=vanilla)` has the lower relaxed error, the better mask after swaps, and a bound."
    )
    source: ClassVar[str] = "Hadou, NaderiAlizadeh, Ribeiro, arXiv 2312.15788; trained by benchmarks/learned"
    steps: int = 20

    def __post_init__(self) -> None:
        most = len(weights.load("unrolled")["steps"])
        if not 1 <= self.steps <= most:
            raise ValueError(f"steps must lie between 1 and the {most} that are trained, got {self.steps}")

    def run(self, problem: Problem, state: State, context: Context) -> State:
        return self.follow(problem, state, context, weights.load("unrolled")["steps"][: self.steps])

    def follow(self, problem: Problem, state: State, context: Context, trained: np.ndarray) -> State:
        """The steps that ``trained (steps, 3)`` says."""
        layer = Objective.of(problem, context)
        begin = torch.tensor(
            np.asarray(state.relaxed if state.relaxed is not None else ~state.mask),
            dtype=layer.W.dtype,
            device=context.device,
        )
        counts = torch.tensor(problem.counts).to(begin)[:, None]
        own, bound = curvatures(layer.W, layer.G)
        u = before = begin
        done = 0
        for length, exponent, momentum in numbers(torch.tensor(trained).to(begin)):
            if context.expired():
                break
            y = u + momentum * (u - before)
            s = scaling(own, bound, length, exponent)
            z = y - s * layer.gradient(y, layer.product(y))
            before, u = u, project(z, s, problem.pattern.groups, counts)
            done += 1
        relaxed = patterns.project(problem.pattern, u.double().cpu().numpy())
        relaxed = problem.better(begin.double().cpu().numpy(), relaxed)
        stopped = "deadline" if done < len(trained) else ""
        return replace(state, relaxed=relaxed, stopped=stopped).count(iterations=done, gram_products=done + 2)


def numbers(trained: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """``γ > 0``, ``a`` and ``β`` in (0, 1) of each step, from what is trained, ``(steps, 3)``."""
    return [(torch.exp(row[0]), torch.sigmoid(row[1]), torch.sigmoid(row[2])) for row in trained]


def curvatures(W: torch.Tensor, G: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``Q_ii``, at least ``LEAST`` of ``D_i``, and ``D_i = Σ_j |Q_ij|``, ``(..., rows, n)``; 1 where that is 0."""
    size = W.abs()
    bound = size * (size @ G.abs())
    bound = torch.where(bound > 0, bound, 1.0)
    return torch.maximum(W**2 * G.diagonal(dim1=-2, dim2=-1).unsqueeze(-2), LEAST * bound), bound


def scaling(own: torch.Tensor, bound: torch.Tensor, length: torch.Tensor, exponent: torch.Tensor) -> torch.Tensor:
    """``γ / (2 D) (D / Q_ii)^a``."""
    return length / (2 * bound) * (bound / own) ** exponent


def project(z: torch.Tensor, s: torch.Tensor, groups: Groups, counts: torch.Tensor) -> torch.Tensor:
    """The point of the polytope nearest to ``z (..., rows, n)`` in the metric of ``1 / s``: ``clip(z - λ s, 0, 1)``.

    ``λ`` of each group by bisection, and a step of Newton's, which carries its derivative.

    Args:
        groups: as ``Pattern.groups``; counts: ``(groups, 1)``.
    """
    x, scale = groups(z), groups(s)
    with torch.no_grad():
        low, high = ((x - 1) / scale).amin(-1, keepdim=True), (x / scale).amax(-1, keepdim=True)
        for _ in range(HALVINGS):
            middle = low + (high - low) / 2
            above = (x - middle * scale).clamp(0, 1).sum(-1, keepdim=True) > counts
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        found = low + (high - low) / 2
        inside = x - found * scale
        free = scale * ((inside > 0) & (inside < 1))
        slope = free.sum(-1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
    rest = (x - found * scale).clamp(0, 1).sum(-1, keepdim=True) - counts
    if x.requires_grad:
        found = found + torch.where(slope > torch.finfo(x.dtype).tiny, rest / slope, 0.0)
    return (x - found * scale).clamp(0, 1).reshape(z.shape)
