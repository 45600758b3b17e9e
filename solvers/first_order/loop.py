"""The loop of the first-order methods: steps, and now and then the Frank-Wolfe gap at the iterate, as ``fw`` has it.

A row whose gap is small enough keeps its point; when enough have, the others go on alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from fwbench import patterns
from fwbench.problem import Problem
from fwbench.result import TracePoint
from fwbench.solvers.first_order.simplex import CappedSimplex
from fwbench.solvers.frank_wolfe.objective import CHECK_EVERY, LoopRun, Objective
from fwbench.solvers.numerics.threads import torch_threads
from fwbench.solvers.semidefinite.row_diagonals import layer_certificate
from fwbench.stage import Context, State

SHRINK_AT = 0.8  # go on without the finished rows when no more than this part is left


class Method:
    """A first-order method under way on some rows: its tensors, ``(rows, n)`` or a column, and what it has cost.

    A subclass lists in ``arrays`` the tensors that have a line for each row, in ``columns`` those that have one for
    each independent problem.
    """

    arrays: tuple[str, ...] = ("u", "g", "scale")
    columns: tuple[str, ...] = ("level",)

    def __init__(self, layer: Objective, start: torch.Tensor) -> None:
        self.layer, self.u = layer, start
        self.simplex = CappedSimplex.of(layer.pattern, start)
        self.scale = layer.scale()
        # the gradient at which a weight is neither pruned nor kept, as the last projection had it: (rows, their groups)
        self.level = torch.zeros_like(self.simplex.counts).reshape(len(start) if layer.pattern.separable else 1, -1)
        self.products = 0.0  # of all rows with G
        self.g = self.gradient(start)

    def gradient(self, u: torch.Tensor) -> torch.Tensor:
        """At ``u``, for one product."""
        self.products += 1
        return self.layer.gradient(u, self.layer.product(u))

    def step(self) -> None:
        """One iteration: a new ``u`` and ``g``."""
        raise NotImplementedError

    def point(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The iterate, in the polytope, and its gradient."""
        return self.u, self.g

    def keep(self, rows: np.ndarray) -> None:
        """Go on with these rows alone; rows are independent."""
        self.layer = self.layer.rows(rows)
        for name in (*self.arrays, *self.columns):
            setattr(self, name, getattr(self, name)[rows])
        self.simplex = CappedSimplex.of(self.layer.pattern, self.u)


@dataclass(frozen=True)
class Limits:
    """When to stop."""

    steps: int
    gap: float  # of a row, relative to its value
    seconds: float = math.inf


def minimise(method: Method, limits: Limits, context: Context) -> LoopRun:
    """Step until every row is at its gap, or the limits are reached; the answer is in the order of the layer's rows."""
    layer, u = method.layer, method.u
    deadline = min(context.deadline, time.monotonic() + limits.seconds)
    lines = np.arange(len(u))  # rows still at work
    blocks = len(u) if layer.pattern.separable else 1
    end, best_u = u.clone(), u.clone()
    # in float64, as a target's offset is
    best, value = (torch.full((blocks, 1), fill, dtype=torch.float64, device=u.device) for fill in (-torch.inf, 0.0))
    trace: list[TracePoint] = []
    t, stopped = 0, ""
    while True:
        late = time.monotonic() >= deadline
        if t % CHECK_EVERY == 0 or t == limits.steps or late:
            point, g = method.point()
            own = method.layer
            here = lines if layer.pattern.separable else np.arange(1)
            now = own.value(point, g).double()
            gap = own.total(g * (point - own.pattern.prune(g).to(g.dtype))).double()
            better = now - gap > best[here]
            best_u[lines] = torch.where(better, point, best_u[lines])
            best[here] = torch.maximum(best[here], now - gap)
            value[here], end[lines] = now, point
            trace.append(context.point(None, layer.summed(best.clamp(min=layer.floor)), t, layer.summed(value)))
            open_rows = ~(gap <= limits.gap * own.size(now))[:, 0].cpu().numpy()
            if t == limits.steps or late or not open_rows.any():
                stopped = "deadline" if late and t < limits.steps and open_rows.any() else ""
                break
            if layer.pattern.separable and open_rows.sum() <= SHRINK_AT * len(open_rows):
                lines = lines[open_rows]
                method.keep(np.flatnonzero(open_rows))
        method.step()
        t += 1
    products = math.ceil(method.products)
    counters = {"lmo_calls": len(trace), "gram_products": products}
    return LoopRun(end, best_u, best.to(u.dtype), t, stopped, trace, counters)


Begin = Callable[[Objective, torch.Tensor], Method]


def relax(problem: Problem, state: State, begin: Begin, limits: Limits, context: Context, source: str) -> State:
    """What a stage makes of a state: the point where the method ends, and the bound of its best one."""
    start = (~state.mask).astype(np.float64) if state.relaxed is None else np.array(state.relaxed)
    layer = Objective.of(problem, context)
    with torch_threads(context.threads):
        run = minimise(begin(layer, torch.tensor(start).to(layer.W)), limits, context)
    certificate = layer_certificate(problem, {}, None, _numpy(run.best_u), source)
    relaxed = patterns.project(problem.pattern, _numpy(run.u), patterns.DRIFT)
    after = replace(state, relaxed=relaxed, stopped=run.stopped, trace=(*state.trace, *run.trace))
    return after.bound(certificate.bound, certificate).count(iterations=run.iterations, **run.counters)


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.clamp(0, 1).cpu().numpy()
