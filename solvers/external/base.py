"""What the stages of foreign exact solvers share: blocks, their convexification, the clock, bounds and their trace."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from fwbench.bounds import linear_bounds
from fwbench.problem import Problem
from fwbench.solvers.external.blocks import QuadraticBlock, blocks
from fwbench.solvers.frank_wolfe.stage import FrankWolfe
from fwbench.solvers.numerics.recorder import BoundsRecorder
from fwbench.solvers.semidefinite.search_diagonal import row_diagonals
from fwbench.solvers.semidefinite.shared_diagonal import shared_e
from fwbench.stage import Context, Role, Stage, State

OBJECTIVE = 100.0  # the incumbent's objective after scaling: solvers' tolerances are absolute, 1e-10 and up
LEAST = 1e-3  # an objective that is less, as terms that cancel allow no larger one, is within reach of the tolerances
CONVEXIFY = ("none", "shared", "row")


@dataclass(frozen=True)
class Solution:
    """What became of one block; ``pruned`` bool ``(rows of the block, n)``, ``lower`` a bound of its error."""

    pruned: np.ndarray
    lower: float = 0.0
    proven: bool = False
    stopped: str = ""
    nodes: int = 0


@dataclass(frozen=True)
class External(Stage):
    """Base of the stages: ``run`` goes through the blocks, ``solve`` hands one to the solver.

    ``seconds``: for the whole layer, shared out evenly among the rows still to do. ``gap``: relative, 0 for a proof.
    ``convexify``: the program is ``uᵀ(Q - D)u + dᵀu`` with ``d = 0``, the shared ``e``, or each row's own
    diagonal, that of ``bnb``'s search.
    """

    seconds: float = math.inf
    gap: float = 0.0
    convexify: str = "none"

    role: ClassVar[Role] = Role.EXACT
    needs_groups: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.convexify not in CONVEXIFY:
            raise ValueError(f"unknown convexify {self.convexify!r}; known: {', '.join(CONVEXIFY)}")
        if not (self.seconds > 0 and self.gap >= 0):
            raise ValueError("seconds must be positive, gap not negative")

    def supports(self, problem: Problem) -> str | None:
        if self.convexify == "row" and not problem.pattern.separable:
            return f"convexify=row needs a pattern whose rows are independent, not {problem.pattern}"
        return None

    def solve(
        self,
        problem: Problem,
        block: QuadraticBlock,
        start: np.ndarray,
        seconds: float,
        progress: BlockProgress,
        context: Context,
    ) -> Solution:
        """Solve one block from the incumbent ``start``, bool ``(rows of the block, n)``, True = pruned.

        ``progress.incumbent``, its error, is positive. An answer above it, or a bound above the answer, is corrected.
        """
        raise NotImplementedError(self.name)

    def run(self, problem: Problem, state: State, context: Context) -> State:
        context = replace(context, deadline=time.monotonic() + context.left(self.seconds))
        keep = state.mask
        e, own = self._diagonals(problem, keep, context)
        pruned, proven, stopped, nodes = ~keep, True, "", 0
        lower = linear_bounds(problem)  # of each block, until it is solved
        context.hand_in("start", keep)
        parts = problem.rows if problem.pattern.separable else 1
        errors = problem.row_errors(pruned).reshape(parts, -1).sum(axis=1)
        recorder = BoundsRecorder(context, lower.copy(), errors)
        for part, block in enumerate(blocks(problem, e, own)):
            share = context.left() / (parts - part)
            if share <= 0:
                proven, stopped = False, "deadline"
                break
            incumbent = block_error(problem, block, pruned[block.rows])
            progress = BlockProgress(recorder, part, incumbent, float(lower[part]))
            answer, value = self._answer(problem, block, pruned[block.rows], share, progress, context)
            recorder.note(part, answer.lower, value, always=False)
            pruned[block.rows] = answer.pruned
            lower[part] = answer.lower
            proven, nodes = proven and answer.proven, nodes + answer.nodes
            stopped = stopped or answer.stopped
            context.hand_in(block.rows.start, answer.pruned)
            context.hand_in("lower", _total(lower))
        after = replace(
            state,
            keep=~pruned,
            relaxed=None,
            weights=None,
            proven=proven and self.gap == 0,
            stopped=stopped,
            trace=(*state.trace, *recorder.trace),
        )
        return after.bound(_total(lower)).count(nodes=nodes)

    def salvage(self, problem: Problem, state: State, parts: Mapping[Any, Any]) -> State:
        keep = parts["start"].copy()
        for row, pruned in parts.items():
            if isinstance(row, int):
                keep[row : row + len(pruned)] = ~pruned
        return replace(state, keep=keep, relaxed=None, weights=None).bound(
            parts.get("lower", _total(linear_bounds(problem)))
        )

    def _diagonals(
        self, problem: Problem, keep: np.ndarray, context: Context
    ) -> tuple[np.ndarray | None, dict[int, np.ndarray] | None]:
        """The shared ``e (n,)`` and the rows' own ``d (n,)``; a row that the clock left out has none."""
        if self.convexify == "row":
            return None, row_diagonals(problem, keep, context)
        if self.convexify == "none":
            return None, None
        plain = FrankWolfe(steps=200).run(problem, State(keep=keep), replace(context, dtype="float64", listener=None))
        assert plain.relaxed is not None
        return shared_e(problem, plain.relaxed), None

    def _answer(
        self,
        problem: Problem,
        block: QuadraticBlock,
        start: np.ndarray,
        seconds: float,
        progress: BlockProgress,
        context: Context,
    ) -> tuple[Solution, float]:
        """``solve``, its claims checked against the problem's own objective; and the error of its mask."""
        incumbent = progress.incumbent
        if incumbent <= progress.least:  # nothing costs less
            return Solution(start, progress.least, proven=True), incumbent
        if problem.T is not None and not block.choice:  # where terms cancel, no tolerance would do
            return Solution(start, incumbent, proven=True), incumbent
        answer = self.solve(problem, block, start, seconds, progress, context)
        if incumbent * scaling(block, incumbent) < LEAST:
            reason = answer.stopped or f"the tolerances of {self.name} do not suffice"
            answer = replace(answer, lower=progress.least, proven=False, stopped=reason)
        value = block_error(problem, block, answer.pruned)
        if not value < incumbent:
            answer, value = replace(answer, pruned=start), incumbent
        return replace(answer, lower=min(value, max(progress.least, answer.lower))), value


