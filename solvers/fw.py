"""The stage ``fw``: Frank-Wolfe on the relaxation, plain or convexified, and its lower bound."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch

from fwbench import bounds
from fwbench.problem import Problem
from fwbench.solvers import frank_wolfe as loop
from fwbench.solvers.convexify import shared_e
from fwbench.solvers.scores import wanda_score
from fwbench.stage import Context, Role, Stage, State, register

CONVEXIFY = ("none", "shared")


@register
@dataclass(frozen=True)
class FrankWolfe(Stage):
    """Frank-Wolfe on the convex relaxation, batched over rows; the gap gives a certified lower bound.

    ``alpha``: the ``floor(alpha k)`` kept weights of each group with the highest Wanda score stay fixed (SparseFW).
    ``convexify=shared``: a plain solve chooses the shared ``e`` (weighted minimum trace factor analysis), then the
    convexified objective is solved; ``plain_steps`` is the length of the first solve.
    """

    name: ClassVar[str] = "fw"
    role: ClassVar[Role] = Role.RELAX
    source: ClassVar[str] = "Roux et al., SparseFW, arXiv 2510.13713; Jaggi 2013"
    variant: str = "vanilla"
    step: str = "linesearch"
    steps: int = 1000
    gap: float = 1e-4
    alpha: float = 0.0
    convexify: str = "none"
    plain_steps: int = 200

    def __post_init__(self) -> None:
        for name, value, known in (
            ("variant", self.variant, loop.DIRECTION_RULES),
            ("step", self.step, loop.STEP_RULES),
            ("convexify", self.convexify, CONVEXIFY),
        ):
            if value not in known:
                raise ValueError(f"unknown {name} {value!r}; known: {', '.join(known)}")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha must lie in [0, 1], got {self.alpha}")
        if self.steps < 0 or self.plain_steps < 0 or self.gap < 0:
            raise ValueError("steps, plain_steps and gap must not be negative")

    def run(self, problem: Problem, state: State, context: Context) -> State:
        start = _start(problem, state)
        options = loop.Options(self.steps, self.step, self.variant, self.gap, _fixed(problem, self.alpha, context))
        e, products = None, 0
        if self.convexify == "shared":
            first = replace_options(options, steps=self.plain_steps)
            plain = _minimise(problem, start, None, first, context)
            start, products = _numpy(plain.u), plain.iterations + 2
            e = shared_e(problem, start, device=context.device)
        run = _minimise(problem, start, e, options, context)
        products += run.iterations + 1
        source = f"fw(convexify={self.convexify})"
        certificate = bounds.certificate(problem, _numpy(run.best_u), e, source)
        after = replace(
            state,
            relaxed=_numpy(run.u),
            stopped=run.stopped,
            trace=(*state.trace, *run.trace),
        ).bound(certificate.bound, certificate)
        return after.count(iterations=run.iterations, lmo_calls=products, gram_products=products)


def replace_options(options: loop.Options, **changes: object) -> loop.Options:
    return replace(options, **changes)  # type: ignore[arg-type]


def _start(problem: Problem, state: State) -> np.ndarray:
    if state.relaxed is not None:
        return np.array(state.relaxed)
    if state.keep is None:
        raise ValueError("there is no point to start from")
    return (~state.keep).astype(np.float64)


def _minimise(
    problem: Problem, start: np.ndarray, e: np.ndarray | None, options: loop.Options, context: Context
) -> loop.Run:
    layer = loop.Layer.of(problem, context, e)
    return loop.minimise(layer, torch.tensor(start, dtype=layer.W.dtype, device=context.device), options, context)


def _fixed(problem: Problem, alpha: float, context: Context) -> torch.Tensor | None:
    """Mark the ``floor(alpha k)`` highest Wanda scores of each group, k its kept count (SparseFW, section 3.2)."""
    if alpha == 0:
        return None
    score = problem.pattern.groups(wanda_score(problem.W, problem.G))
    kept = score.shape[1] - problem.pattern.counts(problem.shape)
    rank = np.argsort(np.argsort(-score, axis=1, kind="stable"), axis=1, kind="stable")
    fixed = rank < np.floor(alpha * kept)[:, None]
    return torch.tensor(fixed.reshape(problem.shape), device=context.device)


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.clamp(0, 1).cpu().numpy()
