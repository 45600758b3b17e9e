"""The diagonal ``d`` that lifts the relaxations of one subtree's nodes: a max-cut semidefinite program (``bnb``).

With ``x = 2u - 1`` and a border, ``uᵀQu + bᵀu`` over masks with ``need[g]`` ones in each group is ``x̂ᵀCx̂``; adding
``ρ(z_gᵀx̂)²`` with ``z_g = (size - 2 need, 1, ..., 1)`` changes no value. The dual of ``min ⟨C, X⟩, diag X = 1, X ⪰
0`` is ``max Σy, C - Diag(y) ⪰ 0``, and ``d = 4y`` makes ``Q - Diag(d) + ρ' Σ 1_g1_gᵀ ⪰ 0`` (Shor's relaxation with
the count's products; Billionnet, Elloumi, Plateau 2009).

The ``y`` that is best for the subtree's root gives nothing to a variable that is 0 or 1 there, though it is split
deeper down, and the search pays for that: at a node whose relaxation ends at ``u``, a unit of ``y_i`` is worth
``4u_i(1 - u_i)``. So ``max y_0 + Σ worth_i y_i`` it is, the root's bound and that of deeper nodes, which scaling by
``√worth`` brings to the same form. The interior point (``maxcut``) ends as soon as more would not change the search.
Foreign solvers' searches gain by such a diagonal as well (``row_diagonals``): Gurobi takes a quarter to a half of the
nodes that it takes with the root's best (reports/exact).
"""

from __future__ import annotations

import math

import numpy as np
import torch

from fwbench.problem import Problem
from fwbench.solvers.semidefinite.maxcut import bordered, interior_point
from fwbench.solvers.semidefinite.row import RowForm
from fwbench.solvers.semidefinite.row_diagonals import each_row
from fwbench.stage import Context

PENALTY = 4.0  # ρ in mean diagonals of Q
PART = 0.05  # of the distance between bound and incumbent: a gap this small ends the iteration
DEEPER = 1.0  # weight of the bounds of deeper nodes on the mean, in those of the root
MARGIN = 0.06  # of Q's mean diagonal: how far inside the plain relaxation the iteration begins


def best_diagonal(
    Q: np.ndarray,
    b: np.ndarray,
    start: np.ndarray,
    need: np.ndarray,
    rho: float,
    target: float,
    deeper: np.ndarray,
    deadline: float = math.inf,
) -> np.ndarray:
    """Diagonal ``d (r,)`` with ``Q - Diag(d) + rho Σ 1_g1_gᵀ ⪰ 0`` to rounding.

    Args:
        Q: ``(r, r)``; b: ``(r,)``.
        start: group ``g`` is ``start[g]:start[g + 1]``.
        target: the iteration ends when the root's bound exceeds it.
        deeper: ``(r,)``, how much a unit of each ``d`` lifts deeper nodes, 1 on the mean; 0 everywhere: the root alone.
        deadline: of ``time.monotonic()``; what is returned earlier is valid too.
    """
    C = bordered(Q, b, start, need, rho)
    worth = np.append(1.0, 1.0 + DEEPER * deeper)
    root = np.sqrt(worth)
    C *= root * root[:, None]
    share = torch.from_numpy(1 / worth)

    def done(y: torch.Tensor, gap: float) -> bool:
        missing = target - float(y @ share)
        return missing <= 0 or gap <= PART * missing

    margin = MARGIN * float(Q.diagonal().mean()) or 1.0
    return 4 * interior_point(torch.from_numpy((C + C.T) / 2), margin, done, deadline).y[1:].numpy() / worth[1:]


def row_diagonals(problem: Problem, keep: np.ndarray, context: Context) -> dict[int, np.ndarray]:
    """For each row of a separable pattern the ``d (n,)`` of its whole search, in the units of its error.

    Rows without a choice have none, nor have those that the context's deadline left out: half of the time left is used.

    Args:
        keep: bool ``(rows, n)``, the incumbents.
    """
    incumbents = problem.row_errors(~keep)

    def diagonal(row: int, form: RowForm, deadline: float) -> np.ndarray:
        n, scale = len(form.Q), form.unit
        start = np.arange(0, n + 1, n // len(form.counts))
        target = (1 + 1e-6) * (incumbents[row] * form.scale**2) / scale - form.offset / scale
        linear = np.zeros(n) if form.linear is None else form.linear / scale
        rest = (linear, start, form.counts, PENALTY, target, np.ones(n), deadline)
        return scale * best_diagonal(form.Q / scale, *rest) / form.scale**2

    return each_row(problem, context, diagonal)
