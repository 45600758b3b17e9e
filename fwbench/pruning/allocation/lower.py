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
from fwbench.patterns import PerRow, Unstructured
from fwbench.problem import Problem
from fwbench.solvers.learned import curve
from fwbench.stage import Context

HALVINGS = 100  # of the bracket of the price
NOTHING = (Fraction(0), Fraction(0))  # the line that every error is above


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


def curve_of(problem: Problem, levels: Sequence[float], rows: int, context: Context) -> Lower:
    """The lower curve of a layer by some of its rows, in the units of their error.

    Where the pattern counts over the layer, rows have lines of their own. At any price of a zero the sum of their least
    values is a line of the layer's count, however its zeros are divided among rows.

    Args:
        problem: those rows.
        levels: ascending sparsities at which lines are sought; the curve holds at all.
        rows: of the whole layer, of which these have an even share of what is pruned.
    """
    shared = isinstance(problem.pattern, Unstructured)
    counts = [PerRow(level) for level in ((levels[0] / 2, *levels, (1 + levels[-1]) / 2) if shared else levels)]
    made = curve.certificates(problem, counts, context)
    own = [verify.lines(problem.with_pattern(level), proof) for level, proof in zip(counts, made, strict=True)]
    exact = [[(Fraction(a), Fraction(b)) for a, b in lines] for lines in own]
    if not shared:
        return _summed(exact, problem.n, rows)
    each = [Lower((NOTHING, *lines), 0, problem.n) for lines in zip(*exact, strict=True)]
    corners, share, lines, loose = [one.corners() for one in each], Fraction(problem.rows, rows), [NOTHING], Fraction(0)
    for level in levels:
        price = Fraction(_price(corners, round(level * problem.rows * problem.n)))
        lines.append((_least(corners, price), share * price))
        loose = max(loose, abs(price))
    return Lower(tuple(lines), 0, rows * problem.n, loose)


def _summed(lines: Sequence[Sequence[tuple[Fraction, Fraction]]], n: int, rows: int) -> Lower:
    """The curve of a layer whose rows have equal counts, from its rows' lines at each level."""
    found, loose = [NOTHING], Fraction(0)
    for level in lines:
        intercepts, slopes = zip(*level, strict=True)
        found.append((sum(intercepts, Fraction(0)), sum(slopes, Fraction(0)) / rows))
        loose = max(loose, sum(map(abs, slopes), Fraction(0)))
    return Lower(tuple(found), 0, rows * n, loose)


def _least(corners: Sequence[Sequence[tuple[int, Fraction]]], price: Fraction) -> Fraction:
    """The least sum of curves less the price of their counts."""
    return sum((min(value - price * count for count, value in own) for own in corners), Fraction(0))


def bound(curves: Sequence[Lower], budget: int) -> float:
    """Below every sum of the curves, less what is loose, over counts that sum to the budget; 0 at least.

    The price of a pruned weight is sought in floating point; whatever it is, what it proves is exact.

    Args:
        budget: what some counts within the curves' limits sum to.
    """
    corners = [each.corners() for each in curves]
    price = Fraction(_price(corners, budget))
    total = price * budget + _least(corners, price) - sum((each.loose for each in curves), Fraction(0))
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
