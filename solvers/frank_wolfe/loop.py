"""The Frank-Wolfe loop: LMO x direction rule x step rule, batched over the rows of a layer.

Everything is in pruned indicators ``u``. For each row the objective is ``h(u) = uᵀ(Q - D)u + (d + c)ᵀu`` with
``Q = diag(w) G diag(w)``, ``D = diag(d)``; ``d = 0`` is the plain error, ``c`` the linear term of a problem that has a
target, whose offset is added where a value or bound is told. The gradient is carried along, so an iteration
costs one Gram product, that of the direction.

Three executions of one loop: fused numba kernels on the CPU (``loop_numba``), fused Triton kernels on CUDA for vanilla
(``loop_triton``), and torch on any device (``loop_torch``), which is also their reference. Variants with an active set
run on the CPU, on part of the rows after the other where their sets would not fit into memory.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
import psutil
import torch

from fwbench.result import TracePoint
from fwbench.solvers.frank_wolfe import loop_numba
from fwbench.solvers.frank_wolfe.active_set import Atoms, atom_bytes, set_up
from fwbench.solvers.frank_wolfe.loop_torch import minimise_torch
from fwbench.solvers.frank_wolfe.objective import CHECK_EVERY, LoopOptions, LoopRun, Objective
from fwbench.solvers.frank_wolfe.rules import DIRECTION_RULES, STEP_RULES, compiled
from fwbench.solvers.numerics.threads import torch_threads
from fwbench.stage import Context

if TYPE_CHECKING:
    from fwbench.solvers.frank_wolfe.loop_triton import Loop


def fused(layer: Objective, options: LoopOptions) -> Loop | None:
    """A Triton loop for several calls of :func:`minimise`; None on the CPU, and for what Triton's loop cannot run.

    It keeps its buffers and its recorded launches, for every ``d`` and ``u`` of this layer.
    """
    if layer.W.device.type == "cpu" or not find_spec("triton"):
        return None
    from fwbench.solvers.frank_wolfe import loop_triton

    return loop_triton.Loop(layer, options) if loop_triton.fits(layer, options) else None


def minimise(
    layer: Objective, u: torch.Tensor, options: LoopOptions, context: Context, loop: Loop | None = None
) -> LoopRun:
    """Minimise ``h`` over the pattern's polytope from ``u (rows, n)``.

    A row stops at its relative gap, all stop after ``options.steps`` or at the deadline; the gap
    ``gradientᵀ(u - vertex)`` bounds the distance to the minimum (Jaggi 2013, eq. 2). ``loop``: see :func:`fused`.

    Raises:
        ValueError: a variant of the CPU's compiled kernels with a step that they do not know, or on another device.
    """
    context = replace(context, deadline=min(context.deadline, time.monotonic() + options.seconds))
    if layer.W.device.type == "cpu":
        if compiled(options.variant, options.step) and layer.pattern.grouped:
            return _minimise_parts(layer, u, options, context)
        with torch_threads(context.threads):
            return minimise_torch(layer, u, options, context)
    if (loop := loop or fused(layer, options)) is not None:
        from fwbench.solvers.frank_wolfe.loop_triton import minimise_triton

        return minimise_triton(layer, u, options, context, loop)
    return minimise_torch(layer, u, options, context)


def _minimise_parts(layer: Objective, u: torch.Tensor, options: LoopOptions, context: Context) -> LoopRun:
    """As many rows at a time as have memory for their active sets, four at least (BLAS has other kernels for fewer):
    each row ends where it would end among all.

    Each part gets its share of the time that is left. The trace tells of the whole layer: of rows that wait or are
    done, what is known by then; its iterations are those of the part that went furthest.
    """
    count = max(1, min(math.ceil(len(u) / _rows_at_a_time(layer, options)), len(u) // loop_numba.FEW_ROWS))
    parts = [slice(len(u) * i // count, len(u) * (i + 1) // count) for i in range(count)]
    if count == 1:
        return _minimise_rows(layer, u, options, context)
    layers = [layer.rows(part) for part in parts]
    fixed = [None if options.fixed is None else options.fixed[part] for part in parts]
    look = replace(options, steps=0, variant="vanilla")
    unheard = replace(context, listener=None)
    known = [
        _minimise_rows(own, u[part], replace(look, fixed=held), unheard).trace[-1]
        for own, part, held in zip(layers, parts, fixed, strict=True)
    ]
    runs: list[LoopRun] = []
    trace: list[TracePoint] = []

    def hear(point: TracePoint) -> None:
        known[len(runs)] = point
        trace.append(_joint(known, context))

    for i, (own, part, held) in enumerate(zip(layers, parts, fixed, strict=True)):
        share = time.monotonic() + context.left() / (len(parts) - i)
        mine = replace(context, deadline=share, listener=hear)
        runs.append(_minimise_rows(own, u[part], replace(options, fixed=held), mine))
    return _joined(runs, trace)


def _rows_at_a_time(layer: Objective, options: LoopOptions) -> int:
    """How many rows' active sets fit into ``ATOM_BYTES`` and into half of the memory that is free."""
    rows, n = layer.W.shape
    if not (layer.pattern.separable and DIRECTION_RULES[options.variant].atoms):
        return max(rows, 1)
    memory = min(loop_numba.ATOM_BYTES, psutil.virtual_memory().available // 2)
    return max(1, memory // (_capacity(n, options) * atom_bytes(n)))


def _joint(known: list[TracePoint], context: Context) -> TracePoint:
    """The layer's point from those of its parts."""
    rounded = all(m.upper is not None for m in known)
    return context.point(
        sum(m.upper or 0.0 for m in known) if rounded else None,
        sum(m.lower or 0.0 for m in known),
        max(m.iterations or 0 for m in known),
        sum(m.relaxed or 0.0 for m in known),
    )


def _joined(runs: list[LoopRun], trace: list[TracePoint]) -> LoopRun:
    """The run of a layer from those of its parts; the counters are those of one run over all rows."""
    counters = {name: max(run.counters[name] for run in runs) for name in runs[0].counters}
    counters["drop_steps"] = sum(run.counters["drop_steps"] for run in runs)
    return LoopRun(
        torch.cat([run.u for run in runs]),
        torch.cat([run.best_u for run in runs]),
        torch.cat([run.bound for run in runs]),
        max(run.iterations for run in runs),
        max(run.stopped for run in runs),
        trace,
        counters,
    )


def _minimise_rows(layer: Objective, u: torch.Tensor, options: LoopOptions, context: Context) -> LoopRun:
    """Lay the problem out in rows, run, put the answers back into shape."""
    shape = u.shape[0], u.shape[1]
    counts = layer.pattern.counts(shape)
    rows = shape[0] if layer.pattern.separable else 1
    direction, step = DIRECTION_RULES[options.variant], STEP_RULES[options.step]
    assert direction.kernel is not None
    assert step.kernel is not None
    method = loop_numba.Method(
        direction.kernel,
        step.kernel,
        direction.atoms,
        step.lipschitz > 0,
        float(options.ell),
        float(options.gap),
        options.correct,
        options.first,
    )

    def flat(x: torch.Tensor | None) -> np.ndarray:
        return np.empty((rows, 0), u.numpy().dtype) if x is None else x.contiguous().numpy().reshape(rows, -1)

    start = flat(u.clone())
    counts = np.ascontiguousarray(counts.reshape(rows, -1))
    atoms = _atoms(layer, start, counts, options)
    lipschitz = np.zeros(rows)
    if step.lipschitz:
        lipschitz += layer.lipschitz().numpy().ravel() * step.lipschitz
    fields = loop_numba.Fields.begin(
        start,
        counts,
        lipschitz,
        W=flat(layer.W),
        d=flat(layer.d),
        c=flat(layer.c),
        offset=np.zeros(rows) if isinstance(layer.offset, float) else layer.offset.numpy()[:, 0],
        scale=flat(layer.scale() if direction.scaled else None),
        fixed=np.empty((rows, 0), bool) if options.fixed is None else flat(options.fixed),
        vanilla=options.variant == "vanilla",
    )
    work = loop_numba.LoopState(fields, atoms, layer.G, shape, method)
    trace: list[TracePoint] = []

    unit = layer.unit if isinstance(layer.unit, float) else layer.unit.numpy()[:, 0]

    def report(t: int, value: np.ndarray, best: np.ndarray) -> None:
        lower = np.maximum(best, layer.floor)
        upper = layer.rounded_error(torch.from_numpy(work.iterate_u().reshape(shape))) if options.rounded else None
        trace.append(context.point(upper, float((lower * unit).sum()), t, float((value * unit).sum())))

    t, stopped = loop_numba.run(work, options.steps, CHECK_EVERY, context.threads, context.expired, report)
    end = torch.from_numpy(work.out_u.reshape(shape))
    best_u = torch.from_numpy(work.out_best_u.reshape(shape))
    bound = torch.from_numpy(work.out["best"]).to(u.dtype)[:, None]
    counters = {
        "lmo_calls": direction.oracles * work.products,
        "gram_products": work.products,
        "drop_steps": int(work.out["drops"].sum()),
        "active_set_max": work.most_atoms,
        "corrections": work.corrections,
    }
    return LoopRun(end, best_u, bound, t, stopped, trace, counters)


def _atoms(layer: Objective, start: np.ndarray, counts: np.ndarray, options: LoopOptions) -> Atoms:
    """Active sets that sum to ``start``, which moves to a rounded point where it would need too many atoms."""
    rows, n = start.shape
    if not DIRECTION_RULES[options.variant].atoms:
        return Atoms.empty(rows, 0, n)
    capacity = _capacity(n, options)
    if not layer.pattern.separable:
        capacity = min(capacity, max(2, loop_numba.ATOM_BYTES // atom_bytes(n)))
    atoms = Atoms.empty(rows, capacity, n)
    rounded = layer.pattern.prune(-start.reshape(tuple(layer.W.shape))).reshape(start.shape)
    set_up(start, rounded.astype(start.dtype), counts, atoms)
    return atoms


def _capacity(n: int, options: LoopOptions) -> int:
    """Atoms in the set of a row of ``n`` entries."""
    return options.capacity or 4 * n + 8
