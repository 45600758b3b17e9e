"""The Frank-Wolfe loop in torch, on any device: the reference of the CPU kernels, and what runs on a GPU."""

from __future__ import annotations

from collections.abc import Callable

import torch

from fwbench.result import TracePoint
from fwbench.solvers.frank_wolfe.layer import ADAPTIVE_START, CHECK_EVERY, REFRESH, Layer, Options, Run
from fwbench.stage import Context

# direction rules: (layer, u, gradient, vertex) -> direction, longest step
DirectionRule = Callable[[Layer, torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor | float]]


def towards_vertex(
    layer: Layer, u: torch.Tensor, g: torch.Tensor, vertex: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | float]:
    """Vanilla Frank-Wolfe: straight to the oracle's vertex."""
    return vertex - u, torch.ones_like(layer.least(u))


def in_face(
    layer: Layer, u: torch.Tensor, g: torch.Tensor, vertex: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | float]:
    """Decomposition-invariant: from the worst vertex of the current face (Garber and Meshi 2016, algorithm 3)."""
    score = torch.where(u <= 0, torch.inf, torch.where(u >= 1, -torch.inf, -g))
    direction = vertex - layer.pattern.prune(score).to(u.dtype)
    room = torch.where(direction > 0, 1 - u, torch.where(direction < 0, u, 1.0))
    most = layer.least(room)
    stuck = most <= 0
    return torch.where(stuck, vertex - u, direction), torch.where(stuck, 1.0, most)


DIRECTIONS: dict[str, DirectionRule] = {"vanilla": towards_vertex, "dicg": in_face}


def step_size(
    options: Options,
    t: int,
    slope: torch.Tensor,
    curvature: torch.Tensor,
    square: torch.Tensor,
    lipschitz: torch.Tensor,
) -> torch.Tensor:
    """The rules of ``kernels.step_size``, without the longest step; ``lipschitz`` is updated."""
    if options.step == "open":
        return torch.where(slope > 0, torch.full_like(slope, options.ell / (t + options.ell)), 0.0)
    if options.step == "adaptive":
        lipschitz.mul_(0.9).clamp_(min=torch.finfo(lipschitz.dtype).tiny)
        while bool((short := (slope > 0) & (lipschitz * square < curvature)).any()):
            lipschitz[short] *= 2
    bottom = curvature if options.step == "linesearch" else lipschitz * square
    return torch.where(slope <= 0, 0.0, torch.where(bottom > 0, slope / bottom, torch.inf))


def minimise_torch(layer: Layer, u: torch.Tensor, options: Options, context: Context) -> Run:
    """As ``loop.minimise``.

    Raises:
        ValueError: a variant with an active set.
    """
    if options.variant not in DIRECTIONS:
        raise ValueError(f"variant {options.variant!r} keeps active sets and runs on the CPU only")
    direction, eps = DIRECTIONS[options.variant], 2 * torch.finfo(u.dtype).eps
    u, S, products = u.clone(), layer.product(u), 1
    best_u, best = u.clone(), torch.full_like(layer.total(u), -torch.inf)
    done = torch.zeros_like(best, dtype=torch.bool)
    lipschitz = torch.zeros_like(best)
    if options.step in ("short", "adaptive"):
        lipschitz += layer.lipschitz() * (ADAPTIVE_START if options.step == "adaptive" else 1.0)
    g = layer.gradient(u, S)
    trace: list[TracePoint] = []
    drops = torch.zeros((), dtype=torch.int64, device=u.device)
    for t in range(options.steps + 1):
        score = g if options.fixed is None else g.masked_fill(options.fixed, torch.inf)
        vertex = layer.pattern.prune(score).to(u.dtype)
        stopped = ""
        if t % CHECK_EVERY == 0 or t == options.steps:
            gap = layer.total(g * (u - vertex))
            value = layer.total(g * u if layer.d is None else (g + layer.d) * u) / 2
            bound = value - gap
            best_u = torch.where(bound > best, u, best_u)
            best = torch.maximum(best, bound)
            total, lower = layer.summed(value), layer.summed(best.clamp(min=0))
            upper = layer.rounded_error(u) if options.rounded else None
            trace.append(context.point(upper, lower, t, total))
            if options.gap > 0:
                done |= gap <= options.gap * value.clamp(min=0)
            if t < options.steps and context.expired() and not bool(done.all()):
                stopped = "deadline"
            if stopped or t == options.steps or bool(done.all()):
                break
        move, most = direction(layer, u, g, vertex)
        slope = -layer.total(g * move)
        change = 2 * layer.W * ((layer.W * move) @ layer.G)
        change = change if layer.d is None else change - 2 * layer.d * move
        products += 1
        step = step_size(options, t, slope, layer.total(change * move), layer.total(move * move), lipschitz)
        step = torch.where(done, 0.0, torch.minimum(step, torch.as_tensor(most)))
        if options.variant != "vanilla":
            drops += ((step >= most) & ~done).sum()
        u = u + step * move
        u = torch.where(u < eps, 0.0, torch.where(u > 1 - eps, 1.0, u))
        g = g + step * change
        if (t + 1) % REFRESH == 0:
            g, products = layer.gradient(u, layer.product(u)), products + 1
    calls = (2 if options.variant == "dicg" else 1) * (t + 1)
    counters = {
        "lmo_calls": calls,
        "gram_products": products,
        "drop_steps": int(drops),
        "active_set_max": 0,
        "corrections": 0,
    }
    return Run(u, best_u, best, t, stopped, trace, counters)
