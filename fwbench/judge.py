"""The judge: float64 re-evaluation of any mask or weights. No solver touches this code, and it believes none."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fwbench.problem import Problem
from fwbench.result import Verdict

CLAIM_TOLERANCE = 1e-3  # relative: a claim computed honestly in float32 passes, a lie does not


@dataclass(frozen=True)
class Judgement:
    """``error`` is float64, None unless the answer is feasible and finite."""

    verdict: Verdict
    error: float | None = None
    reason: str = ""


def judge(
    problem: Problem,
    keep: np.ndarray | None,
    weights: np.ndarray | None = None,
    claimed: float | None = None,
) -> Judgement:
    """Judge an answer.

    Args:
        problem: what was to be solved.
        keep: bool ``(rows, n)``, True = the weight stays.
        weights: changed weights ``(rows, n)``, zero where ``keep`` is False; None if the kept weights are unchanged.
        claimed: the error the solver says it has, if it says one.
    """
    if keep is None:
        return Judgement(Verdict.NONE, reason="the solver returned no mask")
    keep = np.asarray(keep)
    if keep.dtype != bool:
        return Judgement(Verdict.INFEASIBLE, reason=f"the mask has dtype {keep.dtype}, not bool")
    if keep.shape != problem.shape:
        return Judgement(Verdict.INFEASIBLE, reason=f"the mask has shape {keep.shape}, not {problem.shape}")
    if reason := count_reason(problem, keep):
        return Judgement(Verdict.INFEASIBLE, reason=reason)
    if weights is None:
        error = problem.error(keep)
    else:
        weights = np.asarray(weights)
        if weights.shape != problem.shape:
            return Judgement(Verdict.INFEASIBLE, reason=f"the weights have shape {weights.shape}, not {problem.shape}")
        if not np.isfinite(weights).all():
            return Judgement(Verdict.NONFINITE, reason="the changed weights are not finite")
        if np.any(weights[~keep]):
            return Judgement(
                Verdict.INFEASIBLE, reason=f"{np.count_nonzero(weights[~keep])} pruned weights are not zero"
            )
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is judged nonfinite below
            error = problem.error_of_weights(weights)
    if not math.isfinite(error):
        return Judgement(Verdict.NONFINITE, reason="the error is not finite")
    if error < 0 <= error + problem.rounding(keep, weights):
        error = 0.0  # rows cancel, and a square is not negative
    off = 0.0 if claimed is None else abs(claimed - error)
    near = off <= CLAIM_TOLERANCE * max(error, 1e-12 * problem.total)
    if not near and not off <= problem.rounding(keep, weights):
        return Judgement(
            Verdict.ERROR_MISMATCH, error, f"it claims an error of {claimed:.6g}, the judge finds {error:.6g}"
        )
    return Judgement(Verdict.FEASIBLE, error)


def count_reason(problem: Problem, keep: np.ndarray) -> str:
    """Empty if every group of the pattern has exactly its count, else one sentence on the first that has not."""
    excess, counts = problem.pattern.excess(~keep), problem.counts
    wrong = np.flatnonzero(excess)
    if not wrong.size:
        return ""
    columns, group = divmod(
        int(wrong[0]), counts.size
    )  # a transposable pattern has the columns' groups behind the rows'
    wanted = int(counts[group])
    return (
        f"wrong count in {wrong.size} of {excess.size} groups of pattern {problem.pattern}: "
        f"{'column ' if columns else ''}group {group} prunes {wanted + int(excess[wrong[0]])}, not {wanted}"
    )