@dataclass(frozen=True)
class BlockProgress:
    """Where a foreign solver tells of its block while it is running."""

    recorder: BoundsRecorder
    part: int
    incumbent: float  # error of the mask that it began with
    least: float = 0.0  # what the linear term says of every mask's error

    @property
    def due(self) -> bool:
        """Whether it is time to tell again."""
        return self.recorder.due

    def note(self, best: float, bound: float) -> None:
        """The solver's own bounds of the block's error."""
        best = min(self.incumbent, best)
        self.recorder.note(self.part, min(best, max(self.least, bound)), best)


def block_error(problem: Problem, block: QuadraticBlock, pruned: np.ndarray) -> float:
    """The error of a block's rows under a mask, by the problem's own objective."""
    return float(problem.row_errors(pruned, block.rows).sum())


def _total(lower: np.ndarray) -> float:
    """The sum of the blocks' bounds, one after the other."""
    return float(lower.cumsum()[-1])


def scaling(block: QuadraticBlock, incumbent: float) -> float:
    """What to multiply the objective with: the incumbent's becomes ``OBJECTIVE``, coefficients stay below 1e8."""
    return OBJECTIVE / max(incumbent, 1e-6 * max(float(block.Q.diagonal().sum()), float(np.abs(block.c).sum())))
