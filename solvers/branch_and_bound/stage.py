"""Exact solution by our own branch and bound: no licence, and a proof that ``fwbench.verify.tree`` replays.

Each row (the layer, where the pattern does not separate) is searched on its own: subtrees best first, depth first
within, every subtree with a convexification made for what is still free in it. See ``search`` (subtrees),
``semidefinite.search_diagonal`` (the convexification), ``search_numba`` (nodes), ``relaxation_numba`` (their bounds).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from fwbench.bounds import linear_bounds
from fwbench.problem import Problem
from fwbench.result import TracePoint
from fwbench.solvers.branch_and_bound.certificate import Tree, certificate
from fwbench.solvers.branch_and_bound.search import BinaryProgram, Search
from fwbench.solvers.numerics.recorder import BoundsRecorder
from fwbench.solvers.numerics.scaling import scale_for
from fwbench.solvers.numerics.threads import rows_pool
from fwbench.solvers.semidefinite.row import centred
from fwbench.stage import Context, Role, Stage, State, register
from fwbench.verify.rounding import block_matrix

ROUNDING = "what is left to prove is less than rounding"


@register
@dataclass(frozen=True)
class BranchAndBound(Stage):
    """Branch and bound on subtrees with diagonals of their own; the mask before it is the incumbent.

    ``seconds``: for the whole layer, shared out evenly among the rows still to do. ``gap``: relative, 0 for a proof.
    ``nodes``: at most for each row, 0 for no limit. ``subtree``: nodes before what is open gets diagonals of its own.
    ``largest``: variables of a block (a row); beyond it hours are needed, so the stage declines unless told otherwise.
    Rows run on the context's threads; the answer does not depend on how many unless the clock ends it.
    """

    seconds: float = math.inf
    gap: float = 0.0
    nodes: int = 0
    subtree: int = 5000
    largest: int = 400

    version: ClassVar[int] = 6
    name: ClassVar[str] = "bnb"
    role: ClassVar[Role] = Role.EXACT
    needs_groups: ClassVar[bool] = True
    advice: ClassVar[str] = (
        "For an optimal mask with its proof, rows of up to some 192 inputs; not far above, only the easiest rows of "
        "576 were closed."
    )
    begin: ClassVar[str] = "wanda+swap"
    source: ClassVar[str] = "Billionnet, Elloumi, Plateau 2009; Helmberg, Rendl, Vanderbei, Wolkowicz 1996"

    def __post_init__(self) -> None:
        if not (self.seconds > 0 and 0 <= self.gap < 1 and self.nodes >= 0 and self.subtree > 0):
            raise ValueError("seconds and subtree must be positive, nodes not negative, gap in [0, 1)")

    def supports(self, problem: Problem) -> str | None:
        size = problem.block_size
        if size > self.largest:
            return f"{size} variables in one program, which would take hours; largest={size} tries it all the same"
        return None

    def run(self, problem: Problem, state: State, context: Context) -> State:
        blocks = problem.rows if problem.pattern.separable else 1
        counts = problem.counts.reshape(blocks, -1)
        pruned = (~state.mask).reshape(blocks, -1)
        clock = _Clock(context, context.seconds() + context.left(self.seconds), blocks, max(1, context.threads))
        errors = problem.row_errors(pruned.reshape(problem.shape)).reshape(blocks, -1).sum(axis=1)
        known = linear_bounds(problem)
        recorder = BoundsRecorder(context, known.copy(), errors)
        context.hand_in("start", pruned)

        def solve(block: int) -> _Solution:
            end = clock.share()
            if context.seconds() >= end:
                answer = _Solution.unsolved(pruned[block], float(known[block]))
            else:
                program, scale = _program(problem, block, counts[block], float(errors[block]))
                search = Search(
                    program,
                    pruned[block],
                    self.gap,
                    (context.seed + block) % 2**32,
                    self.subtree,
                )
                search.run(lambda: end - context.seconds(), self.nodes or 2**62)
                reason = "deadline" if context.seconds() >= end else "nodes"
                reason = "" if search.done else ROUNDING if search.unprovable else reason
                tree = replace(search.tree(), scale=scale)
                answer = _Solution(
                    search.pruned, search.lower() / scale**2, tree, search.nodes, search.diagonals, reason
                )
            clock.left -= 1
            recorder.note(block, answer.lower, _error(problem, block, answer.pruned))
            context.hand_in(block, answer)
            return answer

        with rows_pool(min(clock.threads, blocks)) as pool:
            answers = list(pool.map(solve, range(blocks)))
        return self._joined(problem, state, answers, tuple(recorder.trace))

    def salvage(self, problem: Problem, state: State, parts: Mapping[Any, Any]) -> State:
        start = parts["start"]
        known = linear_bounds(problem).tolist()
        answers = [parts.get(block) or _Solution.unsolved(pruned, known[block]) for block, pruned in enumerate(start)]
        return self._joined(problem, state, answers, ())

    def _joined(self, problem: Problem, state: State, answers: list[_Solution], trace: tuple[TracePoint, ...]) -> State:
        lower = math.fsum(a.lower for a in answers)
        stopped = next((a.stopped for a in answers if a.stopped), "")
        after = replace(
            state,
            keep=~np.stack([a.pruned for a in answers]).reshape(problem.shape),
            relaxed=None,
            weights=None,
            proven=not stopped and self.gap == 0,
            stopped=stopped,
            trace=(*state.trace, *trace),
        )
        after = after.bound(lower, certificate(problem, [a.tree for a in answers], lower, self._spec()))
        return after.count(nodes=sum(a.nodes for a in answers), diagonals=sum(a.diagonals for a in answers))

    def _spec(self) -> str:
        return "bnb" if self.gap == 0 else f"bnb(gap={self.gap:g})"


@dataclass(frozen=True)
class _Solution:
    """What became of one block; ``pruned`` bool ``(m,)``."""

    pruned: np.ndarray
    lower: float
    tree: Tree
    nodes: int
    diagonals: int
    stopped: str

    @classmethod
    def unsolved(cls, pruned: np.ndarray, lower: float) -> _Solution:
        """``lower``: what the linear term says."""
        tree = Tree(0.0)
        tree.nothing()
        return cls(pruned, lower, tree, 0, 0, "deadline")


@dataclass
class _Clock:
    """Shares the time that is left among the blocks that are left."""

    context: Context
    end: float
    left: int
    threads: int

    def share(self) -> float:
        """When a block that starts now has to end, in seconds of the context."""
        now = self.context.seconds()
        turns = -(-max(1, self.left) // self.threads)
        return now + (self.end - now) / turns


def _error(problem: Problem, block: int, pruned: np.ndarray) -> float:
    """Of a block under a mask, bool ``(m,)``."""
    rows = slice(block, block + 1) if problem.pattern.separable else slice(None)
    return float(problem.row_errors(pruned.reshape(-1, problem.n), rows).sum())


def _program(problem: Problem, block: int, counts: np.ndarray, error: float) -> tuple[BinaryProgram, float]:
    """A block with its weights times a power of two, and that; ``error`` is its incumbent's."""
    if problem.linear is None or problem.offset is None:
        scale = scale_for(error)
        return BinaryProgram(block_matrix(problem, block, scale), counts), scale
    rows = slice(block, block + 1) if problem.pattern.separable else slice(None)
    w, linear = problem.W[rows].astype(np.float64), problem.linear[rows].ravel()
    diagonal = w * w * problem.G.diagonal()
    scale = scale_for(max(abs(error), float(diagonal.max()), float(np.abs(linear).max())))
    linear, constant = centred(linear * scale**2, counts, float(diagonal.mean()) * scale**2)
    constant += float(problem.offset[rows].sum()) * scale**2
    return BinaryProgram(block_matrix(problem, block, scale), counts, linear, constant), scale
