"""The Frank-Wolfe loop in torch, on any device: the reference of the CPU kernels, and what runs on a GPU."""

from __future__ import annotations

import torch

from fwbench.result import TracePoint
from fwbench.solvers.frank_wolfe.objective import CHECK_EVERY, REFRESH, LoopOptions, LoopRun, Objective
from fwbench.solvers.frank_wolfe.rules import DIRECTION_RULES, STEP_RULES, Iterate, Line
from fwbench.stage import Context


def minimise_torch(layer: Objective, u: torch.Tensor, options: LoopOptions, context: Context) -> LoopRun:
    """As ``loop.minimise``.

    Raises:
        ValueError: a variant that is in the compiled kernels alone.
    """
    rule, step_rule, eps = DIRECTION_RULES[options.variant], STEP_RULES[options.step], 2 * torch.finfo(u.dtype).eps
    if rule.function is None:
        others = ", ".join(name for name, other in DIRECTION_RULES.items() if other.function)
        raise ValueError(f"variant {options.variant!r} runs on the CPU only; on a device, name one of {others}")
    u, S, products = u.clone(), layer.product(u), 1
    best_u, best = u.clone(), torch.full_like(layer.total(u), -torch.inf)
    done = torch.zeros_like(best, dtype=torch.bool)
    lipschitz = torch.zeros_like(best)
    if step_rule.lipschitz:
        lipschitz += step_rule.lipschitz * layer.lipschitz()
    g = layer.gradient(u, S)
    trace: list[TracePoint] = []
    drops = torch.zeros((), dtype=torch.int64, device=u.device)
    for t in range(options.steps + 1):
        score = g if options.fixed is None else g.masked_fill(options.fixed, torch.inf)
        vertex = layer.pattern.prune(score).to(u.dtype)
        stopped = ""
        if t % CHECK_EVERY == 0 or t == options.steps:
            gap = layer.total(g * (u - vertex))
            value = layer.value(u, g)
            bound = value - gap
            best_u = torch.where(bound > best, u, best_u)
            best = torch.maximum(best, bound)
            total, lower = layer.summed(value), layer.summed(best.clamp(min=layer.floor))
            upper = layer.rounded_error(u) if options.rounded else None
            trace.append(context.point(upper, lower, t, total))
            if options.gap > 0:
                done |= gap <= options.gap * layer.size(value)
            if t < options.steps and context.expired() and not bool(done.all()):
                stopped = "deadline"
            if stopped or t == options.steps or bool(done.all()):
                break
        move, most = rule.function(Iterate(layer, u, g, vertex))
        slope = -layer.total(g * move)
        change = 2 * layer.W * ((layer.W * move) @ layer.G)
        change = change if layer.d is None else change - 2 * layer.d * move
        products += 1
        t_all = options.first + t
        line = Line(t_all, options.ell, slope, layer.total(change * move), layer.total(move * move), lipschitz)
        step = torch.where(slope > 0, step_rule.function(line), 0.0)
        step = torch.where(done, 0.0, torch.minimum(step, most))
        if options.variant != "vanilla":
            drops += ((step >= most) & ~done).sum()
        u = u + step * move
        u = torch.where(u < eps, 0.0, torch.where(u > 1 - eps, 1.0, u))
        g = g + step * change
        if (t + 1) % REFRESH == 0:
            g, products = layer.gradient(u, layer.product(u)), products + 1
    counters = {
        "lmo_calls": rule.oracles * (t + 1),
        "gram_products": products,
        "drop_steps": int(drops),
        "active_set_max": 0,
        "corrections": 0,
    }
    return LoopRun(u, best_u, best, t, stopped, trace, counters)
