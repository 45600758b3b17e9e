"""The Frank-Wolfe loop: LMO x direction rule x step rule, batched over the rows of a layer.

Everything is in pruned indicators ``u``. For each row the objective is ``h(u) = uᵀ(Q - D)u + dᵀu`` with
``Q = diag(w) G diag(w)``, ``D = diag(d)``; ``d = 0`` is the plain error. The gradient is carried along, so an iteration
costs one Gram product, that of the direction.

Three executions of one loop: fused numba kernels on the CPU (``fw_rows``), fused Triton kernels on CUDA for vanilla
(``_fw_triton``), and torch on any device (``fw_torch``), which is also their reference. Variants with an active set run
on the CPU, on part of the rows after the other where their sets would not fit into memory.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
import psutil
import torch

from fwbench.patterns import Pattern, Rows
from fwbench.problem import Problem
from fwbench.result import Moment
from fwbench.solvers import fw_kernels as kernels
from fwbench.solvers import fw_rows
from fwbench.solvers.blocks import in_range
from fwbench.solvers.fw_active import Atoms, atom_bytes, set_up
from fwbench.stage import Context

if TYPE_CHECKING:
    from fwbench.solvers._fw_triton import Loop

ADAPTIVE_START = 1e-3  # of the Lipschitz bound: adaptive estimates grow by themselves
EQUAL = 60  # exponent of equal scales where the objective is nowhere convex
CHECK_EVERY = 10  # iterations between two looks at the clock, the stops and the bound

DIRECTION_RULES = {
    "vanilla": kernels.VANILLA,
    "away": kernels.AWAY,
    "pairwise": kernels.PAIRWISE,
    "bcg": kernels.BCG,
    "bpcg": kernels.BPCG,
    "dicg": kernels.DICG,
    "inface": kernels.INFACE,
}
STEP_RULES = {
    "open": kernels.OPEN,
    "short": kernels.SHORT,
    "linesearch": kernels.LINESEARCH,
    "adaptive": kernels.ADAPTIVE,
}


@dataclass
class Layer:
    """Tensors of one problem on one device; ``d`` is None for the plain error.

    ``unit (rows, 1)``, or ``(1, 1)`` where rows are not independent: the problem's error where the layer's is 1.
    """

    W: torch.Tensor  # (rows, n)
    G: torch.Tensor  # (n, n)
    d: torch.Tensor | None  # (rows, n)
    pattern: Pattern
    unit: torch.Tensor | float = 1.0

    @classmethod
    def of(cls, problem: Problem, context: Context, d: np.ndarray | None = None) -> Layer:
        """The layer in the context's precision and its range, on its device; ``d = w²∘e (rows, n)``."""
        W, G, unit = problem.W, problem.G, 1.0
        rows, columns = in_range(W, G.diagonal(), problem.pattern.separable, d)
        if (rows != 1).any() or (columns != 1).any():
            back = np.where(columns > 0, columns, 1.0)
            W, G, d = W * rows * columns, G / back / back[:, None], None if d is None else d * rows**2
            unit = torch.from_numpy(1 / (rows if problem.pattern.separable else rows[:1]) ** 2).to(context.device)

        def tensor(x: np.ndarray) -> torch.Tensor:
            return torch.tensor(x, dtype=getattr(torch, context.dtype), device=context.device)

        return cls(tensor(W), tensor(G), None if d is None else tensor(d), problem.pattern, unit)

    def rows(self, part: slice) -> Layer:
        """Some rows, as a layer of their own, where rows are independent."""
        pattern = Rows(self.pattern.pruned[part]) if isinstance(self.pattern, Rows) else self.pattern
        unit = self.unit if isinstance(self.unit, float) else self.unit[part]
        return Layer(self.W[part], self.G, None if self.d is None else self.d[part], pattern, unit)

    def summed(self, x: torch.Tensor) -> float:
        """Sum of ``x``, which broadcasts with ``unit``, in the units of the problem."""
        return float((x * self.unit).sum(dtype=torch.float64))

    def total(self, x: torch.Tensor) -> torch.Tensor:
        """Sum over what a step size is chosen for: each row ``(rows, 1)``, or the layer ``(1, 1)``."""
        sums = x.sum(dim=1, keepdim=True)
        return sums if self.pattern.separable else sums.sum(dim=0, keepdim=True)

    def least(self, x: torch.Tensor) -> torch.Tensor:
        """Minimum over the same."""
        least = x.amin(dim=1, keepdim=True)
        return least if self.pattern.separable else least.amin(dim=0, keepdim=True)

    def product(self, u: torch.Tensor) -> torch.Tensor:
        """``(w∘u) G``."""
        return (self.W * u) @ self.G

    def gradient(self, u: torch.Tensor, S: torch.Tensor) -> torch.Tensor:
        g = 2 * self.W * S
        return g if self.d is None else g.addcmul_(self.d, 1 - 2 * u)

    def value(self, u: torch.Tensor, S: torch.Tensor) -> torch.Tensor:
        h = self.W * u * S
        return self.total(h if self.d is None else h.addcmul_(self.d, u - u * u))

    def rounded_error(self, u: torch.Tensor) -> float:
        """Error of the mask that prunes the largest ``u`` of each group."""
        mask = self.pattern.prune(-u).to(u.dtype)
        return self.summed(self.W * mask * self.product(mask))

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
class Options:
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


