"""One level for each layer at the least sum of costs: the multiple-choice knapsack with a mean to be met."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

TABLE = 1 << 26  # bytes of the dynamic programme's choices, at most


def choose(costs: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Levels of the least total cost whose mean, weighted by ``sizes``, is the middle level.

    By a dynamic programme over the budget, exact whatever the costs. Where the sizes' common divisor is too small for
    its table, by :func:`margins`.

    Args:
        costs: float64 ``(layers, levels)``; an odd number of levels, in equal steps of what is pruned.
        sizes: int64 ``(layers,)``.

    Returns:
        float64 ``(layers,)``: whole numbers, but for one layer of :func:`margins`.
    """
    units = sizes // math.gcd(*sizes.tolist())
    budget = (costs.shape[1] // 2) * int(units.sum())
    if len(costs) * (budget + 1) > TABLE:
        return margins(costs, units, budget)
    return programme(costs, units, budget).astype(np.float64)


def programme(costs: np.ndarray, units: np.ndarray, budget: int) -> np.ndarray:
    """Levels of least cost with ``levels @ units == budget``, int64 ``(layers,)``: Bellman's recursion.

    Args:
        costs: ``(layers, levels)``.
        units: int64 ``(layers,)``, what a level more costs of the budget.
        budget: that some levels meet.
    """
    best = np.full(budget + 1, np.inf)  # of the layers so far, by what they use
    best[0] = 0.0
    choices = np.zeros((len(costs), budget + 1), dtype=np.uint8)
    for layer, unit in enumerate(units.tolist()):
        found = np.full(budget + 1, np.inf)
        for level in range(costs.shape[1]):
            used = level * unit
            if used > budget:
                break
            total = best[: budget + 1 - used] + costs[layer, level]
            better = total < found[used:]
            found[used:][better] = total[better]
            choices[layer, used:][better] = level
        best = found
    levels, left = np.zeros(len(costs), dtype=np.int64), budget
    for layer in reversed(range(len(costs))):
        levels[layer] = choices[layer, left]
        left -= int(levels[layer] * units[layer])
    return levels


def margins(costs: np.ndarray, units: np.ndarray, budget: int) -> np.ndarray:
    """Levels, float64, by the cheapest next step of the costs' convex envelopes until the budget is met.

    That is exact where costs are convex and a part of a level is one; for others no choice costs less than the
    envelopes at this one, and all layers but the one with a part of a step lie on their own costs.
    """
    steps = []
    for layer, (cost, unit) in enumerate(zip(costs, units.tolist(), strict=True)):
        corners = envelope(cost)
        for low, high in pairwise(corners):
            steps.append(((cost[high] - cost[low]) / ((high - low) * unit), layer, low, high))
    levels, left = np.zeros(len(costs)), float(budget)
    for _, layer, low, high in sorted(steps):
        taken = min(left, (high - low) * int(units[layer]))
        levels[layer] = low + taken / int(units[layer])
        left -= taken
        if left <= 0:
            break
    return levels


def envelope(cost: np.ndarray) -> list[int]:
    """Levels at the corners of a curve's greatest convex minorant (Andrew's monotone chain)."""
    corners: list[int] = []
    for level in range(len(cost)):
        while len(corners) > 1:
            first, last = corners[-2:]
            if (cost[last] - cost[first]) * (level - first) < (cost[level] - cost[first]) * (last - first):
                break
            corners.pop()
        corners.append(level)
    return corners
