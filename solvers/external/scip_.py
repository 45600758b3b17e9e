"""Exact solution by SCIP, free and without a licence: a convex program of each row, its objective a sum of squares.

SCIP takes linear objectives only and would multiply out a quadratic one. With ``Q - D = FᵀF`` the program of a block is

    min t + cᵀu   subject to   y = Fu,  Σ y² ≤ t,  the counts,  u binary,

whose one nonlinear constraint is convex term by term, so that SCIP's cuts are gradients. The epigraph ``yᵢ² ≤ tᵢ`` of
each square takes longer, and of the multiplied-out ``uᵀ(Q - D)u ≤ t`` the bound is still below 0 when that is solved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from fwbench.problem import Problem
from fwbench.solvers.external.base import OBJECTIVE, BlockProgress, External, Solution, scaling
from fwbench.solvers.external.blocks import QuadraticBlock
from fwbench.stage import Context, register

if TYPE_CHECKING:
    import pyscipopt

TOLERANCE = 1e-9  # of feasibility and integrality: a weight pruned by 1e-6 can cost less by more than the gap
AGREEMENT = 1e-6  # of the optimum as SCIP sees it with the error of its mask, relative
NEGLIGIBLE = 1e-9  # what a dropped square can add to an objective of ``OBJECTIVE``


@register
@dataclass(frozen=True)
class Scip(External):
    """Branch and bound by SCIP, row by row; the mask before it is the incumbent.

    ``seconds``: for the whole layer, shared out evenly among the rows still to do. ``gap``: relative, 0 for a proof.
    ``convexify``: solve ``uᵀ(Q - D)u + dᵀu`` with ``d = 0`` (``none``), the shared ``e`` (``shared``) or each row's own
    ``d``, that of ``bnb``'s search (``row``). ``largest``: variables of a block (a row); beyond it the stage declines
    unless told otherwise. One thread. The bound is SCIP's own claim, to its tolerances; a row that was not reached
    counts as 0 (as what its linear term says, where there is one), and nothing is called proven where SCIP's optimum is
    not its mask's error to 1e-6.
    """

    largest: int = 400

    name: ClassVar[str] = "scip"
    advice: ClassVar[str] = (
        "For an exact solution by another code, free of licences; not for rows of more than some 64 inputs, `bnb` "
        "goes on where it stops."
    )
    version: ClassVar[int] = 2  # convexify=row: diagonals for deeper nodes
    requires: ClassVar[tuple[str, ...]] = ("pyscipopt",)
    source: ClassVar[str] = "Hojny et al., The SCIP Optimization Suite 10.0; Billionnet et al. 2009 (convexify)"

    def supports(self, problem: Problem) -> str | None:
        size = problem.block_size
        if size > self.largest:
            return f"{size} variables in one program, which would take hours; largest={size} tries it all the same"
        return super().supports(problem)

    def solve(
        self,
        problem: Problem,
        block: QuadraticBlock,
        start: np.ndarray,
        seconds: float,
        progress: BlockProgress,
        context: Context,
    ) -> Solution:
        scale = scaling(block, progress.incumbent)
        program = Program.of(block, scale)
        program.start(start.ravel())
        model = program.model
        model.setParam("limits/time", min(max(0.0, seconds), 1e20))
        model.setParam("limits/gap", self.gap)
        model.setParam("randomization/randomseedshift", context.seed % 2_000_000_000)
        model.includeEventhdlr(_watch(progress, scale), "bounds", "the layer's bounds as they change")
        try:
            model.optimize()
        except MemoryError:
            raise
        except Exception as error:  # pyscipopt's own, of no special kind, for any error within SCIP
            return Solution(start, stopped=f"SCIP failed: {error}")
        found = program.found().reshape(start.shape) if model.getNSols() else start
        lower, upper = model.getDualbound() / scale, model.getPrimalbound() / scale
        reason = _reason(model.getStatus())
        value = program.value(found.ravel()) / scale
        if not reason and abs(value - upper) > AGREEMENT * max(value, OBJECTIVE / scale):
            reason = "SCIP's tolerances do not suffice"
        return Solution(found, lower, not reason and self.gap == 0, reason, int(model.getNTotalNodes()))


@dataclass(frozen=True)
class Program:
    """A block as SCIP gets it, its objective times a scale."""

    model: pyscipopt.Model
    u: list[Any]  # (m,) binary variables
    y: list[Any]  # (squares,)
    t: Any
    F: np.ndarray  # (squares, m)
    c: np.ndarray  # (m,)
    constant: float

    @classmethod
    def of(cls, block: QuadraticBlock, scale: float) -> Program:
        from pyscipopt import Model, quicksum

        model = Model()
        model.hideOutput()
        for name, value in (
            ("timing/clocktype", 2),  # of the wall
            ("misc/catchctrlc", False),
            ("numerics/feastol", TOLERANCE),
            ("numerics/dualfeastol", TOLERANCE),
        ):
            model.setParam(name, value)
        F, c = factor(block, scale), block.c * scale
        u = [model.addVar(vtype="B") for _ in range(block.size)]
        y = [model.addVar(lb=None) for _ in F]
        t = model.addVar(lb=0.0)
        size = block.size // len(block.counts)
        for group, count in enumerate(block.counts):
            model.addCons(quicksum(u[group * size : (group + 1) * size]) == float(count))
        for row, square in zip(F, y, strict=True):
            model.addCons(_product(row, u) == square)
        model.addCons(quicksum(square * square for square in y) <= t)
        model.setObjective(t + _product(c, u) + block.constant * scale, "minimize")
        return cls(model, u, y, t, F, c, block.constant * scale)

    def start(self, pruned: np.ndarray) -> None:
        """Hand in a mask, bool ``(m,)``, as the incumbent."""
        solution = self.model.createSol()
        y = self.F @ pruned
        for variable, value in zip((*self.u, *self.y, self.t), (*pruned.astype(float), *y, y @ y), strict=True):
            self.model.setSolVal(solution, variable, float(value))
        self.model.addSol(solution)

    def found(self) -> np.ndarray:
        """SCIP's best mask, bool ``(m,)``."""
        best = self.model.getBestSol()
        return np.array([self.model.getSolVal(best, variable) > 0.5 for variable in self.u])

    def value(self, pruned: np.ndarray) -> float:
        """The scaled objective of a mask, bool ``(m,)``."""
        y = self.F @ pruned
        return float(y @ y + self.c @ pruned) + self.constant


