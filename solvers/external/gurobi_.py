"""Exact solution by Gurobi: the binary quadratic program of each row (of the layer, where that does not separate).

Gurobi's free licence (in its pip package) solves at most 200 variables with a quadratic objective, 2000 otherwise: the
stage finds out what the licence at hand allows by trying, and declines what exceeds it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from fwbench.problem import Problem
from fwbench.solvers.external.base import BlockProgress, External, Solution, scaling
from fwbench.solvers.external.blocks import QuadraticBlock
from fwbench.stage import Context, register

if TYPE_CHECKING:
    import gurobipy

FREE_LIMIT = 200  # variables of a quadratic model under the free licence (gurobipy 13)
TOO_LARGE = 10010  # GRB.Error.SIZE_LIMIT_EXCEEDED


@register
@dataclass(frozen=True)
class Gurobi(External):
    """Branch and bound by Gurobi, row by row; the mask before it is the incumbent.

    ``seconds``: for the whole layer, shared out evenly among the rows still to do. ``gap``: relative, 0 for a proof.
    ``threads``: 0 for the context's. ``convexify``: solve ``uᵀ(Q - D)u + dᵀu`` with the shared ``e`` (``shared``) or
    each row's own ``d``, that of ``bnb``'s search (``row``).
    The bound is Gurobi's own claim, to its tolerances; a row that was not reached counts as 0 (as what its
    linear term says, where there is one).
    """

    threads: int = 0

    name: ClassVar[str] = "gurobi"
    advice: ClassVar[str] = (
        "For an exact solution by another code (free of charge up to 200 variables); not for speed, `bnb` closes "
        "the same rows in less time."
    )
    version: ClassVar[int] = 3  # of masks nearly as good, too, the best
    requires: ClassVar[tuple[str, ...]] = ("gurobipy",)
    source: ClassVar[str] = "Gurobi Optimizer, mixed-integer quadratic programming; Billionnet et al. 2009 (convexify)"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threads < 0:
            raise ValueError("threads must not be negative")

    def supports(self, problem: Problem) -> str | None:
        return super().supports(problem) or licence_problem(problem.block_size)

    def solve(
        self,
        problem: Problem,
        block: QuadraticBlock,
        start: np.ndarray,
        seconds: float,
        progress: BlockProgress,
        context: Context,
    ) -> Solution:
        import gurobipy

        scale = scaling(block, progress.incumbent)
        with _model(block, scale, environment()) as model:
            model.Params.Threads = self.threads or context.threads
            model.Params.Seed = context.seed % 2_000_000_000
            model.Params.TimeLimit = max(0.0, seconds)
            model.Params.MIPGap = self.gap
            x = model._x
            x.Start = start.ravel().astype(np.float64)
            model.optimize(_callback(progress, scale))
            found = x.X.reshape(start.shape) > 0.5 if model.SolCount else start
            done = model.Status == gurobipy.GRB.OPTIMAL
            late = model.Status == gurobipy.GRB.TIME_LIMIT
            reason = "" if done else "deadline" if late else f"Gurobi's status {model.Status}"
            return Solution(found, model.ObjBound / scale, done, reason, int(model.NodeCount))


def _callback(progress: BlockProgress, scale: float) -> Any:
    """Gurobi's callback for one block: note the layer's bounds as they change, at most ten times a second."""
    from gurobipy import GRB

    def call(model: gurobipy.Model, where: int) -> None:
        if where == GRB.Callback.MIP and progress.due:
            progress.note(model.cbGet(GRB.Callback.MIP_OBJBST) / scale, model.cbGet(GRB.Callback.MIP_OBJBND) / scale)

    return call


def _model(block: QuadraticBlock, scale: float, env: gurobipy.Env) -> gurobipy.Model:
    """The binary program of a block; its variables are ``model._x (m,)``."""
    import gurobipy

    model = gurobipy.Model(env=env)
    x = model.addMVar(block.size, vtype="B")
    model.addConstr(block.sums() @ x == block.counts.astype(np.float64))
    model.setMObjective(block.Q * scale, block.c * scale, block.constant * scale, sense=gurobipy.GRB.MINIMIZE)
    model.Params.IntFeasTol = 1e-9  # a weight pruned by 1e-5 can cost less by more than the gap
    model.Params.OptimalityTol = 1e-9  # at the default 1e-6 a mask worse by a relative 2e-8 was called optimal
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
