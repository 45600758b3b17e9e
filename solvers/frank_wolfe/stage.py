"""The stage ``fw``: Frank-Wolfe on the relaxation, plain or convexified, and its lower bound."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch

from fwbench import patterns
from fwbench.patterns import Transposable, smallest
from fwbench.problem import Problem
from fwbench.solvers.frank_wolfe import loop, rules
from fwbench.solvers.frank_wolfe.averaging import Averaging, minimise_averaged
from fwbench.solvers.numerics.threads import torch_threads
from fwbench.solvers.semidefinite.row import RowProof
from fwbench.solvers.semidefinite.row_diagonals import layer_certificate, row_proofs
from fwbench.solvers.semidefinite.shared_diagonal import shared_e
from fwbench.solvers.start.scores import ria_score, wanda_score
from fwbench.stage import Context, Role, Stage, State, register

CONVEXIFY = ("none", "shared", "row")
FIXED = ("wanda", "ria", "start")
PLAIN_GAP = 1e-2  # relative: the slope that chooses e need not be exact


@register
@dataclass(frozen=True)
class FrankWolfe(Stage):
    """Frank-Wolfe on the convex relaxation, batched over rows; the gap gives a certified lower bound.

    ``alpha``: the ``floor(alpha k)`` best of the ``k`` kept weights of each group stay fixed (SparseFW, algorithm 2),
    and the rest is sought below them. ``fixed=wanda`` and ``fixed=ria`` rank by that score; ``fixed=start`` ranks the
    mask or point that it begins with, where that is equal by Wanda's score. With ``alpha=1`` that is the mask.
    ``convexify=shared``: a plain solve chooses the shared ``e`` (weighted minimum trace factor analysis), then the
    convexified objective is solved; ``plain_steps`` limits the first solve, which ends at a gap of 1e-2.
    ``convexify=row``: then every row gets its own ``e`` besides, from its Shor relaxation, as far as half of the time
    left allows; needs a pattern whose rows are independent.
    ``variant=inface``, the default, converges far faster than the others and runs on the CPU; on a GPU, and for
    transposable patterns, name ``vanilla``.
    ``correct=N``: every N iterations ``away``, ``pairwise``, ``bcg`` and ``bpcg`` minimise over the affine hull of
    their atoms (QC-MNP), and ``dicg`` takes conjugate gradient steps in its face while that promises half the gap; 0
    for the plain variants, which creep on ill-conditioned layers.
    ``ell``: of the open loop's step ``ell / (t + ell)``. ``seconds``: time for each solve, 0 for no limit.
    ``capacity``: atoms in a row's active set, 0 for as many as it may need: where they would not fit into
    memory, rows run in parts, with the same result.
    ``average=polyak``: the average of every ``every``-th iterate, or the iterate where its gap is smaller.
    ``average=lookahead``: after every ``every`` iterations back to ``weight`` of the way that they made.
    ``rounded``: the trace also tells the error of each rounded iterate, for one more product a look.
    """

    name: ClassVar[str] = "fw"
    role: ClassVar[Role] = Role.RELAX
    advice: ClassVar[str] = (
        "For a lower bound with a proof, or a relaxed point to round; not for the best mask, `push` and swaps "
        "find better ones."
    )
    version: ClassVar[int] = 6  # other answers than version 5 only with ``alpha``, from a mask that is not Wanda's
    source: ClassVar[str] = "Roux et al., SparseFW, arXiv 2510.13713; Jaggi 2013; Halbey et al., arXiv 2506.02635"
    variant: str = "inface"
    step: str = "linesearch"
    steps: int = 1000
    gap: float = 1e-4
    alpha: float = 0.0
    fixed: str = "wanda"
    convexify: str = "none"
    plain_steps: int = 800
    ell: float = 2.0
    seconds: float = 0.0
    capacity: int = 0
    correct: int = 20
    rounded: bool = False
    average: str = "none"
    every: int = 10
    weight: float = 0.5

    def __post_init__(self) -> None:
        for name, value, known in (
            ("variant", self.variant, rules.DIRECTION_RULES),
            ("step", self.step, rules.STEP_RULES),
            ("convexify", self.convexify, CONVEXIFY),
            ("fixed", self.fixed, FIXED),
        ):
            if value not in known:
                raise ValueError(f"unknown {name} {value!r}; known: {', '.join(known)}")
        rules.compiled(self.variant, self.step)
        Averaging(self.average, self.every, self.weight)
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha must lie in [0, 1], got {self.alpha}")
        if min(self.steps, self.plain_steps, self.gap, self.seconds, self.capacity, self.correct) < 0:
            raise ValueError("steps, plain_steps, gap, seconds, capacity and correct must not be negative")
        if self.ell <= 0:
            raise ValueError(f"ell must be positive, got {self.ell}")

    def supports(self, problem: Problem) -> str | None:
        if self.convexify == "row" and not problem.pattern.separable:
            return f"convexify=row needs a pattern whose rows are independent, not {problem.pattern}"
        return rules.declined(problem, self.variant)

    def run(self, problem: Problem, state: State, context: Context) -> State:
        start = _start(problem, state)
        fixed = _fixed(problem, start, self.alpha, self.fixed)
        if fixed is not None:
            start = _beside(problem, start, fixed)
        options = loop.LoopOptions(
            self.steps,
            self.step,
            self.variant,
            self.gap,
            None if fixed is None else torch.tensor(fixed, device=context.device),
            self.ell,
            self.seconds or math.inf,
            self.capacity,
            self.correct,
            self.rounded,
        )
        e, d = None, None
        proofs: dict[int, RowProof] = {}
        runs: list[loop.LoopRun] = []
        source = f"fw(convexify={self.convexify})"
        if self.convexify != "none":
            rough = replace(options, steps=self.plain_steps, gap=max(self.gap, PLAIN_GAP))
            runs.append(self._minimise(problem, start, None, rough, context))
            start = _numpy(runs[0].u)
            if not context.expired():  # else it is too late for e, and the plain bound is better
                e = shared_e(problem, start, device=context.device)
                d = problem.W.astype(np.float64) ** 2 * e
        if self.convexify == "row" and d is not None:
            proofs = row_proofs(problem, context)
            own = {row: proof.d / proof.scale**2 for row, proof in proofs.items()}
            d = np.stack([own.get(row, d[row]) for row in range(problem.rows)])
        if d is not None or not runs:
            runs.append(self._minimise(problem, start, d, options, context))
        run = runs[-1]
        certificate = layer_certificate(problem, proofs, e, _numpy(run.best_u), source)
        after = replace(
            state,
            relaxed=patterns.project(problem.pattern, _numpy(run.u), patterns.DRIFT),
            stopped=run.stopped if d is not None or self.convexify == "none" else "deadline",
            trace=(*state.trace, *run.trace),
        ).bound(certificate.bound, certificate)
        for part in runs:
            after = after.count(**part.counters)
        return after.count(iterations=run.iterations, row_proofs=len(proofs))

    def _minimise(
        self, problem: Problem, start: np.ndarray, d: np.ndarray | None, options: loop.LoopOptions, context: Context
    ) -> loop.LoopRun:
        layer = loop.Objective.of(problem, context, d)
        u = torch.tensor(start, dtype=layer.W.dtype, device=context.device)
        if self.average == "none":
            return loop.minimise(layer, u, options, context)

        def walk(u: torch.Tensor, options: loop.LoopOptions, context: Context) -> loop.LoopRun:
            return loop.minimise(layer, u, options, context)

        averaging = Averaging(self.average, self.every, self.weight)
        late = replace(context, deadline=min(context.deadline, time.monotonic() + options.seconds))
        with torch_threads(context.threads):
            return minimise_averaged(walk, layer, u, options, averaging, late)


def _start(problem: Problem, state: State) -> np.ndarray:
    if state.relaxed is not None:
        return np.array(state.relaxed)
    return (~state.mask).astype(np.float64)


def _fixed(problem: Problem, start: np.ndarray, alpha: float, by: str) -> np.ndarray | None:
    """Mark the ``floor(alpha k)`` best of each group, k its kept count (SparseFW, section 3.2); bool ``(rows, n)``."""
    if alpha == 0:
        return None
    if isinstance(problem.pattern, Transposable):
        return _fixed_in_blocks(problem, problem.pattern, start, alpha, by)
    score = problem.pattern.groups((ria_score if by == "ria" else wanda_score)(problem.W, problem.G))
    if by == "start":  # ranks: the least pruned first
        order = np.lexsort((-score, problem.pattern.groups(start)), axis=-1)
        score = -np.argsort(order, axis=-1)
    kept = score.shape[1] - problem.counts
    return smallest(-score, np.floor(alpha * kept).astype(np.int64)).reshape(problem.shape)


def _fixed_in_blocks(problem: Problem, pattern: Transposable, start: np.ndarray, alpha: float, by: str) -> np.ndarray:
    """The best that keep ``floor(alpha N)`` of each row and column of a block: some mask of the pattern keeps them."""
    score = (ria_score if by == "ria" else wanda_score)(problem.W, problem.G)
    if by == "start":  # the least pruned, where that is equal by the score
        score = score / max(score.max() * score.size, np.finfo(np.float64).tiny) - start
    return ~replace(pattern, kept=int(alpha * pattern.kept)).prune(score)


def _beside(problem: Problem, start: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    """The start, or the point nearest to it that prunes nothing of what is ``fixed``."""
    if not start[fixed].any():
        return start
    if not problem.pattern.grouped:  # a vertex
        return problem.pattern.prune(np.where(fixed, np.inf, -start)).astype(np.float64)
    far = np.where(fixed, -3.0, start)  # so far below the others that the projection leaves it at 0
    return np.where(fixed, 0.0, patterns.project(problem.pattern, far))


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.clamp(0, 1).cpu().numpy()
