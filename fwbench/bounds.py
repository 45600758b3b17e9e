"""The certified lower bound (docs/mathematics.md, "The certified bound"), for any (problem, e, u).

For a diagonal ``e`` with ``G - diag(e) ⪰ 0`` put ``d = w²∘e``. Then ``h(u) = f(u) + Σ d u (1 - u)`` is convex and
equals ``f`` on masks, so its linearisation at *any* point ``u`` lies below ``f`` on masks, and

    min over masks f  ≥  h(u) - ∇h(u)ᵀu + min over polytope ∇h(u)ᵀv  =  -uᵀ(Q - D)u + min_v gᵀv,  g = 2(Q - D)u + d.

Where the problem has a linear term, ``g`` has its ``c`` besides, and each row its ``offset``.

``e = 0`` is the plain relaxation's Frank-Wolfe gap bound (Jaggi 2013, "Revisiting Frank-Wolfe", eq. 2). Here it is
computed in plain float64; ``fwbench.verify`` proves it, rounding included.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from fwbench.problem import Problem
from fwbench.result import Certificate
from fwbench.verify.rounding import EPS, proves_shared

SHIFTS = 60  # of a diagonal, each twice the one before


def linearise(problem: Problem, u: np.ndarray, e: np.ndarray | float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """The tangent of ``h`` at ``u``: its value at the origin ``(rows,)`` and its gradient ``(rows, n)``, float64.

    Args:
        u: ``(rows, n)``.
        e: scalar, ``(n,)`` shared, or ``(rows, n)`` a row's own.
    """
    W = problem.W.astype(np.float64)
    u = np.asarray(u, dtype=np.float64)
    d = W**2 * e
    product = W * ((W * u) @ problem.G) - d * u  # (Q - D) u
    origin, g = -(product * u).sum(axis=1), 2 * product + d
    return (origin, g) if problem.linear is None else (origin + problem.offset, g + problem.linear)


def group_bounds(problem: Problem, u: np.ndarray, e: np.ndarray | float = 0.0) -> np.ndarray:
    """Lower bound of each row ``(rows,)``; where a pattern ties rows, of as many as it ties ``(blocks,)``."""
    origin, g = linearise(problem, u, e)
    chosen = np.where(problem.pattern.prune(g), g, 0.0)
    return (origin + chosen.sum(axis=1)).reshape(problem.blocks, -1).sum(axis=1)


def linear_bounds(problem: Problem) -> np.ndarray:
    """What the linear term alone says of the blocks of :func:`group_bounds`, as ``uᵀQu ≥ 0``: 0 where there is none."""
    if problem.linear is None:
        return np.zeros(problem.blocks)
    chosen = np.where(problem.pattern.prune(problem.linear), problem.linear, 0.0)
    return (chosen.sum(axis=1) + problem.offset).reshape(problem.blocks, -1).sum(axis=1)


def lower_bound(problem: Problem, u: np.ndarray, e: np.ndarray | float = 0.0) -> float:
    """Lower bound on the error of every mask of the pattern, if ``G - diag(e) ⪰ 0``; ``Problem.floor`` if better."""
    bounds = group_bounds(problem, u, e)
    return float(np.maximum(bounds, problem.floor).sum())


def guaranteed_gaps(problem: Problem, iterations: float) -> np.ndarray:
    """How far SparseFW's mask may be above the best, by its theory: each row's ``(rows,)``, in units of the error.

    ``2 λ(min(k, r) + √(2 r min(k, r))) + k λ / T``: the rounding of the relaxation's minimum, and what ``T`` iterations
    leave of it; ``λ`` the largest eigenvalue of ``Q``, ``k`` weights kept and ``r`` pruned (Roux et al., arXiv
    2510.13713, lemmas 1 and 2, without fixed weights). It holds before anything has been computed.

    Raises:
        ValueError: the pattern's groups are not the rows.
    """
    if problem.pattern.group_size(problem.shape) != problem.n or not problem.pattern.grouped:
        raise ValueError(f"{problem.name}: the guarantee is for patterns that count by row, not {problem.pattern}")
    W = problem.W.astype(np.float64)
    largest = np.array([np.linalg.eigvalsh(problem.G * w * w[:, None])[-1] for w in W])
    pruned = problem.counts.astype(np.float64)
    kept = problem.n - pruned
    fewer = np.minimum(kept, pruned)
    return largest * (2 * (fewer + np.sqrt(2 * pruned * fewer)) + kept / iterations)


def slope(problem: Problem, u: np.ndarray) -> np.ndarray:
    """How fast the bound grows with each ``e_i`` at ``u``: ``c_i = Σ_r w_ri² u_ri (1 - u_ri)``, ``(n,)``."""
    u = np.clip(np.asarray(u, dtype=np.float64), 0, 1)
    return (problem.W.astype(np.float64) ** 2 * u * (1 - u)).sum(axis=0)


def margin(G: np.ndarray) -> float:
    """How much of the diagonal the checker's verified Cholesky needs: four times its own rounding bound."""
    n = G.shape[0]
    return 4 * (n + 2) * EPS * float(np.abs(G.diagonal()).sum())


