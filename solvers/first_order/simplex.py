"""Projections on a pattern's polytope: ``0 ≤ u ≤ 1`` with an exact sum in each group (the capped simplex).

Both ask for one number a group, the level ``τ`` at which the sum is right: a root of a decreasing function, found for
all groups at once by Newton's method within a bracket.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from fwbench.patterns import Pattern

ROUNDS = 80  # of the search for a level, which takes some five
FARTHEST = 80.0  # logit: float32 holds both sides of it as ordinary numbers
SLACK = 1e-12  # of a count: the sum of sigmoids has more rounding than its last digits


@dataclass(frozen=True)
class CappedSimplex:
    """The polytope of a pattern for ``rows × n`` weights; ``counts`` as a column, one entry a group."""

    pattern: Pattern
    counts: torch.Tensor  # (groups, 1)

    @classmethod
    def of(cls, pattern: Pattern, like: torch.Tensor) -> CappedSimplex:
        """For tensors such as ``like (rows, n)``."""
        counts = pattern.counts((like.shape[0], like.shape[1]))
        return cls(pattern, torch.tensor(counts[:, None], dtype=like.dtype, device=like.device))

    def nearest(self, z: torch.Tensor, scale: torch.Tensor, guess: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The point nearest to ``z (rows, n)``, squares divided by ``scale (rows, n)``: ``clip(z - τ scale, 0, 1)``.

        With a ``scale`` of ones the Euclidean projection (Wang, Lu 2015). Also the levels, in the shape of ``guess``,
        which says where they may be: one number a group.
        """
        x, s = self.pattern.groups(z), self.pattern.groups(scale)

        def at(level: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            moved = x - level * s
            inside = (moved > 0) & (moved < 1)
            return moved.clamp(0, 1).sum(1, keepdim=True), torch.where(inside, s, 0.0).sum(1, keepdim=True)

        low, high = ((x - 1) / s).amin(1, keepdim=True), (x / s).amax(1, keepdim=True)
        level = root(at, self.counts, low, high, guess.reshape(-1, 1))
        u = (x - level * s).clamp(0, 1)
        u = torch.where(self.counts <= 0, 0.0, torch.where(self.counts >= u.shape[1], 1.0, u))
        return u.reshape(z.shape), level.reshape(guess.shape)

    def entropic(
        self, logits: torch.Tensor, scale: torch.Tensor, guess: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits ``(rows, n)`` of the nearest point by Fermi-Dirac entropy over ``scale``: ``logits - τ scale``.

        They are cut where float32 would not tell a weight from 0 or 1 on either side. Also the levels, as ``nearest``.
        """
        x, s = self.pattern.groups(logits), self.pattern.groups(scale)

        def at(level: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            u = torch.sigmoid(x - level * s)
            return u.sum(1, keepdim=True), (s * u * (1 - u)).sum(1, keepdim=True)

        far = math.log(x.shape[1]) + 1  # there all but less than one in all are on one side
        low, high = ((x - far) / s).amin(1, keepdim=True), ((x + far) / s).amax(1, keepdim=True)
        level = root(at, self.counts, low, high, guess.reshape(-1, 1))
        found = (x - level * s).clamp(-FARTHEST, FARTHEST)
        found = torch.where(self.counts <= 0, -FARTHEST, found)
        found = torch.where(self.counts >= x.shape[1], FARTHEST, found)
        return found.reshape(logits.shape), level.reshape(guess.shape)


def root(
    at: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
    wanted: torch.Tensor,
    low: torch.Tensor,
    high: torch.Tensor,
    guess: torch.Tensor,
) -> torch.Tensor:
    """Where a decreasing function has the ``wanted`` value, ``(groups, 1)``, between ``low`` and ``high``.

    Newton's method, and bisection where it leaves the bracket or two steps of it have not halved that.

    Args:
        at: the function and minus its slope at a level, both ``(groups, 1)``.
    """
    slack = max(8 * torch.finfo(wanted.dtype).eps, SLACK) * wanted.clamp(min=1)
    level = torch.where((guess > low) & (guess < high), guess, (low + high) / 2)
    done = torch.zeros_like(level, dtype=torch.bool)
    width = high - low
    for turn in range(ROUNDS):
        value, fall = at(level)
        excess = value - wanted
        done |= excess.abs() <= slack
        low, high = torch.where(excess > 0, level, low), torch.where(excess > 0, high, level)
        middle = low + (high - low) / 2
        done |= ~((middle > low) & (middle < high))  # neighbours: there is nothing between
        if bool(done.all()):
            break
        newton = level + excess / fall
        good = (newton > low) & (newton < high)  # False for what is not a number
        if turn % 2:
            good &= 2 * (high - low) <= width
            width = high - low
        level = torch.where(done, level, torch.where(good, newton, middle))
    return level


def largest_correlation(G: torch.Tensor, rounds: int = 50) -> float:
    """The largest eigenvalue of ``G`` scaled to a diagonal of ones, by the power method: from below, and close.

    Every row's ``Q`` scaled so has the same, as ``w`` only changes signs.
    """
    root_of = G.diagonal().clamp(min=0).sqrt()
    inverse = torch.where(root_of > 0, 1 / root_of, 0.0)
    v = torch.from_numpy(np.random.default_rng(0).standard_normal(len(G))).to(G)
    found = 1.0
    for _ in range(rounds):
        size = float(v.norm())
        if not size > 0:
            break
        v = v / size
        after = inverse * (G @ (inverse * v))
        found, v = max(found, float(v @ after)), after
    return found
