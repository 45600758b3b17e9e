"""What the executions of the Frank-Wolfe loop share: the objective on a device, the options, and where a run ended."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from fwbench.patterns import Pattern, Rows
from fwbench.problem import Problem
from fwbench.result import TracePoint
from fwbench.solvers.numerics.scaling import in_range
from fwbench.stage import Context

EQUAL = 60  # exponent of equal scales where the objective is nowhere convex
CHECK_EVERY = 10  # iterations between two looks at the clock, the stops and the bound
REFRESH = 250  # iterations after which the gradient is computed afresh, so that rounding does not add up


@dataclass
class Objective:
    """Tensors of one problem on one device; ``d`` is None for the plain error, ``c`` where there is no target.

    ``unit (rows, 1)``, or ``(1, 1)`` where rows are not independent: the problem's error where the layer's is 1;
    ``offset``, of the shape of ``total``, float64, in the layer's unit: what the target adds to every error.
    """

    W: torch.Tensor  # (rows, n)
    G: torch.Tensor  # (n, n)
    d: torch.Tensor | None  # (rows, n)
    pattern: Pattern
    unit: torch.Tensor | float = 1.0
    c: torch.Tensor | None = None  # (rows, n), the linear term
    offset: torch.Tensor | float = 0.0

    @classmethod
    def of(cls, problem: Problem, context: Context, d: np.ndarray | None = None) -> Objective:
        """The layer in the context's precision and its range, on its device; ``d = w²∘e (rows, n)``."""
        W, G, c = problem.W, problem.G, problem.linear
        unit: torch.Tensor | float = 1.0
        rows, columns = in_range(W, G.diagonal(), problem.pattern.separable, d, c)
        if (rows != 1).any() or (columns != 1).any():
            back = np.where(columns > 0, columns, 1.0)
            W, G, d = W * rows * columns, G / back / back[:, None], None if d is None else d * rows**2
            c = None if c is None else c * rows**2
            unit = torch.from_numpy(1 / (rows if problem.pattern.separable else rows[:1]) ** 2).to(context.device)

        def tensor(x: np.ndarray) -> torch.Tensor:
            return torch.tensor(x, dtype=getattr(torch, context.dtype), device=context.device)

        layer = cls(tensor(W), tensor(G), None if d is None else tensor(d), problem.pattern, unit)
        if c is None or problem.offset is None:
            return layer
        offset = torch.from_numpy(problem.offset[:, None] * rows**2).to(context.device)
        return replace(layer, c=tensor(c), offset=layer.total(offset))

    def rows(self, part: slice | np.ndarray) -> Objective:
        """Some rows, as a layer of their own, where rows are independent."""
        pattern = Rows(self.pattern.pruned[part]) if isinstance(self.pattern, Rows) else self.pattern
        unit = self.unit if isinstance(self.unit, float) else self.unit[part]
        d, c = (None if x is None else x[part] for x in (self.d, self.c))
        offset = self.offset if isinstance(self.offset, float) else self.offset[part]
        return Objective(self.W[part], self.G, d, pattern, unit, c, offset)

    @property
    def floor(self) -> float:
        """What no error is below; see ``Problem.floor``."""
        return 0.0 if self.c is None else -math.inf

    def size(self, value: torch.Tensor) -> torch.Tensor:
        """What a gap is compared with at this value of the objective: with a target it may be negative."""
        return value.clamp(min=0) if self.c is None else value.abs()

    @property
    def tied(self) -> int:
        """Rows that have one step size."""
        return self.pattern.tied((self.W.shape[0], self.W.shape[1]))

    def summed(self, x: torch.Tensor) -> float:
        """Sum over the layer of what ``total`` gave, in the units of the problem."""
        repeated = self.tied if 1 < self.tied < len(self.W) else 1
        return float((x * self.unit).sum(dtype=torch.float64)) / repeated

    def total(self, x: torch.Tensor) -> torch.Tensor:
        """Sum over the rows of one step size: each row has it, ``(rows, 1)``, or the layer ``(1, 1)``."""
        return self._by_step(x.sum(dim=1, keepdim=True), torch.Tensor.sum)

    def least(self, x: torch.Tensor) -> torch.Tensor:
        """Minimum over the same."""
        return self._by_step(x.amin(dim=1, keepdim=True), torch.Tensor.amin)

    def _by_step(self, own: torch.Tensor, reduce: Callable[..., torch.Tensor]) -> torch.Tensor:
        """What each row has, ``(rows, 1)``, reduced over the rows of one step."""
        tied = self.tied
        if tied == 1:
            return own
        if tied == len(own):
            return reduce(own, dim=0, keepdim=True)
        return reduce(own.reshape(-1, tied), dim=1, keepdim=True).repeat_interleave(tied, dim=0)

    def product(self, u: torch.Tensor) -> torch.Tensor:
        """``(w∘u) G``."""
        return (self.W * u) @ self.G

    def gradient(self, u: torch.Tensor, S: torch.Tensor) -> torch.Tensor:
        g = 2 * self.W * S
        g = g if self.d is None else g.addcmul_(self.d, 1 - 2 * u)
        return g if self.c is None else g.add_(self.c)

    def value(self, u: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        """From the gradient: ``h = (g + d + c)ᵀu / 2``, and the offset."""
        for origin in (self.d, self.c):
            g = g if origin is None else g + origin
        return self.total(g * u) / 2 + self.offset

    def rounded_error(self, u: torch.Tensor) -> float:
        """Error of the mask that prunes the largest ``u`` of each group."""
        mask = self.pattern.prune(-u).to(u.dtype)
        error = self.W * mask * self.product(mask)
        error = error if self.c is None else error + self.c * mask
        return float((error * self.unit).sum(dtype=torch.float64)) + self.summed(torch.as_tensor(self.offset))

    def scale(self) -> torch.Tensor:
        """Inverse of the diagonal of ``Q - D``, kept within 1e6 of its largest entry's; where none is positive, equal.

        Equal ones only set the length of a direction: a large power of two, from which no step is too short.
        """
        diagonal = self.W**2 * self.G.diagonal()
        diagonal = diagonal if self.d is None else diagonal - self.d
        top = diagonal.amax(dim=1, keepdim=True)
        size = 2.0 ** torch.frexp(diagonal.abs().amax(dim=1, keepdim=True)).exponent
        least = torch.where(top > 0, 1e-6 * top, 2.0**-EQUAL * size)
        return 1 / torch.maximum(diagonal, least).clamp(min=torch.finfo(diagonal.dtype).tiny)

    def lipschitz(self) -> torch.Tensor:
        """A bound of the largest eigenvalue of ``2Q``, of each row or of the layer (Gershgorin)."""
        size = self.W.abs()
        return -self.least(-2 * (size * (size @ self.G.abs())))


@dataclass
class LoopOptions:
    steps: int = 1000
    step: str = "linesearch"
    variant: str = "vanilla"
    gap: float = 0.0  # stop a row at this Frank-Wolfe gap relative to its value
    fixed: torch.Tensor | None = None  # bool (rows, n): weights that stay, whatever the oracle says
    ell: float = 2.0  # of the open loop's step ell / (t + ell)
    seconds: float = math.inf
    capacity: int = 0  # atoms in a row's active set; 0 for as many as it may need (of a whole layer: as memory allows)
    correct: int = 0  # iterations from one quadratic correction to the next, 0 for none
    rounded: bool = False  # whether the trace tells the error of the rounded iterate
    first: int = 0  # iterations made before this run: open steps and corrections go on from there


@dataclass
class LoopRun:
    """Where a run ended. ``u`` is the last iterate, ``best_u`` the one whose gap bounds best, row by row."""

    u: torch.Tensor
    best_u: torch.Tensor
    bound: torch.Tensor  # (rows, 1) or (1, 1): h - gap at best_u, in the layer's own precision and units
    iterations: int
    stopped: str
    trace: list[TracePoint] = field(default_factory=list)
    counters: dict[str, int] = field(default_factory=dict)
