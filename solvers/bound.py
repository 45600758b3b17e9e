"""The stage ``bound``: certified lower bounds of a layer, shared and row by row, where the gap is largest first."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import numpy as np

from fwbench import bounds
from fwbench.problem import Problem
from fwbench.result import Certificate, Moment
from fwbench.solvers.dnn import doubly_nonnegative
from fwbench.solvers.fw import FrankWolfe
from fwbench.solvers.mccormick import mccormick
from fwbench.solvers.shor import RowForm, RowProof, shor
from fwbench.solvers.threads import torch_threads
from fwbench.stage import Context, Role, Stage, State, register

KINDS = ("shared", "shor", "dnn", "mccormick", "best")

Prover = Callable[[RowForm, float], RowProof]


@register
@dataclass(frozen=True)
class Bound(Stage):
    """Certified lower bounds: shared ``e``, then semidefinite bounds of single rows, the largest gap first.

    ``kind=shared``: one diagonal for all rows. ``shor``: one of each row's own, from the semidefinite relaxation.
    ``dnn``: with ``u_i u_j ≥ 0`` besides. ``mccormick``: with all four products of ``u_i``, ``1 - u_i`` and ``u_j``,
    ``1 - u_j``. ``best``: Shor on the rows, then ``dnn``, then ``mccormick`` as long as time is left. ``rows`` of 0 is
    all of them, N the N with the largest gap. Ends after ``seconds`` with what it has.
    """

    name: ClassVar[str] = "bound"
    role: ClassVar[Role] = Role.BOUND
    source: ClassVar[str] = "Helmberg, Rendl, Vanderbei, Wolkowicz 1996; Poljak, Rendl, Wolkowicz 1995"
    kind: str = "best"
    rows: int = 0
    seconds: float = 60.0
    tolerance: float = 3e-4
    iterations: int = 60

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown kind {self.kind!r}; known: {', '.join(KINDS)}")
        if self.rows < 0 or self.iterations < 0 or not self.seconds > 0 or not self.tolerance > 0:
            raise ValueError("rows and iterations must not be negative, seconds and tolerance must be positive")

    def supports(self, problem: Problem) -> str | None:
        if self.kind in ("shor", "dnn", "mccormick") and not problem.pattern.separable:
            return f"kind={self.kind} needs a pattern whose rows are independent, not {problem.pattern}"
        return None

    def run(self, problem: Problem, state: State, context: Context) -> State:
        context = replace(context, deadline=time.monotonic() + context.left(self.seconds))
        with torch_threads(context.threads):
            shared = FrankWolfe(convexify="shared", steps=500).run(problem, replace(state, certificate=None), context)
        after = replace(state, trace=shared.trace, counters=shared.counters, stopped=shared.stopped)
        assert shared.certificate is not None
        after = after.bound(shared.certificate.bound, shared.certificate)
        if self.kind == "shared" or not problem.pattern.separable:
            return after
        layer = _Layer(problem, shared.certificate, state, context, self.rows)
        order = ("shor", "dnn", "mccormick") if self.kind == "best" else (self.kind,)
        provers = [self._prover(kind) for kind in order]
        finished = all(layer.improve(prover) for prover in provers)
        certificate = layer.certificate(f"bound(kind={self.kind})")
        after = replace(after, trace=(*after.trace, *layer.trace), stopped="" if finished else "deadline")
        return after.bound(certificate.bound, certificate).count(row_proofs=layer.count)

    def _prover(self, kind: str) -> Prover:
        if kind == "shor":
            return lambda form, deadline: shor(form, tolerance=self.tolerance, deadline=deadline).proof
        method = doubly_nonnegative if kind == "dnn" else mccormick
        return partial(_within, method, self.iterations, self.tolerance)


def _within(
    method: Callable[..., RowProof], iterations: int, tolerance: float, form: RowForm, deadline: float
) -> RowProof:
    return method(form, iterations=iterations, tolerance=tolerance, deadline=deadline)


class _Layer:
    """The bounds of all rows as they rise, and the proofs behind them."""

    def __init__(self, problem: Problem, shared: Certificate, state: State, context: Context, rows: int) -> None:
        self.problem, self.shared, self.context = problem, shared, context
        e, u = shared.arrays["e"], shared.arrays["u"]
        self.lower = np.maximum(bounds.group_bounds(problem, u, e), 0.0)
        pruned = u if state.keep is None else ~state.keep
        self.upper = problem.row_errors(pruned)
        order = np.argsort(self.lower - self.upper, kind="stable")
        free = [int(row) for row in order if RowForm.of(problem, int(row)).free]
        self.chosen = free[:rows] if rows else free
        self.proofs: dict[int, RowProof] = {}
        self.trace: list[Moment] = []
        self.count = 0

    def improve(self, prover: Prover) -> bool:
        """Run a prover on every chosen row, the largest gap first; False if the time did not suffice."""
        rows = sorted(self.chosen, key=lambda row: (self.lower[row] - self.upper[row], row))

        def prove(row: int) -> RowProof:
            return prover(RowForm.of(self.problem, row), self.context.deadline)

        done = 0
        for row, proof in _in_parallel(prove, rows, self.context):
            done += 1
            if proof.bound > self.lower[row]:
                self.lower[row], self.proofs[row] = proof.bound, proof
            self.trace.append(Moment(self.context.seconds(), lower=float(self.lower.sum())))
        self.count += done
        return done == len(rows) and not self.context.expired()

    def certificate(self, source: str) -> Certificate:
        """All proofs in one; the rows without their own stand on the shared one."""
        if not self.proofs:
            return self.shared
        rows = sorted(self.proofs)
        proofs = [self.proofs[row] for row in rows]
        u = np.array(self.shared.arrays["u"])
        u[rows] = np.stack([proof.u for proof in proofs])
        arrays = {
            "e": self.shared.arrays["e"],
            "u": u,
            "rows": np.array(rows, dtype=np.int64),
            "d": np.stack([proof.d for proof in proofs]),
            "rho": np.array([proof.rho for proof in proofs]),
            "start": np.cumsum([0, *(len(proof.pair) for proof in proofs)], dtype=np.int64),
            "pair": np.concatenate([proof.pair for proof in proofs]),
            "kind": np.concatenate([proof.kind for proof in proofs]),
            "multiplier": np.concatenate([proof.multiplier for proof in proofs]),
        }
        return Certificate(self.problem.hash, float(self.lower.sum()), "rows", arrays, source)


def _in_parallel(
    prove: Callable[[int], RowProof], rows: Iterable[int], context: Context
) -> Iterator[tuple[int, RowProof]]:
    """Proofs as they come: a row a thread, one BLAS thread each, none begun after the deadline."""
    waiting = iter(rows)
    running: dict[Future[RowProof], int] = {}
    with torch_threads(1), ThreadPoolExecutor(max(1, context.threads)) as pool:
        while True:
            while len(running) < max(1, context.threads) and not context.expired():
                row = next(waiting, None)
                if row is None:
                    break
                running[pool.submit(prove, row)] = row
            if not running:
                return
            ready, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in sorted(ready, key=running.__getitem__):
                yield running.pop(future), future.result()
