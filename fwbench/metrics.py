"""Metrics and aggregates of a benchmark: numpy only, every edge case stated.

Two conventions hold everywhere. *A failure is not a number*: in arrays it is NaN or infinity, and no aggregate counts
it as solved or leaves it out in silence. *A cost is at least zero*, and smaller is better.

The scalar metrics take and return ``None`` for "not known", because that is what a row of the report holds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

Costs = np.ndarray  # (problems, solvers), NaN or inf where a solver failed


def optimality_gap(upper: float | None, lower: float | None) -> float | None:
    """``(UB - LB) / UB``: the largest fraction of the error that a better mask could still save.

    ``None`` if either is unknown or not finite. ``UB = 0`` gives 0 if ``LB = 0`` (nothing beats an error of zero), and
    ``None`` if the bound is negative (the quotient has no value). Negative if ``LB > UB``: a contradiction, not hidden.
    Above 1 if the bound is negative, as one of a problem with a target may be: what is proved excludes nothing then.
    """
    return _ratio(upper, lower, upper)


def gap_to_best(error: float | None, best: float | None) -> float | None:
    """``(f - best) / best``: how far an error lies above the best known one.

    ``None`` if either is unknown or not finite. ``best = 0`` gives 0 if ``f = 0``, else infinity.
    """
    gap = _ratio(error, best, best)
    return math.inf if gap is None and best == 0 and error is not None and 0 < error < math.inf else gap


def relative_error(error: float | None, everything: float | None) -> float | None:
    """``f / f(prune everything)``. ``None`` if either is unknown; of zero it is 0 if ``f = 0``, else infinity."""
    return _quotient(error, everything, 0.0)


def ratio_to_wanda(error: float | None, wanda: float | None) -> float | None:
    """``f / f(Wanda's mask)``. ``None`` if either is unknown; of zero it is 1 if ``f = 0``, else infinity."""
    return _quotient(error, wanda, 1.0)


def certified_gap(upper: float | None, lower: float | None) -> float | None:
    """:func:`optimality_gap` of a bound that is proved: one above the error by rounding leaves no gap."""
    gap = optimality_gap(upper, lower)
    return None if gap is None else max(0.0, gap)


def rounding_error(rounded: float | None, relaxed: float | None) -> float | None:
    """``(f(rounded) - f(relaxed)) / f(rounded)``, ``f`` the unmodified objective at both.

    ``None`` if either is unknown or not finite. ``f(rounded) = 0`` gives 0 if ``f(relaxed) = 0``, else ``None``.
    Negative where rounding gained, which a point that is not optimal for the plain relaxation allows.
    """
    return _ratio(rounded, relaxed, rounded)


def _ratio(a: float | None, b: float | None, denominator: float | None) -> float | None:
    if a is None or b is None or denominator is None or not (math.isfinite(a) and math.isfinite(b)):
        return None
    if denominator == 0:
        return 0.0 if a == b else None
    return (a - b) / denominator


def _quotient(a: float | None, b: float | None, equal: float) -> float | None:
    if a is None or b is None:
        return None
    return a / b if b else (equal if a == 0 else math.inf)


def shifted_geometric_mean(
    values: Iterable[float | None], shift: float = 0.0, charge: float = math.inf, floor: float = 0.0
) -> float:
    """``exp(mean(log(v + shift))) - shift`` (Achterberg, "Constraint Integer Programming", A.3).

    Args:
        values: costs, at least zero. ``None``, NaN and infinity are failures.
        shift: damps the weight of tiny values; 0 is the plain geometric mean.
        charge: what a failure costs. By default infinity, so that a mean with a failure in it is infinite rather than
            a mean of the successes.
        floor: values below it count as it, so that a single zero does not decide a mean without a shift.

    Returns:
        The mean; NaN of nothing.

    Raises:
        ValueError: a negative value, shift or charge.
    """
    costs = _floats(values)
    if not costs.size:
        return math.nan
    costs = np.where(np.isfinite(costs), costs, charge)
    if shift < 0 or not (costs >= 0).all():
        raise ValueError("a shifted geometric mean needs values, shift and charge of at least zero")
    with np.errstate(divide="ignore"):
        mean = float(np.exp(np.mean(np.log(np.maximum(costs, floor) + shift)))) - shift
    return max(mean, 0.0)


def median(values: Iterable[float | None]) -> float:
    """Median with failures (``None``, NaN) as infinity, so that it is infinite once half the values fail.

    NaN of nothing.
    """
    costs = np.sort(np.nan_to_num(_floats(values), nan=math.inf, posinf=math.inf))
    if not costs.size:
        return math.nan
    return float((costs[(costs.size - 1) // 2] + costs[costs.size // 2]) / 2)


def ratios_to_best(costs: Costs) -> np.ndarray:
    """Cost over the best cost of the problem, ``(problems, solvers)``; infinity for a failure.

    A best cost of zero gives 1 to those who reach it and infinity to the others.
    """
    costs = _matrix(costs)
    best = costs.min(axis=1, keepdims=True, initial=math.inf)
    ratios = np.full(costs.shape, math.inf)
    np.divide(costs, best, out=ratios, where=np.isfinite(costs) & (best > 0))
    return np.where(np.isfinite(costs) & (costs == best), 1.0, ratios)


def performance_profile(costs: Costs, taus: Sequence[float] | np.ndarray) -> np.ndarray:
    """Fraction of the problems on which a solver is within a factor ``τ`` of the best (Dolan and Moré 2002, eq. 2).

    Args:
        costs: ``(problems, solvers)``. A failure (NaN, infinity) is solved at no ``τ``, an infinite one included.
        taus: ``(points,)``, at least 1.

    Returns:
        ``(points, solvers)`` in [0, 1]. A problem that nobody solved counts in the denominator.
    """
    ratios, limits = ratios_to_best(costs), np.asarray(taus, dtype=np.float64)
    within = np.isfinite(ratios)[None] & (ratios[None] <= limits[:, None, None])
    return within.sum(axis=1) / max(len(ratios), 1)


def wins(costs: Costs, tolerance: float = 1e-6) -> np.ndarray:
    """Number of problems on which a solver is the best, int64 ``(solvers,)``.

    Within a relative ``tolerance`` is a tie, and ties win for all. A problem that everybody failed has no winner.
    """
    return (ratios_to_best(costs) <= 1 + tolerance).sum(axis=0)


def _floats(values: Iterable[float | None]) -> np.ndarray:
    return np.array([math.nan if value is None else value for value in values], dtype=np.float64)


def _matrix(costs: Costs) -> np.ndarray:
    costs = np.asarray(costs, dtype=np.float64)
    if costs.ndim != 2:
        raise ValueError(f"costs must be a matrix (problems, solvers), got shape {costs.shape}")
    if (costs < 0).any():
        raise ValueError("costs must be at least zero")
    return np.where(np.isnan(costs), math.inf, costs)
