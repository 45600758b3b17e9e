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
from fwbench.solvers.learned.diagonal import learned_e, learned_rows
from fwbench.solvers.semidefinite.row import RowForm, RowProof, tangent_bound
from fwbench.solvers.semidefinite.row_diagonals import layer_certificate
from fwbench.solvers.semidefinite.shor import safe_diagonal
from fwbench.stage import Context, Role, Stage, State, register


@register
@dataclass(frozen=True)
class LearnedBound(Stage):
    """A certified lower bound of the layer by a shared ``e`` from one forward pass of a trained input-convex network.

    As ``bound(kind=shared)``, whose ``e`` is the best to first order, from an interior point of many factorisations:
    the plain relaxation (``plain_steps``), ``e``, the convexified one (``steps``, to a relative ``gap``). Here ``e`` is
    the net's, scaled by one eigenvalue, and lowered until the checker's Cholesky proves ``G - diag(e) ⪰ 0``: the bound
    holds whatever the net says. ``own``: besides, a diagonal of each row's own by the same net, which is asked, scaled
    and proved once a row; the rows that it bounds better stand on it. It pays at 576 inputs, not at 1536. For patterns
    whose rows are independent.
    """

    name: ClassVar[str] = "learned_bound"
    role: ClassVar[Role] = Role.BOUND
    advice: ClassVar[str] = (
        "For a quick bound of many wide layers like those it was trained on; not for the best one: "
        "`bound(kind=shared)` is mostly above it (at some hundred inputs below `own=true`), and `bound(kind=shor)` "
        "far above both."
    )
    source: ClassVar[str] = "Amos, Xu, Kolter, Input Convex Neural Networks, 2017; trained by benchmarks/learned"
    plain_steps: int = 100
    steps: int = 500
    gap: float = 1e-4
    own: bool = False

    def __post_init__(self) -> None:
        if min(self.plain_steps, self.steps, self.gap) < 0:
            raise ValueError("plain_steps, steps and gap must not be negative")

    def supports(self, problem: Problem) -> str | None:
        if self.own and not problem.pattern.separable:
            return f"own needs a pattern whose rows are independent, not {problem.pattern}"
        return None

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
        after = after.count(iterations=run.iterations, **run.counters)
        if not self.own:
            return after
        if context.expired():
            return replace(after, stopped="deadline")
        proofs = own_proofs(problem, plain.relaxed, learned_rows(problem, plain.relaxed), self.steps, self.gap, context)
        better = layer_certificate(problem, proofs, e, proof.arrays["u"], self.name)
        return after.bound(better.bound, better).count(row_proofs=len(proofs))

    def salvage(self, problem: Problem, state: State, parts: Mapping[Any, Any]) -> State:
        for proof in parts.values():
            state = state.bound(proof.bound, proof)
        return state


def proved(
    problem: Problem, u: np.ndarray, e: np.ndarray, steps: int, gap: float, context: Context, source: str = ""
) -> tuple[loop.LoopRun, Certificate]:
    """The convexified relaxation by a safe ``e (n,)``, minimised from ``u (rows, n)``, and what it proves."""
    run = convexified(problem, u, e, steps, gap, context)
    return run, bounds.certificate(problem, run.best_u.clamp(0, 1).numpy(), e, source)


def own_proofs(
    problem: Problem, u: np.ndarray, e: np.ndarray, steps: int, gap: float, context: Context
) -> dict[int, RowProof]:
    """The proofs of the rows that have a choice by ``e (rows, n)``, from ``u (rows, n)``."""
    points = convexified(problem, u, e, steps, gap, context).best_u.clamp(0, 1).numpy().astype(np.float32)
    found = {}
    for row in range(problem.rows):
        if (form := RowForm.of(problem, row)).free:
            d = safe_diagonal(form, (problem.W[row].astype(np.float64) * form.scale) ** 2 * e[row], 0.0)
            found[row] = RowProof(tangent_bound(form, d, 0.0, points[row]), d, 0.0, points[row], scale=form.scale)
    return found


def convexified(
    problem: Problem, u: np.ndarray, e: np.ndarray, steps: int, gap: float, context: Context
) -> loop.LoopRun:
    """The convexified relaxation by ``e``, ``(n,)`` or ``(rows, n)``, minimised from ``u (rows, n)``."""
    layer = loop.Objective.of(problem, context, problem.W.astype(np.float64) ** 2 * e)
    options = loop.LoopOptions(steps=steps, variant=rules.fastest(problem.pattern), gap=gap)
    return loop.minimise(layer, torch.tensor(u, dtype=layer.W.dtype), options, context)
