"""The stage ``splitting``: ADMM between the quadratic, solved by one inverse for all rows, and the masks.

With inputs scaled to norm 1 (``G' = G / (s sᵀ)``, ``W' = W s``, ``s_j = ‖X_j‖``) the error of a mask ``u`` is
``x G' xᵀ`` at ``x = w∘u``. Each iteration minimises over ``x`` near the mask by ``x = (w∘u - y) ρ(G' + ρI)⁻¹``,
then over masks by pruning the least ``w² - 2 w (x + y)``, and adds to ``y`` what is left between them. A target adds
``2tᵀu`` to the error, and so ``-(t / s) (G' + ρI)⁻¹`` to ``x``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from fwbench.patterns import Pattern, Rows
from fwbench.problem import Problem
from fwbench.solvers.frank_wolfe.oracle import oracle
from fwbench.solvers.numerics import lapack
from fwbench.solvers.numerics.jit import fast
from fwbench.solvers.numerics.threads import workers
from fwbench.stage import Context, Needs, Role, Stage, State, register

BLOCK_ROWS = 128  # rows whose arrays stay in a core's cache


@register
@dataclass(frozen=True)
class Splitting(Stage):
    """Alternate between the least error near a mask and the mask nearest to it, ever closer to one another.

    The penalty ``ρ`` grows from ``first`` to ``last`` in geometric progression, ``levels`` values, each with an inverse
    that all rows share; an iteration is one Gram product. It starts from the rounded point, from the mask of Wanda's
    score where there is none. A heuristic (the masks are not convex): it ends at a mask that swaps still improve, and
    proves nothing. The product with the inverse tells of all weights at once what a step of Frank-Wolfe tells of its
    direction, so that a fraction of ``push``'s iterations is enough.
    """

    name: ClassVar[str] = "splitting"
    role: ClassVar[Role] = Role.RELAX
    advice: ClassVar[str] = (
        "In place of `push` from no mask at all, for some 0.6 % more error; not from Wanda's swaps, where `resplit` is "
        "quicker and ends lower."
    )
    needs: ClassVar[Needs] = Needs.NOTHING
    uses: ClassVar[tuple[Needs, ...]] = (Needs.POINT,)
    source: ClassVar[str] = "Boyd et al., Distributed Optimization by ADMM, 2011, section 9.1; Boža, arXiv 2401.02938"
    iterations: int = 96
    levels: int = 12
    first: float = 0.01  # relative to the scaled diagonal
    last: float = 1.5

    def __post_init__(self) -> None:
        if self.iterations < 1 or self.levels < 1:
            raise ValueError("iterations and levels must be positive")
        if not 0 < self.first <= self.last < float("inf"):
            raise ValueError(f"first must be positive and at most last, got {self.first} and {self.last}")

    def run(self, problem: Problem, state: State, context: Context) -> State:
        layer = Scaled.of(problem, context)
        pruned = problem.pattern.prune(layer.w.abs() if state.relaxed is None else -torch.tensor(state.relaxed))
        penalties = np.geomspace(self.first, self.last, self.levels)
        u, done = alternate(problem, layer, pruned, penalties, self.iterations, context)
        stopped = "deadline" if done < self.iterations else ""
        after = replace(state, relaxed=u.cpu().numpy().astype(np.float64), stopped=stopped)
        return after.count(iterations=done, gram_products=done)


@dataclass(frozen=True)
class Scaled:
    """A layer with inputs of norm 1 and largest weights of size 1, on the device."""

    G: torch.Tensor  # (n, n), ones on its diagonal
    w: torch.Tensor  # (rows, n)
    t: torch.Tensor | None  # of the target

    @classmethod
    def of(cls, problem: Problem, context: Context) -> Scaled:
        kind = getattr(torch, context.dtype)
        norm = np.sqrt(np.maximum(problem.G.diagonal(), 0.0))
        inverse = np.divide(1.0, norm, out=np.zeros_like(norm), where=norm > 0)
        scaled = problem.G * inverse
        scaled *= inverse[:, None]
        G = torch.from_numpy(scaled).to(context.device, kind)
        G.fill_diagonal_(1.0)
        W = problem.W * norm
        size = np.abs(W).max(axis=1, keepdims=True) if problem.pattern.separable else np.abs(W).max(keepdims=True)
        size = np.where(size > 0, size, 1.0)
        w = torch.from_numpy(W / size).to(context.device, kind)
        t = None if problem.T is None else torch.from_numpy(problem.T * inverse / size).to(context.device, kind)
        return cls(G, w, t)

    def rows(self, rows: np.ndarray) -> Scaled:
        """Some rows of it."""
        return Scaled(self.G, self.w[rows], None if self.t is None else self.t[rows])


def alternate(
    problem: Problem,
    layer: Scaled,
    pruned: torch.Tensor,
    penalties: np.ndarray,
    iterations: int,
    context: Context,
    over: float = 1.0,
    warm: bool = False,
) -> tuple[torch.Tensor, int]:
    """Iterations from the mask ``pruned (rows, n)``, as many at each penalty: the last mask, 1 where pruned, and how
    many there was time for.

    Args:
        over: relaxation at the first half of the penalties: beyond 1 each step goes that much farther (Boyd et al.,
            section 3.4.3).
        warm: begin with the multiplier of which ``pruned`` is a fixed point, as far as the penalty keeps it one.
    """
    parts = [_Part.of(problem, layer.w, layer.t, pruned.to(layer.w), rows) for rows in _blocks(problem, layer.w.device)]
    ends = np.arange(len(penalties) + 1) * iterations // len(penalties)
    done, before = 0, penalties[0]
    with threadpool_limits(1, user_api="blas"), workers(context.threads, len(parts)) as spread:  # the inverses' as well
        if warm:
            spread(lambda part: part.settle(layer.G, float(penalties[0])), parts)
        for level, rho in enumerate(penalties):
            damped = layer.G.clone()
            damped.diagonal().add_(float(rho))
            near = _inverse(damped).mul_(float(rho))
            for part in parts:
                part.y *= before / rho  # in the scaled form it is the multiplier over ρ
                part.x = part.w * part.u - part.y
                part.shift = None if part.t is None else part.t @ near / -rho
            before, steps = rho, int(ends[level + 1] - ends[level])
            step = over if level < len(penalties) // 2 else 1.0
            made = spread(
                lambda part, near=near, steps=steps, step=step: part.iterate(near, steps, context.expired, step), parts
            )
            done += min(made)
            if min(made) < steps:
                break
    return torch.cat([part.u for part in parts]), done


def _inverse(A: torch.Tensor) -> torch.Tensor:
    """Of a definite matrix, which is used up."""
    if A.device.type != "cpu":
        return torch.cholesky_inverse(torch.linalg.cholesky(A))
    if not lapack.cholesky(A):
        raise ArithmeticError("splitting: G is not positive semidefinite to rounding; raise `first`")
    return lapack.inverse(A)


def _blocks(problem: Problem, device: torch.device) -> list[slice]:
    """Rows that are worked on together; all of them where they share a count, and on a GPU."""
    size = BLOCK_ROWS if problem.pattern.separable and device.type == "cpu" else problem.rows
    return [slice(first, min(first + size, problem.rows)) for first in range(0, problem.rows, size)]


@dataclass
class _Part:
    """Some rows of the layer, ``(rows, n)``."""

    w: torch.Tensor
    u: torch.Tensor  # 1 where pruned
    y: torch.Tensor
    x: torch.Tensor  # w∘u - y
    pattern: Pattern
    counts: np.ndarray  # of each group that spans these rows, or of each row's groups: ``(independent rows, groups)``
    guess: np.ndarray  # the oracle's last thresholds
    t: torch.Tensor | None = None  # of the target
    shift: torch.Tensor | None = None  # of x by that, at the penalty at hand

    @classmethod
    def of(cls, problem: Problem, w: torch.Tensor, t: torch.Tensor | None, u: torch.Tensor, rows: slice) -> _Part:
        whole = problem.pattern
        counts = problem.counts.reshape(problem.rows if whole.separable else 1, -1)
        counts = np.ascontiguousarray(counts[rows] if whole.separable else counts)
        pattern = Rows(whole.pruned[rows]) if isinstance(whole, Rows) else whole
        y, guess = torch.zeros_like(w[rows]), np.full((len(counts), 2), np.nan)
        target = None if t is None else t[rows]
        return cls(w[rows], u[rows].clone(), y, w[rows] * u[rows], pattern, counts, guess, target)

    def settle(self, G: torch.Tensor, rho: float) -> None:
        """The multiplier by which ``x`` is the mask's weights to begin with."""
        pull = (self.w * self.u) @ G
        self.y = (pull if self.t is None else pull + self.t) / -rho

    def iterate(self, near: torch.Tensor, steps: int, expired: Callable[[], bool], over: float = 1.0) -> int:
        """How many of ``steps`` iterations there was time for; ``near (n, n)`` is ``ρ(G' + ρI)⁻¹``."""
        for step in range(steps):
            if expired():
                return step
            if near.device.type == "cpu" and self.pattern.grouped:
                torch.mm(self.x, near, out=(product := torch.empty_like(self.x)))
                if self.shift is not None:
                    product += self.shift
                if over != 1.0:
                    beyond(self.w.numpy(), self.u.numpy(), product.numpy(), product.numpy().dtype.type(over))
                arrays = (self.w, product, self.y, self.u, self.x)
                turn(*(array.numpy().reshape(len(self.counts), -1) for array in arrays), self.counts, self.guess)
            else:
                product = self.x @ near
                product = product if self.shift is None else product + self.shift
                self.turn(product if over == 1.0 else over * product + (1 - over) * self.w * self.u)
        return steps

    def turn(self, product: torch.Tensor) -> None:
        """As the function, on any device."""
        rest = product + self.y
        self.u = self.pattern.prune(self.w * (self.w - 2 * rest)).to(rest)
        self.y = rest - self.w * self.u
        self.x = self.w * self.u - self.y


@fast
def beyond(w, u, product, over):
    """The step from the mask's weights to ``product (rows, n)`` taken ``over`` times, in place."""
    rest = w.dtype.type(1) - over
    for r in range(w.shape[0]):
        mine, mask, step = w[r], u[r], product[r]
        for k in range(mine.size):
            step[k] = over * step[k] + rest * mine[k] * mask[k]


@fast
def turn(w, product, y, u, x, counts, guess):
    """The nearest mask ``u``, the new ``y`` and ``x``, row by row, all ``(rows, n)``; ``product`` is used up."""
    n = w.shape[1]
    scratch, two = np.empty(2 * n, w.dtype), w.dtype.type(2)
    for r in range(w.shape[0]):
        mine, score, rest, mask, next_x = w[r], product[r], y[r], u[r], x[r]
        for k in range(n):
            rest[k] += score[k]
            score[k] = mine[k] * (mine[k] - two * rest[k])
        oracle(score, counts[r], guess[r], mask, scratch)
        for k in range(n):
            pruned = mine[k] * mask[k]
            rest[k] -= pruned
            next_x[k] = pruned - rest[k]
