"""Vanilla Frank-Wolfe on a CUDA device in Triton: an iteration is one product and one kernel, and 50 are one graph.

A program holds a row in registers: it steps along the direction whose product came in, finds the oracle's threshold by
counting from the last one's (no sort), and writes the next direction. Same results as ``loop_torch``, up to rounding.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import triton
import triton.language as tl

from fwbench.patterns import NM
from fwbench.result import TracePoint
from fwbench.solvers.frank_wolfe.objective import REFRESH, LoopOptions, LoopRun, Objective
from fwbench.stage import Context

LOOK = 50  # iterations between two looks at the clock, the stops and the bound: each waits for the device
MOST = 1 << 14  # entries of a row that fit into a program's registers
BYTES = 1 << 12  # of a row that a warp takes: fewer warps wait less for each other (measured on an H200)
# Beyond the keys of all numbers, infinities too; exact in float32 and float64, so that no rounding leaves the integers
FARTHEST = {torch.int32: 2.0**31 - 2.0**7, torch.int64: 2.0**63 - 2.0**39}
RULES = {"open": 0, "linesearch": 1}


def fits(layer: Objective, options: LoopOptions) -> bool:
    """Whether this loop can run it; what it cannot run ``loop_torch`` can."""
    size, n = _size(layer), layer.W.shape[1]
    return (
        options.variant == "vanilla"
        and options.step in RULES
        and not (options.first and options.step == "open")
        and layer.pattern.separable
        and not size & (size - 1)
        and 0 < n <= MOST
        and layer.W.numel() < 1 << 31
    )


def _size(layer: Objective) -> int:
    """Of the groups of N:M; 1 where a row is one group."""
    return layer.pattern.of if isinstance(layer.pattern, NM) else 1


@triton.jit
def _smallest(
    x, inside, k, n, guess, spacing, LOWEST: tl.constexpr, HIGHEST: tl.constexpr, FARTHEST: tl.constexpr
):  # fmt: skip
    """Mark the ``k`` smallest of ``x``, ties to the lower index: a threshold found by counting, as in ``oracle``.

    It is sought on integers in the order of the floats, from ``guess``, by steps of the ``spacing`` of neighbours
    until it lies between two counts, then by interpolation, every third time by bisection. Also returns the threshold
    and the spacing for the next time.
    """
    x = tl.where(x == 0, 0.0, x)  # no negative zero, which compares equal and has other bits
    key = x.to(tl.int32 if x.dtype == tl.float32 else tl.int64, bitcast=True)
    key = tl.where(key < 0, key ^ HIGHEST, key)
    low = tl.cast(LOWEST, key.dtype)  # count(low) < k <= count(high), the ends counted as if none and all
    high = tl.cast(HIGHEST, key.dtype)
    under = tl.cast(0, tl.int32)
    over = tl.cast(n, tl.int32)
    probe = guess
    reach = tl.cast(1.0, tl.float64)
    passes = tl.cast(0, tl.int32)
    count = tl.cast(-1, tl.int32)
    while (count != k) & (low + 1 < high) & (k > 0):
        count = tl.sum((inside & (key <= probe)).to(tl.int32), axis=0)
        passes += 1
        low = tl.where(count < k, probe, low)
        under = tl.where(count < k, count, under)
        high = tl.where(count < k, high, probe)
        over = tl.where(count < k, over, count)
        bottom = low.to(tl.float64)
        top = high.to(tl.float64)
        between = (low > LOWEST) & (high < HIGHEST)
        spacing = tl.where(between & (over - under >= 8), (top - bottom) / tl.maximum(over - under, 1), spacing)
        share = tl.where(passes % 3 == 0, 0.5, (k - under + 0.5) / tl.maximum(over - under, 1))
        ahead = bottom + tl.maximum((k - under + 0.5) * spacing, 1.0) * reach
        back = top - tl.maximum((over - k + 0.5) * spacing, 1.0) * reach
        aim = tl.where(between, bottom + share * (top - bottom), tl.where(high < HIGHEST, back, ahead))
        reach = tl.where(between, 1.0, 2 * reach)
        aim = tl.minimum(tl.maximum(aim, -FARTHEST), FARTHEST)
        probe = tl.minimum(tl.maximum(aim.to(key.dtype), low + 1), high - 1)
    chosen = inside & (key <= high)
    if count != k:
        below = inside & (key < high)
        tied = inside & (key == high)
        left = k - tl.sum(below.to(tl.int32), axis=0)
        chosen = below | (tied & (tl.cumsum(tied.to(tl.int32), axis=0) <= left))
    return chosen & (k > 0), high, spacing


@triton.jit
def _smallest_of_groups(x, k, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """The same in each group of ``SIZE`` neighbours, by ranks."""
    mine = tl.reshape(x, (BLOCK // SIZE, SIZE))
    column = tl.arange(0, SIZE)[None, :]
    rank = tl.zeros((BLOCK // SIZE, SIZE), tl.int32)
    for j in tl.static_range(SIZE):
        other = tl.sum(tl.where(column == j, mine, 0.0), axis=1)[:, None]
        rank += ((other < mine) | ((other == mine) & (column > j))).to(tl.int32)
    return tl.reshape((rank < k).to(tl.int32), (BLOCK,)) != 0


@triton.jit(do_not_specialize=["offset"])
def _iterate(
    w_, d_, c_, base_, fixed_, counts_, u_, g_, v_, p_, t_, slope_, value_, best_, best_u_, done_, began_, guess_,
    spacing_, n, offset, ell, gap,
    HAS_D: tl.constexpr, HAS_C: tl.constexpr, HAS_FIXED: tl.constexpr, MOVE: tl.constexpr, CHECK: tl.constexpr,
    RULE: tl.constexpr, SIZE: tl.constexpr, LOWEST: tl.constexpr, HIGHEST: tl.constexpr, FARTHEST: tl.constexpr,
    EPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Step along the direction whose product is in ``t_`` (if ``MOVE``), then the next direction, its slope and ``p_``.

    ``CHECK``: also the objective, and the best bound with its point.
    """
    row = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    inside = column < n
    at = row * n + column
    w = tl.load(w_ + at, inside, other=0)
    u = tl.load(u_ + at, inside, other=0)
    g = tl.load(g_ + at, inside, other=0)
    d = tl.load(d_ + at, inside, other=0) if HAS_D else w
    done = tl.load(done_ + row)
    if MOVE:
        move = tl.load(v_ + at, inside, other=0).to(w.dtype) - u
        change = 2 * w * tl.load(t_ + at, inside, other=0)
        if HAS_D:
            change -= 2 * d * move
        slope = tl.load(slope_ + row)
        if RULE == 0:
            step = tl.cast(ell, w.dtype) / (tl.load(began_) + offset + ell).to(w.dtype)
        else:
            curvature = tl.sum(change * move, axis=0)
            step = tl.where(slope < curvature, slope / tl.where(curvature > 0, curvature, 1.0), 1.0)
        step = tl.where((slope > 0) & (done == 0), step, 0.0).to(w.dtype)
        u += step * move
        u = tl.where(u < EPS, 0.0, tl.where(u > 1 - EPS, 1.0, u))
        g += step * change
        tl.store(u_ + at, u, inside)
        tl.store(g_ + at, g, inside)
    score = g
    if HAS_FIXED:
        score = tl.where(tl.load(fixed_ + at, inside, other=0) != 0, float("inf"), g)
    k = tl.load(counts_ + row)
    if SIZE > 1:
        pruned = _smallest_of_groups(score, k, SIZE, BLOCK)
    else:
        guess = tl.load(guess_ + row)
        spacing = tl.load(spacing_ + row)
        pruned, guess, spacing = _smallest(score, inside, k, n, guess, spacing, LOWEST, HIGHEST, FARTHEST)
        tl.store(guess_ + row, guess)
        tl.store(spacing_ + row, spacing)
    v = pruned.to(w.dtype)
    slope = tl.sum(tl.where(inside, g * (u - v), 0.0), axis=0)
    tl.store(slope_ + row, slope)
    tl.store(v_ + at, pruned.to(tl.uint8), inside)
    tl.store(p_ + at, w * (v - u), inside)
    if CHECK:
        h = (g + d) * u if HAS_D else g * u
        if HAS_C:
            h += tl.load(c_ + at, inside, other=0) * u
        value = tl.sum(tl.where(inside, h, 0.0), axis=0) / 2
        if HAS_C:
            value += tl.load(base_ + row)
        tl.store(value_ + row, value)
        if value - slope > tl.load(best_ + row):
            tl.store(best_ + row, value - slope)
            tl.store(best_u_ + at, u, inside)
        size = tl.abs(value) if HAS_C else tl.maximum(value, 0.0)
        tl.store(done_ + row, ((done != 0) | ((gap > 0) & (slope <= gap * size))).to(tl.uint8))


