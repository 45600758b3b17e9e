"""What a run gave: its mask judged and its bound checked."""

from __future__ import annotations

import hashlib
import weakref
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np

from fwbench import metrics, verify
from fwbench.judge import judge
from fwbench.pipeline.resolving import load_solvers
from fwbench.problem import Problem
from fwbench.result import Answer, Certificate, Proof, Result, Status, Verdict, pack_mask
from fwbench.stage import Context, Role, State

OPTIMALITY_TOLERANCE = 1e-9  # relative: a verified bound this close to the error makes it optimal


def judged(problem: Problem, row: Result, state: State, skipped: list[str]) -> Answer:
    """A run's end as an answer: the mask judged, its bound replayed; ``skipped`` are stages that had no time."""
    judgement = judge(problem, state.keep, state.weights, state.claimed_error)
    row = replace(row, seconds=sum(record.seconds for record in row.stages), verdict=judgement.verdict)
    if judgement.verdict is not Verdict.FEASIBLE:
        return Answer(replace(row, reason=judgement.reason), state.keep, state.weights, state.relaxed)
    assert judgement.error is not None
    assert state.keep is not None
    error = judgement.error
    relaxed = next((r.relaxed_error for r in reversed(row.stages) if r.relaxed_error is not None), None)
    rounded = next((r.error for r in row.stages if r.role == Role.ROUND), None)
    wanda = wanda_error(problem)
    row = replace(
        row,
        status=Status.OPTIMAL if state.proven else Status.FEASIBLE,
        error=error,
        relative_error=metrics.relative_error(error, problem.total),
        ratio_to_wanda=metrics.ratio_to_wanda(error, wanda),
        relaxed_error=relaxed,
        rounding_error=metrics.rounding_error(rounded, relaxed),
        mask_sha256=hashlib.sha256(pack_mask(state.keep)).hexdigest(),
    )
    if state.stopped or skipped:
        reason = f"stopped early: {state.stopped}" if state.stopped else f"no time left for {', '.join(skipped)}"
        row = replace(row, status=Status.TIMEOUT, reason=reason)
    row, certificate, row_bounds = _with_bound(problem, row, state, error)
    return Answer(row, state.keep, state.weights, state.relaxed, certificate, row_bounds)


def _with_bound(
    problem: Problem, row: Result, state: State, error: float
) -> tuple[Result, Certificate | None, tuple[float, ...]]:
    """Join the lower bound: verified if its certificate replays, else the solver's claim. Also the rows' own.

    A mask is never lost for a bound. One that exceeds the error by what float64 rounds off is lowered to it; one that
    is false is dropped with all that the run says of bounds, and the row says why.
    """
    lower, proof, certificate = state.lower, Proof.CLAIMED, state.certificate
    rows: tuple[float, ...] = ()
    if certificate is not None:
        checked = verify.check(problem, certificate)
        if not checked.ok:
            return _refuted(row, f"its certificate does not hold: {checked.reason}"), None, ()
        if lower is None or lower <= max(certificate.bound, checked.bound):
            lower, proof, rows = checked.bound, Proof.VERIFIED, checked.rows
        certificate = replace(certificate, bound=checked.bound)
    if lower is None:
        return row, None, ()
    if row.updates_weights:
        return replace(row, lower_bound=None), certificate, ()  # bounds are for masks with the given weights
    if lower > error * (1 + OPTIMALITY_TOLERANCE) + 1e-12 * problem.total:
        if lower > error + problem.rounding(state.keep):
            return _refuted(row, f"its lower bound {lower:.9g} exceeds the error {error:.9g}"), None, ()
        lower = error  # rows cancel
    verdict = row.verdict
    if proof is Proof.VERIFIED:
        tight = lower >= error * (1 - OPTIMALITY_TOLERANCE)
        verdict = Verdict.OPTIMAL if tight else Verdict.CERTIFIED
    return replace(row, verdict=verdict, lower_bound=lower, proof=proof), certificate, rows


def _refuted(row: Result, why: str) -> Result:
    """The row without a bound, nor any in its stages and its trace, nor a claim that its mask is optimal."""
    reason = f"{row.reason}; {why}" if row.reason else why
    return replace(
        row,
        status=Status.FEASIBLE if row.status is Status.OPTIMAL else row.status,
        reason=f"{reason}; the mask stays, the bound is dropped",
        lower_bound=None,
        proof=Proof.REFUTED,
        stages=tuple(replace(record, lower_bound=None) for record in row.stages),
        trace=tuple(point._replace(lower=None) for point in row.trace),
    )


@lru_cache(maxsize=8)
def _wanda_errors_by_hash(problem_hash: str, holder: _Holder) -> np.ndarray:
    problem = holder.problem()
    assert problem is not None
    keep = load_solvers()["wanda"]().run(problem, State(), Context()).keep
    assert keep is not None
    return problem.mask_errors(keep)


def wanda_errors(problem: Problem) -> np.ndarray:
    """Error of Wanda's mask on each row of the problem, float64 ``(rows,)``."""
    return _wanda_errors_by_hash(problem.hash, _Holder(weakref.ref(problem)))


def wanda_error(problem: Problem) -> float:
    """The same on the layer: the yardstick of ``ratio_to_wanda``."""
    return float(wanda_errors(problem).sum())


@dataclass(frozen=True)
class _Holder:
    """Carries a problem past the cache, which must not keep it alive: only the hash beside it is compared."""

    problem: weakref.ref[Problem] = field(compare=False)
