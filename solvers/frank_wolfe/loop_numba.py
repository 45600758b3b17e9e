"""The Frank-Wolfe loop on the CPU: blocks of rows on threads, each one product and one fused kernel an iteration.

Rows that reach the gap stop at once and are left out of the products. Neither the blocks nor what happens in them
depend on the number of threads.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from fwbench.solvers.frank_wolfe import active_set as active
from fwbench.solvers.frank_wolfe import kernels
from fwbench.solvers.frank_wolfe.active_set import Atoms
from fwbench.solvers.frank_wolfe.corrections import correct
from fwbench.solvers.frank_wolfe.objective import REFRESH
from fwbench.solvers.frank_wolfe.oracle import oracle
from fwbench.solvers.numerics.jit import fast
from fwbench.solvers.numerics.threads import Map, one_by_one, workers

BLOCK_ROWS = 128  # rows whose arrays stay in a core's cache
BLOCK_PART = 5  # a block has at least this part of n rows, so that G is not read too often
FEW_ROWS = 4  # from which on BLAS has one way to multiply
SHRINK_AT = 0.8  # leave finished rows out of the products when no more than this part is left
ATOM_BYTES = 1 << 29  # most memory for the active sets: with it a 1536 x 576 layer runs within 1.5 GB in all

WHOLE, FACE = 0, 1  # the oracle of the polytope, and that of the current face


class Fields(NamedTuple):
    """What the loop carries for some rows, ``(rows, n)`` unless said; ``d``, ``c`` and ``fixed`` may be empty."""

    W: np.ndarray
    d: np.ndarray
    c: np.ndarray  # the linear term
    u: np.ndarray
    g: np.ndarray  # gradient
    delta: np.ndarray  # direction; empty for vanilla
    toward: np.ndarray  # vertex that vanilla goes to, uint8; empty for the others
    P: np.ndarray  # w∘δ
    T: np.ndarray  # (w∘δ) G
    best_u: np.ndarray
    scale: np.ndarray  # inverse diagonal of Q - D, where the variant asks for it
    fixed: np.ndarray  # bool
    counts: np.ndarray  # (rows, groups) int64
    guess: np.ndarray  # (rows, 2, 2) thresholds of the last oracles: WHOLE, FACE
    offset: np.ndarray  # (rows,) and so are the rest, float64; what a target adds to the value
    lipschitz: np.ndarray
    slope: np.ndarray
    rho: np.ndarray  # of the conjugate direction
    most: np.ndarray  # longest step along the direction
    mode: np.ndarray
    gap: np.ndarray
    value: np.ndarray
    best: np.ndarray
    drops: np.ndarray
    done: np.ndarray

    @classmethod
    def begin(
        cls, u: np.ndarray, counts: np.ndarray, lipschitz: np.ndarray, *, vanilla: bool, **given: np.ndarray
    ) -> Fields:
        """At the start ``u``, with ``W``, ``d``, ``c``, ``offset``, ``scale`` and ``fixed`` as given."""
        rows, n = u.shape
        own = {name: np.zeros(rows) for name in ("slope", "rho", "most", "mode", "gap", "value", "drops", "done")}
        return cls(
            u=u,
            g=np.zeros_like(u),
            delta=np.zeros((rows, 0 if vanilla else n), u.dtype),
            toward=np.zeros((rows, n if vanilla else 0), np.uint8),
            P=np.zeros_like(u),
            T=np.zeros_like(u),
            best_u=u.copy(),
            counts=counts,
            guess=np.full((rows, 2, 2), np.nan),
            lipschitz=lipschitz,
            best=np.full(rows, -np.inf),
            **own,
            **given,
        )


class Method(NamedTuple):
    """Direction and step rule, as the kernels number them (``rules``)."""

    variant: int
    rule: int
    atoms: bool  # the variant keeps an active set
    measures: bool  # the step asks for the square of a direction
    ell: float
    gap: float
    correct: int  # iterations from one quadratic correction to the next, 0 for none
    first: int = 0  # iterations made before this run


@fast
def refresh(f):
    """Gradient from ``T = (w∘u) G``."""
    for r in range(f.u.shape[0]):
        kernels.gradient(f.W[r], f.d[r], f.u[r], f.T[r], f.g[r])


@fast
def advance(t, method, check, f, a):
    """Step ``t`` along the direction whose product is in ``T`` (none if negative), then the next direction.

    One body, and views of a row made once: every view and every tuple handed to a function, inlined or not, costs as
    much as an arithmetic pass over the row.
    """
    variant, n, t_all = method.variant, f.u.shape[1], method.first + t
    v, away = np.empty(n, f.u.dtype), np.empty(n, f.u.dtype)
    score, scratch = np.empty(n, f.u.dtype), np.empty(2 * n, f.u.dtype)
    for r in range(f.u.shape[0]):
        if f.done[r] != 0:
            continue
        w, d, u, g, delta, P, T = f.W[r], f.d[r], f.u[r], f.g[r], f.delta[r], f.P[r], f.T[r]
        fresh = True  # no conjugate direction from the last step
        if t >= 0 and variant == kernels.VANILLA:
            curvature = 0.0 if method.rule == kernels.OPEN else kernels.curvature_towards(d, u, f.toward[r], P, T)
            square = kernels.square_towards(u, f.toward[r]) if method.measures else 1.0
            step, f.lipschitz[r] = kernels.step_size(
                method.rule, t_all, method.ell, f.slope[r], curvature, square, 1.0, f.lipschitz[r]
            )
            kernels.move_towards(step, w, d, f.toward[r], T, u, g)
        elif t >= 0:
            most = f.most[r]
            curvature = kernels.change_of_gradient(w, d, delta, T)
            square = kernels.dot(delta, delta) if method.measures else 1.0
            step, f.lipschitz[r] = kernels.step_in_mode(
                f.mode[r], method.rule, t_all, method.ell, f.slope[r], curvature, square, most, f.lipschitz[r]
            )
            fresh = step >= most or f.rho[r] == 0
            kernels.move(step, delta, T, u, g)
            f.drops[r] += active.update_weights(r, step, most, a) if method.atoms else step >= most
        if f.fixed.size:
            kernels.masked(g, f.fixed[r], score)
            oracle(score, f.counts[r], f.guess[r, WHOLE], v, scratch)
        else:
            oracle(g, f.counts[r], f.guess[r, WHOLE], v, scratch)
        gap = 0.0
        if variant == kernels.VANILLA:
            gap = f.slope[r] = kernels.aim(w, u, g, v, f.toward[r], P)
        else:
            due = method.correct > 0 and ((t_all + 1) % method.correct == 0 or f.mode[r] == kernels.EXACT)
            if check or due or variant != kernels.DICG:
                gap = kernels.gap_of(g, u, v)
            if variant == kernels.INFACE or (variant == kernels.DICG and due):
                rho = 0.0 if fresh else f.rho[r]
                f.most[r], f.slope[r], f.rho[r] = kernels.conjugate(
                    w, u, g, v, gap, f.counts[r], f.scale[r], f.guess[r, FACE], rho, delta, P, score, away, scratch
                )
            if variant == kernels.DICG:
                f.mode[r] = kernels.EXACT if due and f.rho[r] > 0 else kernels.BY_RULE
                if f.mode[r] == kernels.BY_RULE:
                    f.rho[r] = 0.0
                    f.most[r] = kernels.in_face(
                        w, u, g, v, f.counts[r], f.guess[r, FACE], delta, P, score, away, scratch
                    )
                    f.slope[r] = -kernels.dot(g, delta)
            elif method.atoms:
                f.most[r], f.mode[r] = active.active_direction(variant, r, w, u, g, v, gap, f.counts[r], a, delta, P)
                f.slope[r] = -kernels.dot(g, delta)
        if check:
            f.gap[r], f.value[r] = gap, kernels.value(d, f.c[r], u, g) + f.offset[r]
            if f.value[r] - gap > f.best[r]:
                f.best[r] = f.value[r] - gap
                f.best_u[r] = u
            size = abs(f.value[r]) if f.c.size else max(f.value[r], 0.0)
            if method.gap > 0 and gap <= method.gap * size:
                f.done[r] = 1


class LoopState:
    """A run under way: all rows' fields, those at work first, and the results of the others."""

    def __init__(self, fields: Fields, atoms: Atoms, G: torch.Tensor, shape: tuple[int, int], method: Method) -> None:
        self.f, self.a, self.G, self.shape, self.method = fields, atoms, G, shape, method
        self.index = np.arange(len(fields.u))
        self.out_u, self.out_best_u = fields.u.copy(), fields.best_u.copy()
        self.out = {name: getattr(fields, name).copy() for name in ("value", "gap", "best", "drops")}
        self.products = self.corrections = self.most_atoms = 0
        self.flat = fields.u.shape[1] != shape[1]  # rows that are not independent, in one
        self.over_parts: Map = one_by_one
        self.exact_G = G.double() if method.correct and method.atoms else G

    def blocks(self) -> list[tuple[Fields, Atoms]]:
        """Views of nearly equal numbers of rows, an even number of blocks."""
        return [(_cut(self.f, part), _cut(self.a, part)) for part in self.parts(len(self.index))]

    def parts(self, rows: int) -> list[slice]:
        """So many rows in parts; threads do not come into it."""
        size = max(BLOCK_ROWS, self.shape[1] // BLOCK_PART)
        count = 1 if rows < 16 else 2 * math.ceil(rows / (2 * size))
        return [slice(*ends) for ends in itertools.pairwise(rows * i // count for i in range(count + 1))]

    def multiply(self, x: np.ndarray, out: np.ndarray) -> None:
        """``x G``; rows that were laid flat take their shape again.

        BLAS has other kernels for one or two rows, whose sums differ in the last bit: those are never used, so that
        a row's result does not depend on the rows beside it. Nor does BLAS use threads of its own, which may split a
        sum: a layer laid flat is multiplied in parts, as others are in blocks.
        """
        left, right = torch.from_numpy(x.reshape(-1, self.shape[1])), torch.from_numpy(out.reshape(-1, self.shape[1]))
        if len(left) >= FEW_ROWS:
            parts = self.parts(len(left)) if self.flat else [slice(None)]
            self.over_parts(lambda part: torch.mm(left[part], self.G, out=right[part]), parts)
        else:
            more = torch.zeros(FEW_ROWS - len(left), self.shape[1], dtype=left.dtype)
            right.copy_((torch.cat((left, more)) @ self.G)[: len(left)])

    def start(self, block: tuple[Fields, Atoms]) -> None:
        f, a = block
        np.multiply(f.W, f.u, out=f.P)
        self.multiply(f.P, f.T)
        refresh(f)
        if f.c.size:
            np.add(f.g, f.c, out=f.g)
        advance(-1, self.method, True, f, a)

    def iterate(self, block: tuple[Fields, Atoms], first: int, last: int, expired: Callable[[], bool]) -> int:
        """Iterations ``first`` to ``last`` on one block; how many were done."""
        f, a = block
        for t in range(first, last):
            if t > first and expired():
                return t - first
            self.multiply(f.P, f.T)
            fresh = self.refreshes(t)
            advance(t, self.method, t + 1 == last and not fresh, f, a)
            if self.corrects(t):
                correct(f, a, self.exact_G, self.shape[1])
            if fresh:
                self.start(block)
        return last - first

    def corrects(self, t: int) -> bool:
        """Whether iteration ``t`` ends with a correction of the active sets."""
        every = self.method.correct
        return self.method.atoms and every > 0 and (self.method.first + t + 1) % every == 0

    def refreshes(self, t: int) -> bool:
        """Whether iteration ``t`` ends with a product for the gradient."""
        return (t + 1) % REFRESH == 0 or self.corrects(t)

    def collect(self) -> bool:
        """Keep the results, drop finished rows from the work when enough have; False when none is left."""
        f = self.f
        for name, array in self.out.items():
            array[self.index] = getattr(f, name)
        self.most_atoms = max(self.most_atoms, int(self.a.count.max(initial=0)))
        left = np.flatnonzero(f.done == 0)
        if len(left) and len(left) > SHRINK_AT * len(self.index):
            return True
        self.flush()
        self.f, self.a, self.index = _cut(f, left), _cut(self.a, left), self.index[left]
        return len(left) > 0

    def iterate_u(self) -> np.ndarray:
        """All rows' iterates as they are now."""
        self.flush()
        return self.out_u

    def flush(self) -> None:
        self.out_u[self.index], self.out_best_u[self.index] = self.f.u, self.f.best_u


def _cut(arrays, rows):
    """The rows of a named tuple of arrays; a slice gives views."""
    return type(arrays)(*(x[rows] for x in arrays))


def run(
    rows: LoopState, steps: int, every: int, threads: int, expired: Callable[[], bool], report: Callable
) -> tuple[int, str]:
    """Iterate all rows in rounds of ``every`` until done; iterations, and why it stopped early.

    ``report(iterations, values, bounds)`` hears each row's value and best bound after each round.
    """
    t, stopped = 0, ""
    parts = len(rows.parts(rows.shape[0])) if rows.flat else 1
    with workers(threads, len(rows.blocks())) as over, workers(threads, parts) as rows.over_parts:
        over(rows.start, rows.blocks())
        rows.products += 1
        while True:
            busy = rows.collect()
            report(t, rows.out["value"], rows.out["best"])
            if not busy or t >= steps:
                break
            if expired():
                stopped = "deadline"
                break
            last = min(t + every, steps)
            done = over(lambda block, t=t, last=last: rows.iterate(block, t, last, expired), rows.blocks())
            last = t + max(done)
            rows.products += sum(1 + rows.refreshes(i) for i in range(t, last))
            rows.corrections += sum(rows.corrects(i) for i in range(t, last))
            t = last
    rows.flush()
    return t, stopped