@dataclass
class Run:
    """Where a run ended. ``u`` is the last iterate, ``best_u`` the one whose gap bounds best, row by row."""

    u: torch.Tensor
    best_u: torch.Tensor
    bound: torch.Tensor  # (rows, 1) or (1, 1): h - gap at best_u, in the layer's own precision and units
    iterations: int
    stopped: str
    trace: list[Moment] = field(default_factory=list)
    counters: dict[str, int] = field(default_factory=dict)


def fused(layer: Layer, options: Options) -> Loop | None:
    """The loop on the device that can be handed to one call of :func:`minimise` after the other; None where none is.

    Its buffers, and the launches that it has recorded, serve every ``d`` and ``u`` of this layer.
    """
    if layer.W.device.type == "cpu" or not find_spec("triton"):
        return None
    from fwbench.solvers import _fw_triton

    return _fw_triton.Loop(layer, options) if _fw_triton.fits(layer, options) else None


def minimise(layer: Layer, u: torch.Tensor, options: Options, context: Context, loop: Loop | None = None) -> Run:
    """Minimise ``h`` over the pattern's polytope from ``u (rows, n)``.

    A row stops at its relative gap, all stop after ``options.steps`` or at the deadline; the gap
    ``gradientᵀ(u - vertex)`` bounds the distance to the minimum (Jaggi 2013, eq. 2). ``loop``: see :func:`fused`.

    Raises:
        ValueError: an active-set variant on a device other than the CPU.
    """
    from fwbench.solvers.fw_torch import minimise_torch

    context = replace(context, deadline=min(context.deadline, time.monotonic() + options.seconds))
    if layer.W.device.type == "cpu":
        return _minimise_parts(layer, u, options, context)
    if (loop := loop or fused(layer, options)) is not None:
        from fwbench.solvers._fw_triton import minimise_triton

        return minimise_triton(layer, u, options, context, loop)
    return minimise_torch(layer, u, options, context)


