"""The stage ``bound``: certified lower bounds of a layer, shared and row by row, where the gap is largest first."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from fwbench import bounds
from fwbench.problem import Problem
from fwbench.result import Certificate
from fwbench.solvers.bounds.batch import Device, fitting, path_of_batches
from fwbench.solvers.frank_wolfe import rules
from fwbench.solvers.frank_wolfe.stage import FrankWolfe
from fwbench.solvers.numerics.recorder import BoundsRecorder
from fwbench.solvers.numerics.threads import rows_pool, torch_threads
from fwbench.solvers.semidefinite.ladder import RUNGS, Host, Machine, climb, path
from fwbench.solvers.semidefinite.row import RowForm, RowProof, row_certificate
from fwbench.solvers.semidefinite.shor import Shor
from fwbench.spec import SpecError, numbers
from fwbench.stage import Context, Role, Stage, State, register

KINDS = ("shared", *RUNGS, "best")
KEPT = 2**28  # bytes of solutions to start from; rows beyond it are solved from the beginning again

Prover = Callable[[Sequence[RowForm], Sequence[Shor | None], float], list[Shor]]  # of some rows: CPU one, GPU many


@register
@dataclass(frozen=True)
class Bound(Stage):
    """Certified lower bounds: shared ``e``, then semidefinite bounds of single rows, the largest gap first.

    ``kind=shared``: one diagonal for all rows. ``shor``: one of each row's own, from the semidefinite relaxation.
    ``dnn``: with ``u_i u_j ≥ 0`` besides. ``mccormick``: with all four products of ``u_i``, ``1 - u_i`` and ``u_j``,
    ``1 - u_j``. ``triangles``: with triangle inequalities. ``pentagons``: with those of five weights. ``best``: Shor on
    the rows, then the others in this order as long as time is left. ``rows`` is all, N for a sample of N by the seed,
    or a list such as '3,7,100-120'. Ends after ``seconds`` with what it has. On a GPU many rows are one batch, but for
    the last two kinds, which stay on the CPU.
    """

    name: ClassVar[str] = "bound"
    role: ClassVar[Role] = Role.BOUND
    advice: ClassVar[str] = "To prove how far a mask can be from the best one; it improves no mask."
    source: ClassVar[str] = "Helmberg, Rendl, Vanderbei, Wolkowicz 1996; Poljak, Rendl, Wolkowicz 1995"
    version: ClassVar[int] = 7
    kind: str = "best"
    rows: int | str | None = None  # all
    seconds: float = 60.0
    tolerance: float = 3e-4
    iterations: int | None = None  # of all but Shor; their own numbers if not given

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown kind {self.kind!r}; known: {', '.join(KINDS)}")
        if (self.iterations or 0) < 0 or not self.seconds > 0 or not self.tolerance > 0:
            raise ValueError("iterations must not be negative, seconds and tolerance must be positive")
        _listed(self.rows)

    def supports(self, problem: Problem) -> str | None:
        if self.kind in RUNGS and not problem.pattern.separable:
            return f"kind={self.kind} needs a pattern whose rows are independent, not {problem.pattern}"
        try:
            chosen_rows(self.rows, problem.rows)
        except ValueError as error:
            return str(error)
        return None

    def run(self, problem: Problem, state: State, context: Context) -> State:
        context = replace(context, deadline=time.monotonic() + context.left(self.seconds))
        host = replace(context, device="cpu")  # in-face steps, which converge fastest, are made there alone
        with torch_threads(context.threads):
            shared = FrankWolfe(rules.fastest(problem.pattern), convexify="shared", steps=500).run(
                problem, replace(state, certificate=None), host
            )
        after = replace(state, trace=shared.trace, counters=shared.counters, stopped=shared.stopped)
        assert shared.certificate is not None
        context.hand_in("shared", shared.certificate)
        after = after.bound(shared.certificate.bound, shared.certificate)
        if self.kind == "shared" or not problem.pattern.separable:
            return after
        rows = _RowBounds(
            problem, shared.certificate, state, context, chosen_rows(self.rows, problem.rows, context.seed)
        )
        order = tuple(RUNGS) if self.kind == "best" else (self.kind,)
        finished = all(
            rows.improve(self._prover(kind, context), kind != order[-1], _in_batches(kind, context)) for kind in order
        )
        certificate = rows.certificate(f"bound(kind={self.kind})")
        after = replace(after, trace=(*after.trace, *rows.recorder.trace), stopped="" if finished else "deadline")
        return after.bound(certificate.bound, certificate).count(row_proofs=rows.count)

    def salvage(self, problem: Problem, state: State, parts: Mapping[Any, Any]) -> State:
        shared, proofs = parts["shared"], {row: proof for row, proof in parts.items() if row != "shared"}
        lower = np.maximum(bounds.group_bounds(problem, shared.arrays["u"], shared.arrays["e"]), problem.floor)
        for row, proof in proofs.items():
            lower[row] = proof.lower
        certificate = row_certificate(shared, proofs, float(lower.sum()), f"bound(kind={self.kind})")
        return state.bound(certificate.bound, certificate)

    def _prover(self, kind: str, context: Context) -> Prover:
        machine: Machine
        if _in_batches(kind, context):
            rungs = path_of_batches(kind, self.iterations)
            machine = Device(context.device, self.tolerance, context.threads)
        else:
            rungs, machine = path(kind, self.iterations), Host(self.tolerance)
        return lambda forms, starts, deadline: climb(rungs, forms, starts, machine, deadline)


def _in_batches(kind: str, context: Context) -> bool:
    return context.device != "cpu" and RUNGS[kind].batched


def chosen_rows(text: int | str | None, rows: int, seed: int = 0) -> list[int]:
    """The rows that a person names: all (None), a sample of N by the seed, or a list such as ``3,7,100-120``.

    A larger sample of the same seed holds the smaller one. A number with a comma behind it, ``7,``, is that row.

    Raises:
        ValueError: not a list of rows, or a row that is not there.
    """
    listed = _listed(text)
    if listed is None:
        return list(range(rows))
    if isinstance(listed, int):
        return sorted(np.random.default_rng(seed).permutation(rows)[:listed].tolist())
    if listed[-1] >= rows:
        raise ValueError(f"there is no row {listed[-1]}: the layer has {rows}, counted from 0")
    return listed


def _listed(text: int | str | None) -> int | list[int] | None:
    """None for all, a number for a sample, or row numbers, ascending."""
    if text is None or text == "all":
        return None
    text = str(text)
    try:
        found = numbers(text)
    except SpecError:
        found = []
    if not found or (text.isdecimal() and found == [0]):
        raise ValueError(f"rows must be all, a number or a list such as 3,7,100-120, not {text!r}")
    return found[0] if text.isdecimal() else found


class _RowBounds:
    """The bounds of all rows as they rise, and the proofs behind them."""

    def __init__(self, problem: Problem, shared: Certificate, state: State, context: Context, rows: list[int]) -> None:
        self.problem, self.shared, self.context = problem, shared, context
        e, u = shared.arrays["e"], shared.arrays["u"]
        self.recorder = BoundsRecorder(context, np.maximum(bounds.group_bounds(problem, u, e), problem.floor))
        self.lower = self.recorder.lower
        pruned = u if state.keep is None else ~state.keep
        self.upper = problem.row_errors(pruned)
        self.chosen = [row for row in rows if RowForm.of(problem, row).free]
        self.proofs: dict[int, RowProof] = {}
        self.solved: dict[int, Shor] = {}  # to start from
        self.count = 0

    def improve(self, prover: Prover, keep: bool, in_batches: bool) -> bool:
        """Run a prover on every chosen row, the largest gap first; False if the time did not suffice.

        Args:
            keep: hold the solutions for the next prover.
            in_batches: it takes as many rows as fit on the device, else one a thread.
        """
        rows = sorted(self.chosen, key=lambda row: (self.lower[row] - self.upper[row], row))
        room = KEPT // (4 * (self.problem.n + 1) ** 2) if keep else 0
        starts, self.solved = self.solved, {}

        def prove(part: list[int]) -> list[Shor]:
            forms = [RowForm.of(self.problem, row) for row in part]
            return prover(forms, [starts.pop(row, None) for row in part], self.context.deadline)

        size = fitting(self.problem.n, self.context.device) if in_batches else 1
        parts = [rows[first : first + size] for first in range(0, len(rows), size)]
        done = 0
        for row, found in _in_parallel(prove, parts, 1 if in_batches else self.context.threads, self.context):
            done += 1
            if found.proof.lower > self.lower[row]:
                self.proofs[row] = found.proof
                self.context.hand_in(row, found.proof)
            self.recorder.note(row, max(self.lower[row], found.proof.lower))
            if len(self.solved) < room:
                self.solved[row] = replace(found, X=found.X.astype(np.float32))
        self.count += done
        return done == len(rows) and not self.context.expired()

    def certificate(self, source: str) -> Certificate:
        """All proofs in one."""
        return row_certificate(self.shared, self.proofs, float(self.lower.sum()), source)


def _in_parallel(
    prove: Callable[[list[int]], list[Shor]], parts: Iterable[list[int]], threads: int, context: Context
) -> Iterator[tuple[int, Shor]]:
    """Proofs as they come: some rows a thread, one BLAS thread each, none begun after the deadline."""
    waiting = iter(parts)
    running: dict[Future[list[Shor]], list[int]] = {}
    with rows_pool(threads) as pool:
        while True:
            while len(running) < max(1, threads) and not context.expired():
                part = next(waiting, None)
                if part is None:
                    break
                running[pool.submit(prove, part)] = part
            if not running:
                return
            ready, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in sorted(ready, key=running.__getitem__):
                yield from zip(running.pop(future), future.result(), strict=True)
