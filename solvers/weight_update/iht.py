"""Iterative hard thresholding: a gradient step on all weights, then the largest of each group, the others zero.

With inputs scaled to norm 1 and ``L`` the largest eigenvalue of their Gram matrix, ``H(v)`` keeps the largest of
``v + ((w - v) G' + t') / L``, ``t'`` of a target. As the step is the minimum of a quadratic above the error that
touches it at ``v``, the error never rises (Blumensath and Davies 2008). Accelerated, from ``x`` and the step's last
point ``z``,

    y = x + (τ₋/τ)(z - x) + ((τ₋ - 1)/τ)(x - x₋),    z ← H(y),    τ₊ = (1 + √(1 + 4τ²)) / 2,

and ``x`` becomes the better of ``z`` and ``H(x)``: monotone (Li and Lin 2015, algorithm 1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from fwbench.problem import Problem
from fwbench.solvers.weight_update.descent import Layer
from fwbench.stage import Context, Role, Stage, State, register


@register
@dataclass(frozen=True)
class IHT(Stage):
    """Change weights and mask by hard-thresholded gradient steps from those at hand; the error never rises.

    ``accelerated=False`` is plain hard thresholding. Wen et al. call the accelerated form mAIHT; of their paper only
    the summary could be read: an ℓ0 penalty, weights updated, monotone acceleration, the threshold adapted layer by
    layer. Here it is adapted in each group to the pattern's count, acceleration is that of Li and Lin, and inputs are
    scaled to norm 1, so that the first threshold is on Wanda's scores.
    """

    iterations: int = 100
    accelerated: bool = True

    name: ClassVar[str] = "iht"
    role: ClassVar[Role] = Role.UPDATE
    version: ClassVar[int] = 2  # other answers than version 1 on transposable patterns alone
    advice: ClassVar[str] = (
        "For a mask and weights by Gram products alone, no inverse; not for the least error: `alps`."
    )
    source: ClassVar[str] = (
        "Wen, Zuo and Pan, ICML 2025 (PMLR 267); Blumensath and Davies 2008; Li and Lin, NeurIPS 2015"
    )

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {self.iterations}")

    def run(self, problem: Problem, state: State, context: Context) -> State:
        layer = Layer.of(problem, context)
        x = layer.begin(state)
        walk = _accelerated if self.accelerated else _plain
        x, iterations, products, stopped = walk(layer, x, self.iterations, context)
        return layer.end(state, x, stopped).count(iterations=iterations, gram_products=products)


def _plain(layer: Layer, x: torch.Tensor, steps: int, context: Context) -> tuple[torch.Tensor, int, int, str]:
    """Where it ends, iterations, products, and why it ended early; a fixed point ends it by itself."""
    for step in range(steps):
        if context.expired():
            return x, step, step, "deadline"
        before, x = x, layer.largest(x + layer.slope(x) / layer.curvature)
        if torch.equal(before, x):
            return x, step + 1, step + 1, ""
    return x, steps, steps, ""


def _accelerated(layer: Layer, x: torch.Tensor, steps: int, context: Context) -> tuple[torch.Tensor, int, int, str]:
    """The same; slopes of ``y`` are those of the points that it is made of."""
    slope = layer.slope(x)
    z, before = (x, slope), (x, slope)
    last, now = 0.0, 1.0
    for step in range(steps):
        if context.expired():
            return x, step, 1 + 2 * step, "deadline"
        y, along = (
            a + last / now * (b - a) + (last - 1) / now * (a - c) for a, b, c in zip((x, slope), z, before, strict=True)
        )
        far, near = (layer.largest(v + s / layer.curvature) for v, s in ((y, along), (x, slope)))
        ahead, safe = layer.slope(far), layer.slope(near)
        closer = layer.errors(far, ahead) <= layer.errors(near, safe)
        z, before = (far, ahead), (x, slope)
        x, slope = torch.where(closer, far, near), torch.where(closer, ahead, safe)
        if torch.equal(near, before[0]) and torch.equal(x, near):
            return x, step + 1, 3 + 2 * step, ""
        last, now = now, (1 + math.sqrt(1 + 4 * now * now)) / 2
    return x, steps, 1 + 2 * steps, ""
