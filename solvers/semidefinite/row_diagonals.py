"""Convexification by a diagonal of each row's own, from its Shor relaxation, and the certificate of such a layer."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar

import numpy as np

from fwbench import bounds
from fwbench.problem import Problem
from fwbench.result import Certificate
from fwbench.solvers.numerics.threads import rows_pool
from fwbench.solvers.semidefinite.row import RowForm, RowProof, row_certificate, tangent_bound
from fwbench.solvers.semidefinite.shor import shor
from fwbench.stage import Context

Found = TypeVar("Found")


def row_proofs(problem: Problem, context: Context, *, tolerance: float = 1e-3) -> dict[int, RowProof]:
    """Each row's own ``d = w²∘e`` and count multiplier, from its Shor relaxation, for a separable pattern.

    The dual's diagonal is the one whose convexified relaxation bounds the row best (Poljak, Rendl and Wolkowicz 1995):
    ``h`` is convex where the counts are right, and its minimum over the polytope is the Shor bound. Rows without a
    choice have none, nor have those that the context's deadline left out: half of the time left is used.
    """
    return each_row(
        problem, context, lambda _, form, deadline: shor(form, tolerance=tolerance, deadline=deadline).proof
    )


def each_row(problem: Problem, context: Context, work: Callable[[int, RowForm, float], Found]) -> dict[int, Found]:
    """What ``work(row, form, deadline)`` finds for each row that has a choice, the rows beside each other.

    Half of the time that the context leaves is used; rows that are not begun by then are left out.
    """
    deadline = time.monotonic() + context.left() / 2

    def found(row: int) -> Found | None:
        form = RowForm.of(problem, row)
        return work(row, form, deadline) if form.free and time.monotonic() < deadline else None

    with rows_pool(context.threads) as pool:
        items = enumerate(pool.map(found, range(problem.rows)))
        return {row: item for row, item in items if item is not None}


def layer_certificate(
    problem: Problem, proofs: Mapping[int, RowProof], e: np.ndarray | None, u: np.ndarray, source: str
) -> Certificate:
    """The certificate of ``e (n,)``, with the rows that bound better by themselves.

    Their tangents touch at the better of ``u (rows, n)`` and their proof's own point.
    """
    shared = bounds.certificate(problem, u, e, source)
    if not proofs:
        return shared
    lower = np.maximum(bounds.group_bounds(problem, shared.arrays["u"], shared.arrays["e"]), problem.floor)
    own = {}
    for row, proof in proofs.items():
        point = shared.arrays["u"][row]
        here = tangent_bound(RowForm.of(problem, row), proof.d, proof.rho, point)
        best = replace(proof, bound=here, u=point) if here > proof.bound else proof
        if best.lower > lower[row]:
            own[row], lower[row] = best, best.lower
    return row_certificate(shared, own, float(lower.sum()), source)
