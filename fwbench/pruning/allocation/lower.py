"""What no allocation is below: lower curves of the layers from proved lines, and the knapsack over them.

``fwbench.verify`` proves lines below the error of all masks of a layer, whatever its count; the largest of some is a
convex lower curve. Of a sum of those under one budget, any price of a zero gives a lower bound (Lagrange), and the best
price the minimum itself (docs/mathematics.md, "Every count at once"). Numbers are exact fractions, rounded down at the
end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import combinations

import numpy as np

from fwbench import verify
from fwbench.patterns import Pattern
from fwbench.problem import Problem
from fwbench.solvers.learned import curve
from fwbench.stage import Context

HALVINGS = 100  # of the bracket of the price


@dataclass(frozen=True)
class Lower:
    """The least error that a layer can have, from below, as a function of how many of its weights are pruned."""

    lines: tuple[tuple[Fraction, Fraction], ...]  # intercept and slope, of which the largest counts
    low: int  # pruned weights that the layer may have
    high: int
    loose: Fraction = Fraction(0)  # what may be taken off: its rows' counts may be off their share by one weight

    def at(self, pruned: int) -> Fraction:
        """Its value at so many pruned weights."""
        return max(intercept + slope * pruned for intercept, slope in self.lines)

    def times(self, weight: float) -> Lower:
        """The curve of ``weight`` times the error; the weight is not negative."""
        by = Fraction(weight)
        lines = tuple((by * intercept, by * slope) for intercept, slope in self.lines)
        return replace(self, lines=lines, loose=by * self.loose)

    def fixed(self, pruned: int) -> Lower:
        """The same where the layer has no other count."""
        return replace(self, low=pruned, high=pruned)

    def corners(self) -> list[tuple[int, Fraction]]:
        """Counts at one of which the curve less any linear function is least, and its values there.

        A convex function of whole numbers, linear between some points, is least next to one of them or at an end.
        """
        counts = {self.low, self.high}
        for (intercept, slope), (other, steeper) in combinations(self.lines, 2):
            if slope != steeper:
                crossing = (other - intercept) / (slope - steeper)
                counts |= {math.floor(crossing), math.ceil(crossing)}
        return [(count, self.at(count)) for count in sorted(counts) if self.low <= count <= self.high]


def curve_of(problem: Problem, levels: Sequence[Pattern], rows: int, context: Context) -> Lower:
    """The lower curve of a layer by some of its rows, in the units of their error.

    Args:
        problem: those rows.
        levels: ascending counts at which lines are sought; the curve holds at all.
        rows: of the whole layer, of which these have an even share of what is pruned.
    """
    share = Fraction(problem.rows // problem.blocks, rows)  # of the layer's pruned weights, for each block
    lines, loose = [(Fraction(0), Fraction(0))], Fraction(0)  # an error is no less than 0
    for certificate, level in zip(curve.certificates(problem, levels, context), levels, strict=True):
        blocks = verify.lines(problem.with_pattern(level), certificate)
        intercepts, slopes = ([Fraction(number) for number in numbers] for numbers in zip(*blocks, strict=True))
        lines.append((sum(intercepts, Fraction(0)), share * sum(slopes, Fraction(0))))
        loose = max(loose, sum(map(abs, slopes), Fraction(0)))
    return Lower(tuple(lines), 0, rows * problem.n, loose)


def bound(curves: Sequence[Lower], budget: int) -> float:
    """Below every sum of the curves, less what is loose, over counts that sum to the budget; 0 at least.

    The price of a pruned weight is sought in floating point; whatever it is, what it proves is exact.

    Args:
        budget: what some counts within the curves' limits sum to.
    """
    corners = [each.corners() for each in curves]
    price = Fraction(_price(corners, budget))
    total = price * budget - sum((each.loose for each in curves), Fraction(0))
    for own in corners:
        total += min(value - price * count for count, value in own)
    return max(0.0, math.nextafter(float(total), -math.inf))


def _price(corners: Sequence[Sequence[tuple[int, Fraction]]], budget: int) -> float:
    """What a pruned weight more costs where the least sum of the curves meets the budget, by bisection."""
    most = max(map(len, corners))
    padded = np.array([[*own, *[own[-1]] * (most - len(own))] for own in corners], dtype=np.float64)
    counts, values = padded[..., 0], padded[..., 1]
    steps = np.diff(values, axis=1) / np.maximum(np.diff(counts, axis=1), 1)
    low, high = float(steps.min(initial=0.0)), float(steps.max(initial=0.0))
    for _ in range(HALVINGS):
        price = (low + high) / 2
        least = np.argmin(values - price * counts, axis=1)
        too_few = counts[np.arange(len(counts)), least].sum() < budget
        low, high = (price, high) if too_few else (low, price)
    return (low + high) / 2
