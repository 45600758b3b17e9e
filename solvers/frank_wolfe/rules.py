"""The direction and step rules of Frank-Wolfe, one table each; a rule of your own is one entry more.

A rule is a function in torch, which runs on any device (``loop_torch``). Those here have a number in the compiled
kernels of the CPU as well (``kernels``), where a row's direction and step are one pass over it; a rule without a number
runs in torch there too. ``fw(variant=NAME, step=NAME)`` names them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from fwbench.patterns import Pattern
from fwbench.problem import Problem
from fwbench.solvers.frank_wolfe import kernels
from fwbench.solvers.frank_wolfe.objective import Objective
from fwbench.stage import ungrouped


class Iterate(NamedTuple):
    """Where a direction is wanted: of each row of the layer."""

    layer: Objective
    u: torch.Tensor  # (rows, n), the iterate
    gradient: torch.Tensor  # (rows, n)
    vertex: torch.Tensor  # (rows, n), the oracle's


class Line(NamedTuple):
    """The objective along a direction ``δ``, of each row ``(rows, 1)``, or of the layer ``(1, 1)``."""

    t: int  # iterations before this one
    ell: float  # the stage's parameter
    slope: torch.Tensor  # -gradientᵀδ
    curvature: torch.Tensor  # 2 δᵀ(Q - D)δ
    square: torch.Tensor  # ‖δ‖²
    lipschitz: torch.Tensor  # an estimate of the gradient's Lipschitz constant, kept from step to step: write to it


Direction = Callable[[Iterate], tuple[torch.Tensor, torch.Tensor]]  # δ (rows, n), and the longest step along it
Step = Callable[[Line], torch.Tensor]  # along a direction that descends; the loop cuts it at the longest


@dataclass(frozen=True)
class DirectionRule:
    """Where to go from an iterate, and how far at most."""

    function: Direction | None = None  # None: in the compiled kernels alone
    kernel: int | None = None  # number in the compiled kernels; None: in torch alone
    oracles: int = 1  # calls an iteration
    atoms: bool = False  # whether it keeps an active set
    scaled: bool = False  # whether it asks for the inverse diagonal of the Hessian


@dataclass(frozen=True)
class StepRule:
    """How far to go."""

    function: Step
    kernel: int | None = None  # as above
    lipschitz: float = 0.0  # the first estimate, in units of Gershgorin's bound; 0 where none is asked for


# --- directions -------------------------------------------------------------------------------------------------------


def towards_vertex(at: Iterate) -> tuple[torch.Tensor, torch.Tensor]:
    """Vanilla Frank-Wolfe: straight to the oracle's vertex."""
    return at.vertex - at.u, torch.ones_like(at.layer.least(at.u))


def in_face(at: Iterate) -> tuple[torch.Tensor, torch.Tensor]:
    """Decomposition-invariant: from the worst vertex of the current face (Garber and Meshi 2016, algorithm 3)."""
    layer, u, g, vertex = at
    score = torch.where(u <= 0, torch.inf, torch.where(u >= 1, -torch.inf, -g))
    direction = vertex - layer.pattern.prune(score).to(u.dtype)
    room = torch.where(direction > 0, 1 - u, torch.where(direction < 0, u, 1.0))
    most = layer.least(room)
    stuck = most <= 0
    return torch.where(stuck, vertex - u, direction), torch.where(stuck, 1.0, most)


DIRECTION_RULES = {
    "vanilla": DirectionRule(towards_vertex, kernels.VANILLA),
    "away": DirectionRule(None, kernels.AWAY, atoms=True),
    "pairwise": DirectionRule(None, kernels.PAIRWISE, atoms=True),
    "bcg": DirectionRule(None, kernels.BCG, atoms=True),
    "bpcg": DirectionRule(None, kernels.BPCG, atoms=True),
    "dicg": DirectionRule(in_face, kernels.DICG, oracles=2, scaled=True),
    "inface": DirectionRule(None, kernels.INFACE, oracles=2, scaled=True),
}


# --- steps ------------------------------------------------------------------------------------------------------------


def _minimum(slope: torch.Tensor, curvature: torch.Tensor) -> torch.Tensor:
    """Of ``-slope s + curvature s²/2``, infinite where that falls for ever."""
    return torch.where(curvature > 0, slope / curvature, torch.inf)


def open_loop(line: Line) -> torch.Tensor:
    """``ell / (t + ell)``, whatever the objective."""
    return torch.full_like(line.slope, line.ell / (line.t + line.ell))


def short(line: Line) -> torch.Tensor:
    """The minimum of the upper bound that the Lipschitz constant gives (Frank and Wolfe 1956)."""
    return _minimum(line.slope, line.lipschitz * line.square)


def exact(line: Line) -> torch.Tensor:
    """The minimum along the direction."""
    return _minimum(line.slope, line.curvature)


def adaptive(line: Line) -> torch.Tensor:
    """``short`` with an estimate that shrinks, and grows where it is too small (Pedregosa et al. 2020, eq. 5)."""
    line.lipschitz.mul_(kernels.SHRINK).clamp_(min=torch.finfo(line.lipschitz.dtype).tiny)
    while bool((small := (line.slope > 0) & (line.lipschitz * line.square < line.curvature)).any()):
        line.lipschitz[small] *= kernels.GROW
    return short(line)


STEP_RULES = {
    "open": StepRule(open_loop, kernels.OPEN),
    "short": StepRule(short, kernels.SHORT, lipschitz=1.0),
    "linesearch": StepRule(exact, kernels.LINESEARCH),
    "adaptive": StepRule(adaptive, kernels.ADAPTIVE, lipschitz=1e-3),  # estimates grow by themselves
}


def fastest(pattern: Pattern) -> str:
    """The variant that converges fastest on the CPU among those that know the pattern."""
    return "inface" if pattern.grouped else "vanilla"


def declined(problem: Problem, variant: str) -> str | None:
    """None, or why the variant, which asks for more than the oracle, declines the problem."""
    return None if DIRECTION_RULES[variant].function else ungrouped(problem, f"variant={variant}")


def compiled(variant: str, step: str) -> bool:
    """Whether the CPU's kernels know both rules.

    Raises:
        ValueError: they do not, and neither does torch.
    """
    known = DIRECTION_RULES[variant].kernel is not None and STEP_RULES[step].kernel is not None
    if not known and DIRECTION_RULES[variant].function is None:
        others = ", ".join(name for name, rule in DIRECTION_RULES.items() if rule.function)
        raise ValueError(f"variant {variant!r} is compiled and knows no step {step!r}; with that, name one of {others}")
    return known
