"""The Frank-Wolfe loop: LMO x direction rule x step rule, batched over the rows of a layer (torch, CPU or CUDA).

Everything is in pruned indicators ``u``. For each row the objective is ``h(u) = uᵀ(Q - D)u + dᵀu`` with
``Q = diag(w) G diag(w)``, ``D = diag(d)``; ``d = 0`` is the plain error. The product ``S = (w∘u) G`` is carried along,
so an iteration costs one Gram product, that of the new vertex.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from fwbench.patterns import Pattern
from fwbench.problem import Problem
from fwbench.stage import Context

CHECK_EVERY = 10  # iterations between two looks at the clock, the stops and the bound


@dataclass
class Layer:
    """Tensors of one problem on one device; ``d`` is None for the plain error."""

    W: torch.Tensor  # (rows, n)
    G: torch.Tensor  # (n, n)
    d: torch.Tensor | None  # (rows, n)
    pattern: Pattern

    @classmethod
    def of(cls, problem: Problem, context: Context, e: np.ndarray | None = None) -> Layer:
        dtype = getattr(torch, context.dtype)
        W = torch.tensor(problem.W, dtype=dtype, device=context.device)
        G = torch.tensor(problem.G, dtype=dtype, device=context.device)
        d = None if e is None else W**2 * torch.tensor(e, dtype=dtype, device=context.device)
        return cls(W, G, d, problem.pattern)

    def total(self, x: torch.Tensor) -> torch.Tensor:
        """Sum over what a step size is chosen for: each row ``(rows, 1)``, or the layer ``(1, 1)``."""
        sums = x.sum(dim=1, keepdim=True)
        return sums if self.pattern.separable else sums.sum(dim=0, keepdim=True)

    def product(self, u: torch.Tensor) -> torch.Tensor:
        """``(w∘u) G``."""
        return (self.W * u) @ self.G

    def gradient(self, u: torch.Tensor, S: torch.Tensor) -> torch.Tensor:
        g = 2 * self.W * S
        return g if self.d is None else g.addcmul_(self.d, 1 - 2 * u)

    def value(self, u: torch.Tensor, S: torch.Tensor) -> torch.Tensor:
        h = self.W * u * S
        return self.total(h if self.d is None else h.addcmul_(self.d, u - u * u))


# --- step rules: (layer, iteration, gap, move, product of the move) -> step in [0, 1] ----------------------------------

StepRule = Callable[[Layer, int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor | float]


def open_loop(layer: Layer, t: int, gap: torch.Tensor, move: torch.Tensor, S_move: torch.Tensor) -> float:
    """``2/(t+2)`` (Jaggi 2013, algorithm 1)."""
    return 2 / (t + 2)


def line_search(
    layer: Layer, t: int, gap: torch.Tensor, move: torch.Tensor, S_move: torch.Tensor
) -> torch.Tensor | float:
    """Exact: ``h`` is quadratic along the move, so the minimiser is ``gap / (2 moveᵀ(Q - D)move)``, clipped."""
    curvature = layer.W * S_move if layer.d is None else layer.W * S_move - layer.d * move
    return _ratio(gap, 2 * layer.total(curvature * move))


def short_step(layer: Layer, t: int, gap: torch.Tensor, move: torch.Tensor, S_move: torch.Tensor) -> torch.Tensor:
    """``gap / (L ‖move‖²)``, with L a bound of each row's largest eigenvalue of ``2Q`` (Gershgorin)."""
    lipschitz = 2 * (layer.W.abs() * (layer.W.abs() @ layer.G.abs())).amax(dim=1, keepdim=True)
    if not layer.pattern.separable:
        lipschitz = lipschitz.amax(dim=0, keepdim=True)
    return _ratio(gap, lipschitz * layer.total(move * move))


STEP_RULES: dict[str, StepRule] = {"open": open_loop, "short": short_step, "linesearch": line_search}


def _ratio(gap: torch.Tensor, denominator: torch.Tensor) -> torch.Tensor:
    step = torch.where(denominator > 0, gap / denominator, torch.where(gap > 0, 1.0, 0.0))
    return step.clamp_(0, 1)


# --- direction rules: (layer, u, gradient, vertex) -> move ---------------------------------------------------------------

DirectionRule = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def towards_vertex(u: torch.Tensor, vertex: torch.Tensor) -> torch.Tensor:
    """Vanilla Frank-Wolfe: straight to the oracle's vertex."""
    return vertex - u


DIRECTION_RULES: dict[str, DirectionRule] = {"vanilla": towards_vertex}


# --- the loop ----------------------------------------------------------------------------------------------------------


@dataclass
class Options:
    steps: int = 1000
    step: str = "linesearch"
    variant: str = "vanilla"
    gap: float = 0.0  # stop at this Frank-Wolfe gap relative to the value, in every row
    fixed: torch.Tensor | None = None  # bool (rows, n): weights that stay, whatever the oracle says


@dataclass
class Run:
    """Where a run ended. ``u`` is the last iterate, ``best_u`` the one whose gap bounds best, row by row."""

    u: torch.Tensor
    S: torch.Tensor
    best_u: torch.Tensor
    bound: torch.Tensor  # (rows, 1) or (1, 1): h - gap at best_u, in the layer's own precision
    iterations: int
    stopped: str
    trace: list[tuple[float, None, float]] = field(default_factory=list)


def minimise(layer: Layer, u: torch.Tensor, options: Options, context: Context) -> Run:
    """Minimise ``h`` over the pattern's polytope from ``u (rows, n)``.

    Stops after ``options.steps``, at a relative gap, or at the deadline; ``gap = gradientᵀ(u - vertex)`` bounds the
    distance to the minimum (Jaggi 2013, eq. 2).
    """
    direction, rule = DIRECTION_RULES[options.variant], STEP_RULES[options.step]
    u, S = u.clone(), layer.product(u)
    best_u, best = u.clone(), torch.full_like(layer.total(u), -torch.inf)
    trace: list[tuple[float, None, float]] = []
    for t in range(options.steps + 1):
        gradient = layer.gradient(u, S)
        score = gradient if options.fixed is None else gradient.masked_fill(options.fixed, torch.inf)
        vertex = layer.pattern.prune(score).to(u.dtype)
        move = direction(u, vertex)
        gap = -layer.total(gradient * move)
        if t % CHECK_EVERY == 0 or t == options.steps:
            value = layer.value(u, S)
            bound = value - gap
            better = bound > best
            best = torch.where(better, bound, best)
            best_u = torch.where(better, u, best_u)
            trace.append((context.seconds(), None, float(best.clamp(min=0).sum(dtype=torch.float64))))
            if t == options.steps:
                return Run(u, S, best_u, best, t, "", trace)
            if options.gap > 0 and bool((gap <= options.gap * value.clamp(min=0)).all()):
                return Run(u, S, best_u, best, t, "", trace)
            if context.expired():
                return Run(u, S, best_u, best, t, "deadline", trace)
        S_move = (layer.W * move) @ layer.G
        step = rule(layer, t, gap, move, S_move)
        u = u + step * move
        S = S + step * S_move
    raise AssertionError("the loop ends inside")