class Loop:
    """A layer's arrays on the device, and the kernels' launches on them."""

    def __init__(self, layer: Objective, options: LoopOptions) -> None:
        rows, n = layer.W.shape
        kind, device = layer.W.dtype, layer.W.device
        key = torch.int32 if kind == torch.float32 else torch.int64
        size = _size(layer)
        counts = layer.pattern.counts((rows, n)).reshape(rows, -1)[:, 0]  # in N:M all groups' are equal
        self.layer = replace(layer, W=layer.W.contiguous(), d=None if layer.d is None else layer.d.clone())
        self.fixed, self.length = options.fixed, min(LOOK, options.steps)
        self.counts = torch.tensor(counts, dtype=torch.int32, device=device)
        self.u, self.g, self.P, self.T, self.best_u = (torch.empty_like(self.layer.W) for _ in range(5))
        self.v = torch.zeros((rows, n), dtype=torch.uint8, device=device)
        self.slope, self.value, self.best = (torch.zeros(rows, dtype=kind, device=device) for _ in range(3))
        self.done = torch.zeros(rows, dtype=torch.uint8, device=device)
        self.began = torch.zeros((), dtype=torch.int32, device=device)
        self.guess = torch.zeros(rows, dtype=key, device=device)
        self.spacing = torch.full((rows,), 2.0 ** (torch.iinfo(key).bits // 2), dtype=torch.float64, device=device)
        self.base = torch.as_tensor(layer.offset, dtype=kind, device=device).expand(rows, 1).contiguous()
        self.scalars = (n, float(options.ell), float(options.gap))
        block = max(triton.next_power_of_2(n), size)
        self.constants = {
            "HAS_D": self.layer.d is not None,
            "HAS_C": self.layer.c is not None,
            "HAS_FIXED": self.fixed is not None,
            "RULE": RULES[options.step],
            "SIZE": size,
            "LOWEST": torch.iinfo(key).min,
            "HIGHEST": torch.iinfo(key).max,
            "FARTHEST": FARTHEST[key],
            "EPS": 2 * torch.finfo(kind).eps,
            "BLOCK": block,
            "num_warps": max(2, min(16, block * kind.itemsize // BYTES)),
        }
        self.graph: torch.cuda.CUDAGraph | None = None
        self.rounds = 0

    def begin(self, u: torch.Tensor, d: torch.Tensor | None) -> None:
        """From ``u`` on, with another ``d`` where there is one: at the gradient there."""
        if self.layer.d is not None:
            assert d is not None
            self.layer.d.copy_(d)
        self.u.copy_(u)
        self.best.fill_(-torch.inf)
        self.done.zero_()
        self.began.zero_()
        self.refresh()

    def refresh(self) -> None:
        """The gradient afresh, and the next direction."""
        self.g.copy_(self.layer.gradient(self.u, self.layer.product(self.u)))
        self.launch(0, move=False, check=True)

    def step(self, offset: int, check: bool) -> None:
        """Iteration ``began + offset``."""
        torch.mm(self.P, self.layer.G, out=self.T)
        self.launch(offset, move=True, check=check)

    def steps(self, count: int) -> None:
        """``count`` iterations, the last one with a check; ``length`` of them are one graph from the second time on."""
        if count == self.length and self.rounds == 1 and self.u.device.type == "cuda":
            self.graph = self._captured()
        if count == self.length and self.graph is not None:
            self.graph.replay()
        else:
            self._steps(count)
        self.began += count
        self.rounds += 1

    def _steps(self, count: int) -> None:
        for offset in range(count):
            self.step(offset, check=offset + 1 == count)

    def _captured(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._steps(self.length)
        return graph

    def launch(self, offset: int, move: bool, check: bool) -> None:
        """The kernel: the step ``began + offset`` if ``move``, then the next direction."""
        n, ell, gap = self.scalars
        W = self.layer.W
        d, c = (W if x is None else x for x in (self.layer.d, self.layer.c))
        fixed = self.v if self.fixed is None else self.fixed
        _iterate[(len(W),)](
            W, d, c, self.base, fixed, self.counts, self.u, self.g, self.v, self.P, self.T, self.slope, self.value,
            self.best, self.best_u, self.done, self.began, self.guess, self.spacing, n, offset, ell, gap, MOVE=move,
            CHECK=check, **self.constants,
        )  # fmt: skip


def minimise_triton(layer: Objective, u: torch.Tensor, options: LoopOptions, context: Context, loop: Loop) -> LoopRun:
    """As ``loop.minimise``, with a moment in the trace every ``LOOK`` iterations.

    Args:
        loop: made for a layer that differs in the values of ``d`` at most, and for the same options.
    """
    loop.begin(u, layer.d)
    trace: list[TracePoint] = []
    t, products, stopped = 0, 1, ""
    while True:
        total, lower = layer.summed(loop.value[:, None]), layer.summed(loop.best[:, None].clamp(min=layer.floor))
        upper = layer.rounded_error(loop.u) if options.rounded else None
        trace.append(context.point(upper, lower, t, total))
        finished = t >= options.steps or (options.gap > 0 and bool(loop.done.all()))
        if finished or context.expired():
            stopped = "" if finished else "deadline"
            break
        count = min(loop.length, options.steps - t)
        loop.steps(count)
        t, products = t + count, products + count
        if t % REFRESH == 0:
            loop.refresh()
            products += 1
    counters = {
        "lmo_calls": products,
        "gram_products": products,
        "drop_steps": 0,
        "active_set_max": 0,
        "corrections": 0,
    }
    return LoopRun(loop.u.clone(), loop.best_u.clone(), loop.best[:, None].clone(), t, stopped, trace, counters)
