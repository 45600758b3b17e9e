"""Exact solution by Gurobi: the binary quadratic program of each row (of the layer, where that does not separate).

Gurobi's free licence (in its pip package) solves at most 200 variables with a quadratic objective, 2000 otherwise: the
stage finds out what the licence at hand allows by trying, and declines what exceeds it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from fwbench.problem import Problem, row_errors
from fwbench.result import Moment
from fwbench.solvers.blocks import Block, block_size, blocks
from fwbench.solvers.convexify import shared_e
from fwbench.solvers.fw import FrankWolfe
from fwbench.solvers.scores import keep_highest, wanda_score
from fwbench.stage import Context, Role, Stage, State, register

if TYPE_CHECKING:
    import gurobipy

FREE_LIMIT = 200  # variables of a quadratic model under the free licence (gurobipy 13)
TOO_LARGE = 10010  # GRB.Error.SIZE_LIMIT_EXCEEDED
OBJECTIVE = 100.0  # the incumbent's objective after scaling: Gurobi's absolute tolerances are 1e-10 and up
CONVEXIFY = ("none", "shared")


@register
@dataclass(frozen=True)
class Gurobi(Stage):
    """Branch and bound by Gurobi, row by row; an earlier mask (else Wanda's) is the incumbent.

    ``seconds``: for the whole layer, shared out evenly among the rows still to do. ``gap``: relative, 0 for a proof.
    ``threads``: 0 for the context's. ``convexify=shared``: solve ``uᵀ(Q - D)u + dᵀu`` with the shared ``e``.
    The bound is Gurobi's own claim, to its tolerances; a row that was not reached counts as 0.
    """

    seconds: float = math.inf
    gap: float = 0.0
    threads: int = 0
    convexify: str = "none"

    name: ClassVar[str] = "gurobi"
    role: ClassVar[Role] = Role.EXACT
    requires: ClassVar[tuple[str, ...]] = ("gurobipy",)
    source: ClassVar[str] = "Gurobi Optimizer, mixed-integer quadratic programming; Billionnet et al. 2009 (convexify)"

    def __post_init__(self) -> None:
        if self.convexify not in CONVEXIFY:
            raise ValueError(f"unknown convexify {self.convexify!r}; known: {', '.join(CONVEXIFY)}")
        if not (self.seconds > 0 and self.gap >= 0 and self.threads >= 0):
            raise ValueError("seconds must be positive, gap and threads not negative")

    def supports(self, problem: Problem) -> str | None:
        return licence_problem(block_size(problem))

    def run(self, problem: Problem, state: State, context: Context) -> State:
        end = context.left(self.seconds) + context.seconds()
        keep = keep_highest(problem, wanda_score(problem.W, problem.G)) if state.keep is None else state.keep
        e = self._shared(problem, keep, context)
        progress = Progress.of(problem, ~keep, context)
        pruned, proven, stopped, nodes = ~keep, True, "", 0
        left = problem.rows if problem.pattern.separable else 1
        for block in blocks(problem, e):
            share = (end - context.seconds()) / left
            if share <= 0:
                proven, stopped = False, "deadline"
                break
            answer = self._solve(problem, block, pruned[block.rows], share, progress, context)
            pruned[block.rows] = answer.pruned
            proven, nodes = proven and answer.proven, nodes + answer.nodes
            stopped = stopped or answer.stopped
            left -= 1
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

    def _shared(self, problem: Problem, keep: np.ndarray, context: Context) -> np.ndarray | None:
        if self.convexify == "none":
            return None
        plain = FrankWolfe(steps=200).run(problem, State(keep=keep), replace(context, dtype="float64"))
        assert plain.relaxed is not None
        return shared_e(problem, plain.relaxed)

    def _solve(
        self, problem: Problem, block: Block, start: np.ndarray, seconds: float, progress: Progress, context: Context
    ) -> Answer:
        """Solve one block from the incumbent ``start``, bool ``(rows of the block, n)``, True = pruned."""
        import gurobipy

        incumbent = _value(problem, block, start)
        if incumbent <= 0:  # nothing costs less than nothing
            progress.finish(incumbent, incumbent, 0.0)
            return Answer(start, proven=True)
        scale = OBJECTIVE / max(incumbent, 1e-6 * float(block.Q.diagonal().sum()))  # keeps coefficients below 1e8
        with _model(block, scale, environment()) as model:
            model.Params.Threads = self.threads or context.threads
            model.Params.Seed = context.seed % 2_000_000_000
            model.Params.TimeLimit = max(0.0, seconds)
            model.Params.MIPGap = self.gap
            x = model._x
            x.Start = start.ravel().astype(np.float64)
            model.optimize(progress.callback(incumbent, scale))
            found = x.X.reshape(start.shape) > 0.5 if model.SolCount else start
            value = _value(problem, block, found)
            if not value < incumbent:
                found, value = start, incumbent
            done = model.Status == gurobipy.GRB.OPTIMAL
            lower = min(value, max(0.0, model.ObjBound / scale))
            progress.finish(incumbent, value, lower)
            late = model.Status == gurobipy.GRB.TIME_LIMIT
            reason = "" if done else "deadline" if late else f"Gurobi's status {model.Status}"
            return Answer(found, done, reason, int(model.NodeCount))


@dataclass(frozen=True)
class Answer:
    """What became of one block; ``pruned`` bool ``(rows of the block, n)``."""

    pruned: np.ndarray
    proven: bool = False
    stopped: str = ""
    nodes: int = 0


@dataclass
class Progress:
    """Bounds of the layer while its blocks are solved one after another, and their trace."""

    upper: float
    lower: float
    context: Context
    points: list[Moment] = field(default_factory=list)

    @classmethod
    def of(cls, problem: Problem, pruned: np.ndarray, context: Context) -> Progress:
        progress = cls(float(problem.row_errors(pruned).sum()), 0.0, context)
        progress._note(progress.upper, 0.0)
        return progress

    def callback(self, incumbent: float, scale: float) -> Any:
        """Gurobi's callback for one block: note the layer's bounds as they change, at most ten times a second."""
        from gurobipy import GRB

        def call(model: gurobipy.Model, where: int) -> None:
            if where == GRB.Callback.MIP and self.context.seconds() > self.points[-1][0] + 0.1:
                best = min(incumbent, model.cbGet(GRB.Callback.MIP_OBJBST) / scale)
                bound = min(best, max(0.0, model.cbGet(GRB.Callback.MIP_OBJBND) / scale))
                self._note(self.upper - incumbent + best, self.lower + bound)

        return call

    def finish(self, incumbent: float, value: float, lower: float) -> None:
        self.upper += value - incumbent
        self.lower += lower
        if self.points[-1][1:3] != (self.upper, self.lower):
            self._note(self.upper, self.lower)

    def _note(self, upper: float, lower: float) -> None:
        self.points.append(Moment(self.context.seconds(), upper, lower))


def _value(problem: Problem, block: Block, pruned: np.ndarray) -> float:
    """The error of a block's rows under a mask, by the problem's own objective."""
    return float(row_errors(problem.G, problem.W[block.rows].astype(np.float64) * pruned).sum())


def _model(block: Block, scale: float, env: gurobipy.Env) -> gurobipy.Model:
    """The binary program of a block; its variables are ``model._x (m,)``."""
    import gurobipy

    model = gurobipy.Model(env=env)
    x = model.addMVar(block.size, vtype="B")
    model.addConstr(block.sums() @ x == block.counts.astype(np.float64))
    model.setMObjective(block.Q * scale, block.c * scale, 0.0, sense=gurobipy.GRB.MINIMIZE)
    model.Params.IntFeasTol = 1e-9  # a weight pruned by 1e-5 can cost less by more than the gap
    model.Params.MIPGapAbs = 1e-10
    model._x = x
    return model


@cache
def environment() -> gurobipy.Env:
    """The process's one Gurobi environment, silent."""
    import gurobipy

    env = gurobipy.Env(empty=True)
    env.setParam("OutputFlag", 0)
    env.start()
    return env


@cache
def licence_problem(size: int) -> str | None:
    """None if the licence at hand solves a binary quadratic program of ``size`` variables, else the reason."""
    import gurobipy

    try:
        with gurobipy.Model(env=environment()) as model:
            model.Params.TimeLimit = 0.0
            x = model.addMVar(size, vtype="B")
            model.setObjective((x * x).sum())
            model.optimize()
    except gurobipy.GurobiError as error:
        if error.errno == TOO_LARGE:
            return f"{size} variables in one program; Gurobi's free licence allows {FREE_LIMIT}, a full one is needed"
        return f"no Gurobi licence ({error})"
    return None