def safe(G: np.ndarray, e: np.ndarray | float = 0.0) -> np.ndarray:
    """Lower ``e`` by the least uniform amount tried with which the checker proves ``G - diag(e) ⪰ 0``.

    For ``e = 0`` this is slightly negative: the Gram matrix of few tokens is singular, and rounding may make it
    indefinite; the bound stays valid and loses next to nothing.

    Raises:
        ValueError: no shift below the mean diagonal is enough; ``G`` is not positive semidefinite.
    """
    e = np.broadcast_to(np.asarray(e, dtype=np.float64), G.shape[:1])
    step = margin(G) + 4 * G.shape[0] ** 2 * float(np.finfo(np.float64).tiny)
    most = max(float(G.diagonal().mean()), 8 * step)
    return lowered(e, lambda e: proves_shared(G, e), step, step, most)


def lowered(
    d: np.ndarray,
    proves: Callable[[np.ndarray], bool],
    step: float,
    shift: float = 0.0,
    most: float = math.inf,
    dtype: type = np.float64,
) -> np.ndarray:
    """``d (n,)`` less the first of ``shift``, ``step`` and its doubles that is enough for a proof, rounded down.

    Args:
        proves: whether the checker proves a matrix less this diagonal positive semidefinite.
        most: the largest shift to try.
        dtype: of the result.

    Raises:
        ValueError: none is enough; ``G`` is not positive semidefinite.
    """
    for _ in range(SHIFTS):
        wanted = d - shift
        if wanted.min(initial=0.0) < np.finfo(dtype).min:
            break
        found: np.ndarray = np.minimum(wanted, np.finfo(dtype).max).astype(dtype)
        found = np.where(found > wanted, np.nextafter(found, dtype(-np.inf)), found)
        if proves(found.astype(np.float64)):
            return found
        shift = max(2 * shift, step)
        if shift > most:
            break
    raise ValueError("G is not positive semidefinite")


def certificate(problem: Problem, u: np.ndarray, e: np.ndarray | float | None = None, source: str = "") -> Certificate:
    """The proof that ``(e, u)`` gives; ``e`` is made safe first, ``None`` is the plain relaxation.

    Args:
        u: ``(rows, n)``; kept as float32, which costs nothing as the bound holds at any ``u``.
        e: None, or ``(n,)``.

    Raises:
        ValueError: ``G`` is not positive semidefinite.
    """
    e = safe(problem.G, 0.0 if e is None else e)
    u = np.clip(np.asarray(u), 0, 1).astype(np.float32)
    return Certificate(problem.hash, lower_bound(problem, u, e), "diagonal", {"e": e, "u": u}, source)
