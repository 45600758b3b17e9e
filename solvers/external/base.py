"""What the stages of foreign exact solvers share: blocks, their convexification, the clock, bounds and their trace."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from fwbench.problem import Problem, row_errors
from fwbench.result import TracePoint
from fwbench.solvers.external.blocks import Block, blocks
from fwbench.solvers.frank_wolfe.stage import FrankWolfe
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
        self, problem: Problem, block: Block, start: np.ndarray, seconds: float, progress: Progress, context: Context
    ) -> Solution:
        """Solve one block from the incumbent ``start``, bool ``(rows of the block, n)``, True = pruned.

        ``progress.incumbent``, its error, is positive. An answer above it, or a bound above the answer, is corrected.
        """
        raise NotImplementedError(self.name)

    def run(self, problem: Problem, state: State, context: Context) -> State:
        context = replace(context, deadline=time.monotonic() + context.left(self.seconds))
        keep = state.mask
        e, own = self._diagonals(problem, keep, context)
        progress = Progress.of(problem, ~keep, context)
        pruned, proven, stopped, nodes = ~keep, True, "", 0
        context.hand_in("start", keep)
        left = problem.rows if problem.pattern.separable else 1
        for block in blocks(problem, e, own):
            share = context.left() / left
            if share <= 0:
                proven, stopped = False, "deadline"
                break
            answer = self._answer(problem, block, pruned[block.rows], share, progress, context)
            pruned[block.rows] = answer.pruned
            proven, nodes = proven and answer.proven, nodes + answer.nodes
            stopped = stopped or answer.stopped
            left -= 1
            context.hand_in(block.rows.start, answer.pruned)
            context.hand_in("lower", progress.lower)
        after = replace(
            state,
            keep=~pruned,
            relaxed=None,
            weights=None,
            proven=proven and self.gap == 0,
            stopped=stopped,
            trace=(*state.trace, *progress.points),
        )
        return after.bound(progress.lower).count(nodes=nodes)

    def salvage(self, problem: Problem, state: State, parts: Mapping[Any, Any]) -> State:
        keep = parts["start"].copy()
        for row, pruned in parts.items():
            if isinstance(row, int):
                keep[row : row + len(pruned)] = ~pruned
        return replace(state, keep=keep, relaxed=None, weights=None).bound(parts.get("lower", 0.0))

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
        self, problem: Problem, block: Block, start: np.ndarray, seconds: float, progress: Progress, context: Context
    ) -> Solution:
        """``solve``, its claims checked: the mask by the problem's own objective, the bound against that."""
        progress.incumbent = incumbent = block_error(problem, block, start)
        if incumbent <= 0:  # nothing costs less than nothing
            progress.finish(incumbent, 0.0)
            return Solution(start, proven=True)
        answer = self.solve(problem, block, start, seconds, progress, context)
        if incumbent * scaling(block, incumbent) < LEAST:
            reason = answer.stopped or f"the tolerances of {self.name} do not suffice"
            answer = replace(answer, lower=0.0, proven=False, stopped=reason)
        value = block_error(problem, block, answer.pruned)
        if not value < incumbent:
            answer, value = replace(answer, pruned=start), incumbent
        progress.finish(value, min(value, max(0.0, answer.lower)))
        return answer


@dataclass
class Progress:
    """Bounds of the layer while its blocks are solved one after another, and their trace."""

    upper: float
    lower: float
    context: Context
    points: list[TracePoint] = field(default_factory=list)
    incumbent: float = 0.0  # error of the block at hand before it is solved

    @classmethod
    def of(cls, problem: Problem, pruned: np.ndarray, context: Context) -> Progress:
        progress = cls(float(problem.row_errors(pruned).sum()), 0.0, context)
        progress._note(progress.upper, 0.0)
        return progress

    @property
    def due(self) -> bool:
        """False within a tenth of a second of the last point."""
        return self.context.seconds() > self.points[-1][0] + 0.1

    def note(self, best: float, bound: float) -> None:
        """The solver's own bounds of the block's error while it is running."""
        best = min(self.incumbent, best)
        self._note(self.upper - self.incumbent + best, self.lower + min(best, max(0.0, bound)))

    def finish(self, value: float, lower: float) -> None:
        """The block's error and bound when it is done."""
        self.upper += value - self.incumbent
        self.lower += lower
        if self.points[-1][1:3] != (self.upper, self.lower):
            self._note(self.upper, self.lower)

    def _note(self, upper: float, lower: float) -> None:
        self.points.append(self.context.point(upper, lower))


def block_error(problem: Problem, block: Block, pruned: np.ndarray) -> float:
    """The error of a block's rows under a mask, by the problem's own objective."""
    return float(row_errors(problem.G, problem.W[block.rows].astype(np.float64) * pruned).sum())


def scaling(block: Block, incumbent: float) -> float:
    """What to multiply the objective with: the incumbent's becomes ``OBJECTIVE``, coefficients stay below 1e8."""
    return OBJECTIVE / max(incumbent, 1e-6 * float(block.Q.diagonal().sum()))
