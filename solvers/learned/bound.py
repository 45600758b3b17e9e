"""The stage ``learned_bound``: the bound of a shared diagonal that a trained net says, proved as any other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch

from fwbench import bounds
from fwbench.problem import Problem
from fwbench.result import Certificate
from fwbench.solvers.frank_wolfe import loop, rules
from fwbench.solvers.frank_wolfe.stage import FrankWolfe
from fwbench.solvers.learned.diagonal import learned_e
from fwbench.stage import Context, Role, Stage, State, register


@register
@dataclass(frozen=True)
class LearnedBound(Stage):
    """A certified lower bound of the layer by a shared ``e`` from one forward pass of a trained input-convex network.

    As ``bound(kind=shared)``, whose ``e`` is the best to first order, from an interior point of many factorisations:
    the plain relaxation (``plain_steps``), ``e``, the convexified one (``steps``, to a relative ``gap``). Here ``e`` is
    the net's, scaled by one eigenvalue, and lowered until the checker's Cholesky proves ``G - diag(e) ⪰ 0``: the bound
    holds whatever the net says.
    """

    name: ClassVar[str] = "learned_bound"
    role: ClassVar[Role] = Role.BOUND
    advice: ClassVar[str] = (
        "For a quick bound of many wide layers like those it was trained on; not for the best one: "
        "`bound(kind=shared)` is mostly above it, and a row's own diagonal (`bound(kind=shor)`) far above both."
    )
    source: ClassVar[str] = "Amos, Xu, Kolter, Input Convex Neural Networks, 2017; trained by benchmarks/learned"
    plain_steps: int = 100
    steps: int = 500
    gap: float = 1e-4

    def __post_init__(self) -> None:
        if min(self.plain_steps, self.steps, self.gap) < 0:
            raise ValueError("plain_steps, steps and gap must not be negative")

    def run(self, problem: Problem, state: State, context: Context) -> State:
        context = replace(context, device="cpu")  # in-face steps, which converge fastest, are made there alone
        plain = FrankWolfe(rules.fastest(problem.pattern), steps=self.plain_steps, gap=1e-2).run(
            problem, replace(state, certificate=None), context
        )
        after = replace(state, trace=plain.trace, counters=plain.counters, stopped=plain.stopped)
        assert plain.certificate is not None
        assert plain.relaxed is not None
        after = after.bound(plain.certificate.bound, plain.certificate)
        context.hand_in("plain", plain.certificate)
        if context.expired():
            return replace(after, stopped="deadline")
        e = learned_e(problem, plain.relaxed)
        run, proof = proved(problem, plain.relaxed, e, self.steps, self.gap, context, self.name)
        context.hand_in("convexified", proof)
        after = replace(after, stopped=run.stopped, trace=(*after.trace, *run.trace)).bound(proof.bound, proof)
        return after.count(iterations=run.iterations, **run.counters)

    def salvage(self, problem: Problem, state: State, parts: Mapping[Any, Any]) -> State:
        for proof in parts.values():
            state = state.bound(proof.bound, proof)
        return state


def proved(
    problem: Problem, u: np.ndarray, e: np.ndarray, steps: int, gap: float, context: Context, source: str = ""
) -> tuple[loop.LoopRun, Certificate]:
    """The convexified relaxation by a safe ``e (n,)``, minimised from ``u (rows, n)``, and what it proves."""
    layer = loop.Objective.of(problem, context, problem.W.astype(np.float64) ** 2 * e)
    options = loop.LoopOptions(steps=steps, variant=rules.fastest(problem.pattern), gap=gap)
    run = loop.minimise(layer, torch.tensor(u, dtype=layer.W.dtype), options, context)
    return run, bounds.certificate(problem, run.best_u.clamp(0, 1).numpy(), e, source)