def _minimise_parts(layer: Layer, u: torch.Tensor, options: Options, context: Context) -> Run:
    """As many rows at a time as have memory for their active sets, four at least (BLAS has other kernels for fewer):
    each row ends where it would end among all.

    Each part gets its share of the time that is left. The trace tells of the whole layer: of rows that wait or are
    done, what is known by then; its iterations are those of the part that went furthest.
    """
    count = max(1, min(math.ceil(len(u) / _rows_at_a_time(layer, options)), len(u) // fw_rows.FEW_ROWS))
    parts = [slice(len(u) * i // count, len(u) * (i + 1) // count) for i in range(count)]
    if count == 1:
        return _minimise_rows(layer, u, options, context)
    layers = [layer.rows(part) for part in parts]
    fixed = [None if options.fixed is None else options.fixed[part] for part in parts]
    look = replace(options, steps=0, variant="vanilla")
    known = [
        _minimise_rows(own, u[part], replace(look, fixed=held), context).trace[-1]
        for own, part, held in zip(layers, parts, fixed, strict=True)
    ]
    runs, trace = [], []
    for i, (own, part, held) in enumerate(zip(layers, parts, fixed, strict=True)):
        share = time.monotonic() + context.left() / (len(parts) - i)
        runs.append(_minimise_rows(own, u[part], replace(options, fixed=held), replace(context, deadline=share)))
        for known[i] in runs[-1].trace:
            trace.append(_joint(known, known[i].seconds))
    return _joined(runs, trace)


def _rows_at_a_time(layer: Layer, options: Options) -> int:
    """How many rows' active sets fit into ``ATOM_BYTES`` and into half of the memory that is free."""
    rows, n = layer.W.shape
    if not layer.pattern.separable or DIRECTION_RULES[options.variant] < kernels.AWAY:
        return max(rows, 1)
    memory = min(fw_rows.ATOM_BYTES, psutil.virtual_memory().available // 2)
    return max(1, memory // (_capacity(n, options) * atom_bytes(n)))


def _joint(known: list[Moment], seconds: float) -> Moment:
    """The layer's moment from those of its parts."""
    rounded = all(m.upper is not None for m in known)
    return Moment(
        seconds,
        sum(m.upper or 0.0 for m in known) if rounded else None,
        sum(m.lower or 0.0 for m in known),
        max(m.iterations or 0 for m in known),
        sum(m.relaxed or 0.0 for m in known),
    )


def _joined(runs: list[Run], trace: list[Moment]) -> Run:
    """The run of a layer from those of its parts; the counters are those of one run over all rows."""
    counters = {name: max(run.counters[name] for run in runs) for name in runs[0].counters}
    counters["drop_steps"] = sum(run.counters["drop_steps"] for run in runs)
    return Run(
        torch.cat([run.u for run in runs]),
        torch.cat([run.best_u for run in runs]),
        torch.cat([run.bound for run in runs]),
        max(run.iterations for run in runs),
        max(run.stopped for run in runs),
        trace,
        counters,
    )


def _minimise_rows(layer: Layer, u: torch.Tensor, options: Options, context: Context) -> Run:
    """Lay the problem out in rows, run, put the answers back into shape."""
    shape, vanilla = (u.shape[0], u.shape[1]), options.variant == "vanilla"
    counts = layer.pattern.counts(shape)
    rows = shape[0] if layer.pattern.separable else 1
    method = fw_rows.Method(
        DIRECTION_RULES[options.variant],
        STEP_RULES[options.step],
        float(options.ell),
        float(options.gap),
        options.correct,
    )

    def flat(x: torch.Tensor | None) -> np.ndarray:
        return np.empty((rows, 0), u.numpy().dtype) if x is None else x.contiguous().numpy().reshape(rows, -1)

    start = flat(u.clone())
    counts = np.ascontiguousarray(counts.reshape(rows, -1))
    atoms = _atoms(layer, start, counts, options)
    lipschitz = np.zeros(rows)
    if options.step in ("short", "adaptive"):
        lipschitz += layer.lipschitz().numpy().ravel() * (ADAPTIVE_START if options.step == "adaptive" else 1)
    fields = fw_rows.Fields(  # type: ignore[call-arg]
        flat(layer.W),
        flat(layer.d),
        start,
        np.zeros_like(start),
        np.zeros((rows, 0 if vanilla else start.shape[1]), start.dtype),
        np.zeros((rows, start.shape[1] if vanilla else 0), np.uint8),
        *(np.zeros_like(start) for _ in range(2)),
        start.copy(),
        flat(layer.scale() if options.variant in ("inface", "dicg") else None),
        np.empty((rows, 0), bool) if options.fixed is None else flat(options.fixed),
        counts,
        np.full((rows, 2, 2), np.nan),
        lipschitz,
        *(np.zeros(rows) for _ in range(6)),
        np.full(rows, -np.inf),
        *(np.zeros(rows) for _ in range(2)),
    )
    work = fw_rows.Rows(fields, atoms, layer.G, shape, method)
    trace: list[Moment] = []

    unit = layer.unit if isinstance(layer.unit, float) else layer.unit.numpy()[:, 0]

    def report(t: int, value: np.ndarray, lower: np.ndarray) -> None:
        upper = layer.rounded_error(torch.from_numpy(work.iterate_u().reshape(shape))) if options.rounded else None
        trace.append(Moment(context.seconds(), upper, float((lower * unit).sum()), t, float((value * unit).sum())))

    t, stopped = fw_rows.run(work, options.steps, CHECK_EVERY, context.threads, context.expired, report)
    end = torch.from_numpy(work.out_u.reshape(shape))
    best_u = torch.from_numpy(work.out_best_u.reshape(shape))
    bound = torch.from_numpy(work.out["best"]).to(u.dtype)[:, None]
    per_iteration = 2 if options.variant in ("dicg", "inface") else 1  # the second in the face
    counters = {
        "lmo_calls": per_iteration * work.products,
        "gram_products": work.products,
        "drop_steps": int(work.out["drops"].sum()),
        "active_set_max": work.most_atoms,
        "corrections": work.corrections,
    }
    return Run(end, best_u, bound, t, stopped, trace, counters)


def _atoms(layer: Layer, start: np.ndarray, counts: np.ndarray, options: Options) -> Atoms:
    """Active sets that sum to ``start``, which moves to a rounded point where it would need too many atoms."""
    rows, n = start.shape
    if DIRECTION_RULES[options.variant] < kernels.AWAY:
        return Atoms.empty(rows, 0, n)
    capacity = _capacity(n, options)
    if not layer.pattern.separable:
        capacity = min(capacity, max(2, fw_rows.ATOM_BYTES // atom_bytes(n)))
    atoms = Atoms.empty(rows, capacity, n)
    rounded = layer.pattern.prune(-start.reshape(tuple(layer.W.shape))).reshape(start.shape)
    set_up(start, rounded.astype(start.dtype), counts, atoms)
    return atoms


def _capacity(n: int, options: Options) -> int:
    """Atoms in the set of a row of ``n`` entries."""
    return options.capacity or 4 * n + 8
