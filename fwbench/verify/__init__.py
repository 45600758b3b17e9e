"""The checker of certificates: numpy and the problem alone. It trusts no solver and no bound computed elsewhere.

(For blocks of a transposable pattern it asks numba for duals, which prove what they prove, whatever they are.)

Read ``rounding`` (what floating point proves), ``rows`` (bounds by a tangent), ``products`` (what a row may subtract)
and ``tree`` (branch and bound), then :func:`check` below, which chooses among them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from fwbench.problem import Problem
from fwbench.result import Certificate
from fwbench.verify import rows, tree
from fwbench.verify.rounding import Refuted, lower_sum

__all__ = ["Refuted", "Verification", "check", "lines", "total"]

LARGEST = float(np.finfo(np.float64).max)
OTHER = "it belongs to another problem (hash differs)"
KINDS = {"diagonal": rows.bounds, "rows": rows.bounds, "tree": tree.bounds}


@dataclass(frozen=True)
class Verification:
    """``bound`` is proved, whatever the certificate claims; a refutation has its reason.

    ``rows`` are the bounds of each row, of which ``bound`` is the sum, where the pattern's rows are independent.
    """

    ok: bool
    bound: float = -math.inf
    reason: str = ""
    rows: tuple[float, ...] = field(default=(), repr=False, compare=False)


def check(problem: Problem, certificate: Certificate) -> Verification:
    """Replay a certificate.

    Where it holds, every mask of the pattern has at least the error ``bound`` in real arithmetic, for the numbers that
    the problem holds: ``bound`` is computed here from the certificate's arrays, and every rounding is accounted for.
    Nothing is proved of the certificate's own claim, and no tolerance is part of the proof. But a claim that exceeds
    what is proved, by more than a relative 1e-6 or 1e-9 of the error with everything pruned, and by more than float64
    may round off (``Problem.rounding``: rows may cancel), is called false.

    It is also refused if it belongs to another problem, if its arrays are not what its kind needs, or if a matrix that
    has to be positive semidefinite cannot be proved to be so.
    """
    try:
        with np.errstate(all="ignore"):  # what overflows is refused
            bounds = _bounds(problem, certificate)
            bound = total(bounds, problem.floor)
    except Refuted as error:
        return Verification(False, reason=str(error))
    claim = certificate.bound
    if not (isinstance(claim, int | float) and abs(claim) <= LARGEST):
        return Verification(False, reason=f"it claims a bound of {claim}")
    if claim > bound + 1e-6 * abs(bound) + 1e-9 * problem.total and claim > bound + problem.rounding():
        return Verification(False, reason=f"it claims a bound of {claim:.9g}, only {bound:.9g} can be proved")
    return Verification(True, bound, rows=tuple(bounds) if problem.pattern.separable else ())


def lines(problem: Problem, certificate: Certificate) -> list[tuple[float, float]]:
    """Replay a certificate of kind ``diagonal`` at every count: a line for each row, or for a layer with one count.

    Returns:
        intercept and slope for each row (block): a mask of it that prunes ``q`` weights, whatever ``q``, has an error
        of at least ``intercept + slope * q``, in real arithmetic.

    Raises:
        Refuted: it does not hold, or the pattern counts in other groups.
    """
    if certificate.problem != problem.hash:
        raise Refuted(OTHER)
    with np.errstate(all="ignore"):  # what overflows is refused
        return rows.lines(problem, certificate)


def total(bounds: Iterable[float], floor: float = 0.0) -> float:
    """A rigorous lower value of the sum of some blocks' bounds, of which none is below ``Problem.floor``."""
    return max(floor, lower_sum(bounds))


def _bounds(problem: Problem, certificate: Certificate) -> list[float]:
    if certificate.problem != problem.hash:
        raise Refuted(OTHER)
    if not isinstance(certificate.kind, str) or certificate.kind not in KINDS:
        raise Refuted(f"unknown kind of certificate {certificate.kind!r}")
    return KINDS[certificate.kind](problem, certificate)
