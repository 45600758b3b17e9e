"""Alternating minimisation over mask and weights, with a step that is tried and one that is safe.

In inputs of norm 1, with the slope ``s = (w - v) G' + t'`` (half of the error's negative gradient; ``t'`` of a target):

- tried: ``z = v + α s``, the largest of each group kept, the others zero: mask and weights move together;
- safe: ``v + β s`` on the mask as it is, ``β = |s_S|² / (s_S G' s_S)``: the best step of a block of coordinates.

Row by row the tried step is taken if it lowers the error by at least ``c |z - v|²``, and then ``α`` doubles, up to 1,
the step of a single input; else the safe one is, and ``α`` is halved, down to ``iht``'s. This is proximal alternating
linearised minimisation (Bolte, Sabach and Teboulle 2014) with LPAM's safeguard (arXiv 2411.06333), its learned residual
switched off.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fwbench.problem import Problem
from fwbench.solvers.weight_update.descent import Layer
from fwbench.stage import Context, Role, Stage, State, register

RULES = ("palm",)
NONE = {  # what the literature has, and why it is not here
    "trimmed": "rule trimmed leaves out tokens of large error, and a problem holds no tokens; a function takes a "
    "layer's inputs in batches: fwbench.solvers.weight_update.trimmed.trimmed",
    "multiplicative": "rule multiplicative moves shares of a mask: with weights free, shares and weights cancel",
}
ENOUGH = 1e-4  # of the squared step: what a tried step must gain


@register
@dataclass(frozen=True)
class Alternate(Stage):
    """Alternate between mask and weights by safeguarded gradient steps, from those at hand; the error never rises.

    Steps are longer than those of ``iht``, whose length is right for the worst direction, but not accelerated. Of the
    literature's other alternating schemes, leaving out tokens (robust phase retrieval) needs the inputs themselves, for
    which there is ``fwbench.solvers.weight_update.trimmed``, and multiplicative updates (Blahut and Arimoto's) need
    weights that are fixed: over masks they are mirror descent.
    """

    rule: str = "palm"
    iterations: int = 100

    name: ClassVar[str] = "alternate"
    role: ClassVar[Role] = Role.UPDATE
    version: ClassVar[int] = 2  # other answers than version 1 on transposable patterns alone
    advice: ClassVar[str] = "For masks and weights without an inverse, as `iht`; not for the least error: `alps`."
    source: ClassVar[str] = "Bolte, Sabach and Teboulle, Math. Program. 146, 2014; LPAM, arXiv 2411.06333"

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ValueError(NONE.get(self.rule, f"rule must be one of {', '.join(RULES)}, got {self.rule!r}"))
        if self.iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {self.iterations}")

    def run(self, problem: Problem, state: State, context: Context) -> State:
        layer = Layer.of(problem, context)
        v = layer.begin(state)
        keep = torch.from_numpy(state.mask.copy()).to(context.device)
        slope = layer.slope(v)
        error, length = layer.errors(v, slope), torch.ones_like(v[:, :1])
        taken, stopped = 0, ""
        for _ in range(self.iterations):
            if context.expired():
                stopped = "deadline"
                break
            tried = v + length * slope
            mask = ~problem.pattern.nearest(tried)
            tried = tried * mask
            ahead = layer.slope(tried)
            after = layer.errors(tried, ahead)
            moved = layer.tied((tried - v).square().sum(1, keepdim=True))
            gains = after <= error - ENOUGH * moved
            along = slope * keep
            product = along @ layer.G
            square, curvature = (layer.tied(part.sum(1, keepdim=True)) for part in (along.square(), along * product))
            step = torch.where(curvature > 0, square / curvature, 0)
            v = torch.where(gains, tried, v + step * along)
            slope = torch.where(gains, ahead, slope - step * product)
            keep = torch.where(gains, mask, keep)
            error = torch.where(gains, after, layer.errors(v, slope))
            length = torch.where(gains, (2 * length).clamp(max=1), (length / 2).clamp(min=1 / layer.curvature))
            taken += 1
        return layer.end(state, v, stopped).count(iterations=taken, gram_products=1 + 2 * taken)