def factor(block: QuadraticBlock, scale: float) -> np.ndarray:
    """``F (squares, m)`` with ``FᵀF = scale Q``, by the spectral theorem; squares that can add nothing are left out."""
    Q = block.Q if isinstance(block.Q, np.ndarray) else block.Q.toarray()
    values, vectors = np.linalg.eigh(Q * scale)
    counts = values * block.size > NEGLIGIBLE
    return np.sqrt(values[counts])[:, None] * vectors[:, counts].T


def _product(coefficients: np.ndarray, variables: list[Any]) -> Any:
    from pyscipopt import quicksum

    return quicksum(float(a) * x for a, x in zip(coefficients, variables, strict=True) if a != 0)


def _reason(status: str) -> str:
    """Why SCIP stopped, empty if because it had reached its goal."""
    if status in ("optimal", "gaplimit"):
        return ""
    return "deadline" if status == "timelimit" else f"SCIP's status {status}"


def _watch(progress: BlockProgress, scale: float) -> Any:
    """SCIP's event handler for one block: note the layer's bounds as they change, at most ten times a second."""
    from pyscipopt import SCIP_EVENTTYPE, Eventhdlr

    kinds = SCIP_EVENTTYPE.NODESOLVED | SCIP_EVENTTYPE.BESTSOLFOUND

    class Watch(Eventhdlr):
        def eventinit(self) -> None:
            self.model.catchEvent(kinds, self)

        def eventexit(self) -> None:
            self.model.dropEvent(kinds, self)

        def eventexec(self, event: Any) -> None:
            if progress.due:
                progress.note(self.model.getPrimalbound() / scale, self.model.getDualbound() / scale)

    return Watch()
