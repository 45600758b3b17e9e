"""Averages of the iterates of any relaxation: Polyak's, and lookahead, which goes back part of the way.

Both walk some iterations at a time with the method as it is, so that none has to know of them. With ``T`` such a walk,
lookahead is the Krasnosel'skiĭ-Mann iteration ``z ← z + weight (T(z) - z)``, which has its fixed points (Pethick et
al., Stable Nonconvex-Nonconcave Training via Linear Interpolation, NeurIPS 2023).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from fwbench.result import TracePoint
from fwbench.solvers.frank_wolfe.objective import LoopOptions, LoopRun, Objective
from fwbench.stage import Context

AVERAGES = ("none", "polyak", "lookahead")


@dataclass(frozen=True)
class Averaging:
    """``every`` iterations the average is brought up to date.

    ``polyak``: the mean of the iterates so far, the j-th with weight j. ``lookahead``: walks begin at the average,
    which moves by ``weight`` towards where they end.
    """

    kind: str = "lookahead"
    every: int = 10
    weight: float = 0.5

    def __post_init__(self) -> None:
        if self.kind not in AVERAGES:
            raise ValueError(f"unknown average {self.kind!r}; known: {', '.join(AVERAGES)}")
        if self.every < 1:
            raise ValueError("every must be positive")
        if not 0 < self.weight <= 1:
            raise ValueError(f"weight is in (0, 1], got {self.weight}")

    def advance(self, turn: int, mean: torch.Tensor, end: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The average after walk ``turn`` (1, 2, ...) ended at ``end``, and where the next walk begins."""
        if self.kind == "polyak":
            return mean + 2 / (turn + 1) * (end - mean), end
        mean = mean + self.weight * (end - mean)
        return mean, mean


Walk = Callable[[torch.Tensor, LoopOptions, Context], LoopRun]


def minimise_averaged(
    walk: Walk, layer: Objective, u: torch.Tensor, options: LoopOptions, averaging: Averaging, context: Context
) -> LoopRun:
    """As ``loop.minimise``, by walks of ``averaging.every`` iterations from ``u (rows, n)``.

    Each look at the average costs a product, and each walk one more to begin with.

    A row ends at its average or at where its last walk ended, whichever has the smaller gap.
    """
    mean = end = u
    best, best_u = torch.full_like(layer.total(u), -torch.inf), u
    trace: list[TracePoint] = []
    counters: dict[str, int] = {}
    done = turn = 0
    stopped = ""
    unheard = replace(context, listener=None)
    while True:
        points = [mean] if turn == 0 or averaging.kind == "lookahead" else [mean, end]
        looks = [_look(layer, point, options.fixed) for point in points]
        point, value, gap = points[0], *looks[0]
        for other, (its_value, its_gap) in zip(points[1:], looks[1:], strict=True):
            nearer = its_gap < gap
            point, value = torch.where(nearer, other, point), torch.where(nearer, its_value, value)
            gap = torch.minimum(gap, its_gap)
        better = value - gap > best
        best, best_u = torch.where(better, value - gap, best), torch.where(better, point, best_u)
        counters["gram_products"] = counters.get("gram_products", 0) + len(looks)
        upper = layer.rounded_error(point) if options.rounded else None
        lower = layer.summed(best.clamp(min=layer.floor))
        trace.append(context.point(upper, lower, done, layer.summed(value)))
        if done >= options.steps or bool((gap <= options.gap * layer.size(value)).all()):
            break
        if context.expired():
            stopped = "deadline"
            break
        own = replace(options, steps=min(averaging.every, options.steps - done), first=options.first + done)
        run = walk(end, own, unheard)
        turn, done = turn + 1, done + max(run.iterations, 1)
        for name, count in run.counters.items():
            counters[name] = counters.get(name, 0) + count
        mean, end = averaging.advance(turn, mean, run.u)
    return LoopRun(point, best_u, best, done, stopped, trace, counters)


def _look(layer: Objective, u: torch.Tensor, fixed: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Value and Frank-Wolfe gap at ``u``."""
    g = layer.gradient(u, layer.product(u))
    score = g if fixed is None else g.masked_fill(fixed, torch.inf)
    return layer.value(u, g), layer.total(g * (u - layer.pattern.prune(score).to(g.dtype)))
